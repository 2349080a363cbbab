"""The steps of an interval as one kernel give what steps in a loop give, interpreted on the CPU."""

import functools
import logging
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import ergodax as ex
from ergodax.simulation import block, job, kernel, pool, steps
from ergodax.simulation.entries import by_entries, entries
from ergodax.simulation.inputs import check_inputs
from ergodax.simulation.recorders import Tally
from ergodax.simulation.step import words_of
from ergodax.simulation.streams import run_keys
from ergodax.simulation.tables import Refused, Table
from test_lanes import FUNCTIONS, LANES, _control_flow, _kept, _several_rows

RUNS = 64
SOFT = ex.EpsilonSoftmax(0.5, 0.1)
REFUSED = (_control_flow,)  # which loops


def in_entries(function, large: bool):
    """A function of one run over the leading axis of its arguments, entry by entry."""

    def of_argument(array):
        shape = array.shape[1:]
        flat = array.reshape(len(array), -1)
        if large and len(shape) == 2:
            first = jnp.arange(len(array), dtype=jnp.int32) * flat.shape[1]
            return Table(shape, array.dtype, lambda place: array.ravel()[first + place], None)
        return entries(shape, flat.T)

    def of_result(value):
        if isinstance(value, Table):
            count = np.prod(value.shape)
            value = entries(value.shape, (value.read(jnp.int32(k)) for k in range(count)))
        rows = [jnp.broadcast_to(jnp.asarray(entry), LANES) for entry in value.ravel()]
        return jnp.stack(rows, axis=-1).reshape(LANES, *value.shape)

    def batched(*arguments):
        found = by_entries(function, *map(of_argument, arguments))
        return jax.tree.map(of_result, found, is_leaf=lambda v: isinstance(v, Table | np.ndarray))

    return batched


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__.strip("_"))
def test_entries_give_what_vmap_gives(function):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(LANES, 4, 3)))
    state = jnp.asarray(rng.integers(4, size=LANES), jnp.int32)
    key = jnp.asarray(rng.integers(2**32, size=(LANES, 2)), jnp.uint32)
    batched = in_entries(function, large=False)
    if function in REFUSED:
        with pytest.raises(Refused, match="there is no rule for"):
            jax.eval_shape(batched, table, state, key)
        return
    expected = jax.vmap(function)(table, state, key)
    found = jax.jit(batched)(table, state, key)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-14)


def _written_twice(table, state, key):
    """Reads after writes, at places that may be the same; one of the places lies outside."""
    table = table.at[state, 0].add(2.0).at[state, 1].set(1.0).at[0].add(3.0)
    return table.at[state + 2, 2].add(1.0), table[state], table[0, 1], table[state - 1, -1]


@pytest.mark.parametrize("large", [False, True], ids=["registers", "memory"])
@pytest.mark.parametrize("function", [_written_twice, _several_rows, _kept])
def test_tables_in_memory_hold_what_was_written(function, large):
    rng = np.random.default_rng(1)
    table = jnp.asarray(rng.normal(size=(LANES, 3, 4)))
    state = jnp.asarray(rng.integers(3, size=LANES), jnp.int32)
    key = jnp.zeros((LANES, 2), jnp.uint32)
    expected = jax.vmap(function)(table, state, key)
    found = jax.jit(in_entries(function, large))(table, state, key)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_a_table_in_memory_is_not_used_as_a_whole():
    table = jnp.ones((LANES, 3, 4))
    with pytest.raises(Refused, match="used as a whole, by reduce_sum") as refused:
        jax.eval_shape(in_entries(jnp.sum, large=True), table)
    assert refused.value.table.shape == (3, 4)


def test_tables_in_memory_that_change_places_are_refused():
    tables = jnp.zeros((RUNS, 5, 5)), jnp.ones((RUNS, 5, 5))
    with pytest.raises(Refused, match="replaced by another"):
        kernel.take_steps(lambda taken, shared, own, run: run[::-1], 3, (), (), tables)


def advanced(wrapped, params0, dtype, lengths, own_game=False):
    """Arguments of a block of steps, as a function of the block."""
    inputs = check_inputs(wrapped, params0, None, None, RUNS, dtype)
    rows, _ = inputs.rows(np.arange(RUNS), ())
    mesh = Mesh(np.array(jax.devices()[:1]), (block.AXIS,))
    compensated = dtype == "float32"
    begin = functools.partial(
        block.Setting, rows.wrapped, jnp.asarray(2.0), lambda x: x, (Tally(),)
    )
    setting = begin(compensated, own_game, 0, 64, mesh)
    keys = run_keys(jax.random.key(0), jnp.arange(RUNS, dtype=jnp.uint32))
    runs = block.start(setting, keys, rows.params0, rows.law)
    lengths = jnp.array(lengths, jnp.int32)
    others = keys, runs, jnp.ones(RUNS, bool), words_of(2**32 - 3), lengths, lengths > 0

    def call(in_kernel=False, traced=False):
        used = begin(compensated, own_game, 0, 64, mesh, in_kernel)
        arrays, static = eqx.partition(used, eqx.is_array)

        @jax.jit
        def advance(arrays, *others):
            return block.advance.__wrapped__(eqx.combine(arrays, static), *others)

        if traced:
            return jax.eval_shape(advance, arrays, *others)
        return jax.device_get(advance(arrays, *others))

    return call


@pytest.fixture
def on_card(monkeypatch):
    """Steps are taken as on a GPU from here on; kernels are interpreted, if need be."""

    def go(interpret=True):
        for module in (steps, block, job, pool):
            monkeypatch.setattr(module, "is_gpu", lambda mesh: True)
        interpreted = functools.partial(kernel.take_steps, interpret=interpret)
        monkeypatch.setattr(steps, "take_steps", interpreted)

    return go


def two(learner, game=None):
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma() if game is None else game, [learner] * 2)
    return wrapped, wrapped.init()


def nine_states():
    return ex.games.repeated(np.random.default_rng(0).normal(size=(3, 3, 2)))


def three_agents():
    payoffs = tuple(np.random.default_rng(0).normal(size=(3, 2, 2, 2)))
    learner = ex.QLearning(0.1, 0.8, SOFT, 1.0)
    wrapped = ex.WrappedGame(ex.games.repeated(payoffs, memory=0), [learner] * 3)
    return wrapped, wrapped.init()


def random_states():
    rng = np.random.default_rng(0)
    game = ex.MarkovGame.from_dense(
        rng.dirichlet(np.ones(3), (3, 2, 2)), rng.normal(size=(3, 2, 2, 3, 2))[..., 0, :]
    )
    return two(ex.QLearning(0.1, 0.8, SOFT), game)


CASES = {
    "Sarsa": lambda: two(ex.Sarsa(0.1, 0.8, SOFT, 10.0)),
    "counterfactual": lambda: two(ex.CounterfactualQLearning(0.1, 0.8, SOFT, 10.0)),
    "in memory": lambda: two(ex.QLearning(0.1, 0.8, ex.EpsilonGreedy(0.1), 1.0), nine_states()),
    "three agents": three_agents,
    "drawn outcomes": random_states,
}


@pytest.mark.slow
def test_one_kernel_takes_the_steps_of_a_loop_bit_for_bit(on_card):
    call = advanced(*two(ex.QLearning(0.1, 0.9, SOFT, 10.0)), "float32", [7, 0, 2])
    expected = call()
    on_card()
    jax.tree.map(np.testing.assert_array_equal, call(in_kernel=True), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kernels_of_other_learners_and_games(case, on_card):
    call = advanced(*CASES[case](), "float64" if case == "Sarsa" else "float32", [9])
    expected = call()
    on_card()
    jax.tree.map(np.testing.assert_array_equal, call(in_kernel=True), expected)


TO_ROUNDING = [ex.ActorCritic(0.05, 0.1, 0.7, SOFT), ex.ProjectedGradient(0.01)]


@pytest.mark.slow
@pytest.mark.parametrize("learner", TO_ROUNDING, ids=lambda learner: type(learner).__name__)
def test_kernels_that_add_in_another_order_to_rounding(learner, on_card):
    call = advanced(*two(learner), "float32", [9])
    expected = call()
    on_card()
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), call(True), expected)


@pytest.mark.slow
def test_the_kernel_of_runs_with_games_of_their_own(on_card):
    def build(g):
        return two(ex.QLearning(0.1, 0.8, SOFT, 10.0), ex.games.prisoners_dilemma(g))

    call = advanced(*jax.vmap(build)(jnp.linspace(1.2, 1.8, RUNS)), "float32", [9], own_game=True)
    expected = call()
    on_card()
    jax.tree.map(np.testing.assert_array_equal, call(in_kernel=True), expected)


class Settling(ex.QLearning):
    """Learns from the next state's values, averaged in a loop."""

    def update(self, params, transition, game, agent):
        increment = super().update(params, transition, game, agent)
        halved = jax.lax.fori_loop(0, transition.state, lambda _, x: x / 2, params.max())
        return ex.At(increment.index, increment.value + 0.1 * halved)


@pytest.mark.slow
def test_steps_launched_one_by_one_are_those_of_a_loop(on_card):
    call = advanced(*two(Settling(0.1, 0.8, SOFT, 10.0)), "float32", [70])
    expected = call()
    on_card()
    jax.tree.map(np.testing.assert_array_equal, call(), expected)


def simulated(learner, **options):
    return ex.simulate(*two(learner), [2.0], runs=RUNS, key=jax.random.key(0), **options)


def test_where_there_is_no_kernel_the_reason_is_logged(on_card, caplog):
    expected = simulated(Settling(0.1, 0.8, SOFT, 10.0))
    on_card()
    with caplog.at_level(logging.INFO, "ergodax"):
        found = simulated(Settling(0.1, 0.8, SOFT, 10.0))
    assert "not many in one kernel: there is no rule for while" in caplog.text
    assert found.compiler == "XLA"
    np.testing.assert_array_equal(found.final.params, expected.final.params)


def test_where_the_kernel_fails_to_compile_steps_are_launched_with_a_warning(on_card):
    """Pallas makes no kernels for a processor unless it interprets them: it fails in lowering."""
    expected = simulated(ex.QLearning(0.1, 0.9, SOFT, 10.0))
    on_card(interpret=False)
    with pytest.warns(UserWarning, match="launched by itself.*ValueError: Only interpret") as told:
        found = simulated(ex.QLearning(0.1, 0.9, SOFT, 10.0))
    assert len(told) == 1
    assert found.compiler == "XLA"
    np.testing.assert_array_equal(found.final.params, expected.final.params)


CRITERIA = {
    "greedy": (10.0, ex.until.greedy_unchanged(12), False),
    "greedy, in memory": (0.5, ex.until.greedy_unchanged(4), True),
    "settled, in memory": (0.5, ex.until.settled(0.15, 5), True),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*CRITERIA][:1] + [pytest.param(c, marks=pytest.mark.slow) for c in [*CRITERIA][1:]]
)
def test_runs_that_stop_one_by_one_hold_still_in_a_kernel(case, on_card):
    """Each stops at its own step, as it stood then, bit for bit, and those that are late go on."""
    initial, until, large = CRITERIA[case]
    learner = ex.QLearning(0.1, 0.9, SOFT, initial)
    wrapped, params0 = two(learner, nine_states() if large else None)

    def run():
        options = {"max_steps": 40, "runs": 70, "key": jax.random.key(1), "dtype": "float32"}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*did not meet the criterion")
            return ex.simulate_until(wrapped, params0, until, batch_size=64, **options)

    expected = run()
    on_card()
    found = run()
    assert (expected.compiler, found.compiler) == ("XLA", "Triton")
    assert len(np.unique(expected.steps)) > 5
    for name in ("steps", "reached", "recorded", "final", "watching"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(expected, name))


LEARNERS = {
    "ActorCritic": ex.ActorCritic(0.05, 0.1, 0.7, SOFT),
    "BushMosteller": ex.BushMosteller(0.3, 0.1, aspiration=0.5),
    "CounterfactualQLearning": ex.CounterfactualQLearning(0.1, 0.8, SOFT),
    "Cross": ex.Cross(0.3, 0.1),
    "DoubleQLearning": ex.DoubleQLearning(0.3, 0.8, SOFT),
    "ExpectedSarsa": ex.ExpectedSarsa(0.3, 0.8, SOFT),
    "ExponentialWeights": ex.ExponentialWeights(0.3, ex.EpsilonSoftmax(1.0, 0.2)),
    "FallingRate": ex.FallingRate(ex.QLearning(0.3, 0.8, SOFT), 0.6),
    "FrequencyAdjustedQLearning": ex.FrequencyAdjustedQLearning(0.3, 0.8, SOFT, frequency=0.3),
    "Lenient": ex.Lenient(ex.QLearning(0.1, 0.8, SOFT), draws=2),
    "Observing": ex.Observing(ex.QLearning(0.1, 0.8, SOFT), [0, 1, 1, 0]),
    "ProjectedGradient": ex.ProjectedGradient(0.3, ex.Projection(1.0, 0.2)),
    "QLearning": ex.QLearning(
        0.1, 0.8, ex.EpsilonGreedy(ex.schedules.exponential(1.0, rate=0.01)), 10.0
    ),
    "Reinforce": ex.Reinforce(0.3, 0.3, SOFT),
    "RothErev": ex.RothErev(0.3, forgetting=0.1, experimentation=0.2),
    "Sarsa": ex.Sarsa(0.1, 0.8, SOFT),
    "WolfPHC": ex.WolfPHC(0.1, 0.8),
}


@pytest.mark.slow
def test_every_learner_of_the_package_has_a_kernel():
    """Kernels are traced: one that is refused is an error."""
    learners = [getattr(ex.learners, name) for name in ex.learners.__all__]
    named = {c.__name__ for c in learners if hasattr(c, "update")}
    assert named == set(LEARNERS)
    several = [*LEARNERS.values(), LEARNERS["Sarsa"]]
    for pair in zip(several[::2], several[1::2], strict=True):
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), pair)
        advanced(wrapped, wrapped.init(), "float32", [3])(in_kernel=True, traced=True)
