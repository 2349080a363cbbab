import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import comparisons
import ergodax as ex
from helpers import annotations_off


def brute_force(ode, mean, variance, runs):
    """Largest gap with its place, and root mean squares, by loops over tuples of arrays."""
    largest, place, squares, error_squares = -1.0, None, [], []
    for agent in range(len(ode)):
        for index in np.ndindex(ode[agent].shape):
            gap = abs(float(mean[agent][index]) - float(ode[agent][index]))
            error = float(variance[agent][index] / runs) ** 0.5
            squares.append(gap**2)
            error_squares.append(error**2)
            if gap > largest:
                largest, place = gap, (agent, index, error)
    return largest, place, np.mean(squares) ** 0.5, np.mean(error_squares) ** 0.5


@pytest.mark.parametrize("quantity", ["parameters", "policies"])
def test_gap_is_that_of_brute_force(quantity):
    c = comparisons.dilemma()
    k = 0 if quantity == "parameters" else 1
    ode = (c.solution.params, c.policies)[k]
    gap = (c.parameter_gap, c.policy_gap)[k]
    largest, (agent, index, error), rms, rms_error = brute_force(
        ode, c.simulation.mean[k], c.simulation.variance[k], runs=64
    )
    assert 0 < gap.largest == largest
    assert gap.agent == agent
    assert gap.time == c.simulation.ts[index[0]]
    assert gap.entry == f"state {['CC', 'CD', 'DC', 'DD'][index[1]]}, action {'CD'[index[2]]}"
    assert gap.standard_error == pytest.approx(error, rel=1e-14)
    assert gap.root_mean_square == pytest.approx(rms, rel=1e-13)
    assert gap.root_mean_square_error == pytest.approx(rms_error, rel=1e-13)


def test_repr_says_the_gaps():
    comparison = comparisons.dilemma()
    assert repr(comparison) == (
        f"Comparison({comparison.simulation!r}; "
        f"largest gap {comparison.parameter_gap.largest:.4g} of parameters, "
        f"{comparison.policy_gap.largest:.4g} of policies)"
    )


@pytest.mark.slow
def test_solution_and_simulation_are_those_of_solve_and_simulate():
    wrapped, key = comparisons.dilemma_game(), jax.random.key(5)
    params, ts = wrapped.init(), np.array([0.0, 3.14159, 7.05, 8.0, 9.0])
    options = {"scale": 10.0, "runs": 64, "key": key, "initial_state": "DD", "dtype": "float32"}
    c = ex.compare(wrapped, params, ts, **options)
    np.testing.assert_array_equal(c.simulation.ts, [0.0, 3.1, 7.0, 8.0, 9.0])

    solution = ex.solve(wrapped, params, jax.numpy.asarray(c.simulation.ts))
    jax.tree.map(np.testing.assert_array_equal, c.solution.params, solution.params)
    for k in range(5):
        policies = wrapped.policies(jax.tree.map(lambda leaf, k=k: leaf[k], solution.params))
        for found, expected in zip(c.policies, policies, strict=True):
            np.testing.assert_allclose(found[k], expected, rtol=1e-14)

    simulation = ex.simulate(wrapped, params, ts, keep_runs=True, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(c.simulation.final.params)} == {
        np.dtype("float32")
    }
    np.testing.assert_array_equal(c.simulation.final.state, simulation.final.state)
    for found, expected in zip(c.simulation.mean[0], simulation.mean, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6)
    with jax.numpy_dtype_promotion("standard"):  # of float32 values, by float64 learners
        policies = jax.vmap(jax.vmap(wrapped.policies))(simulation.values)
    for k, all_runs in enumerate(policies):
        runs = np.asarray(all_runs, dtype=float)
        np.testing.assert_allclose(c.simulation.mean[1][k], runs.mean(axis=0), rtol=2e-6)
        np.testing.assert_allclose(
            c.simulation.variance[1][k], runs.var(axis=0, ddof=1), rtol=1e-3, atol=1e-11
        )


@pytest.mark.slow
def test_lists_of_times_and_whole_scales_will_do():
    wrapped, key = comparisons.dilemma_game(), jax.random.key(0)
    c = ex.compare(wrapped, wrapped.init(), comparisons.TIMES.tolist(), scale=10, runs=64, key=key)
    assert c.parameter_gap == comparisons.dilemma().parameter_gap


def test_gap_shrinks_with_the_scale():
    wrapped = comparisons.dilemma_game(learning_rate=1.0)
    gaps = [
        ex.compare(
            wrapped, wrapped.init(), comparisons.TIMES, scale=scale, runs=64, key=jax.random.key(0)
        ).parameter_gap.root_mean_square
        for scale in (1.0, 30.0)
    ]
    assert gaps[1] < gaps[0] / 5


def again(c):
    """The same comparison, made anew."""
    params = jax.tree.map(lambda leaf: leaf[0], c.solution.params)
    return ex.compare(
        c.wrapped,
        params,
        c.simulation.ts,
        scale=c.simulation.scale,
        runs=c.simulation.runs,
        key=jax.random.wrap_key_data(c.key_data),
    )


class Uneven(comparisons.Logit):
    """A logit whose parameters move at rates of their own."""

    rates: jax.Array = ex.hyper((1.0, 1.0, 1.0, 1.0), scalar=False)

    def update(self, params, transition, game, agent):
        push = super().update(params, transition, game, agent)["bias"]
        return {"bias": self.rates[0] * push, "slope/a": self.rates[1:] * push}


def market(actor, critic, sarsa):
    """The market, learning at other rates."""
    c = comparisons.market()
    wrapped = ex.WrappedGame(c.wrapped.game, [ex.ActorCritic(actor, critic), ex.Sarsa(sarsa)])
    return wrapped, jax.tree.map(lambda leaf: leaf[0], c.solution.params)


def uneven(*rates):
    game = ex.games.repeated((np.eye(2), np.eye(2)), memory=0)
    wrapped = ex.WrappedGame(game, [Uneven(rates=rates), comparisons.Vague(0.0)])
    return wrapped, wrapped.init()


STATES, ACTIONS = ("boom", "bust"), (("low", "mid", "high"), ("in", "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "rates", "agent", "leaf", "entry"),
    [
        (
            market,
            (0.02, 0.0, 0.0),
            0,
            lambda own: own.theta,
            lambda s, a: f"theta state {STATES[s]}, action {ACTIONS[0][a]}",
        ),
        (market, (0.0, 0.05, 0.0), 0, lambda own: own.V, lambda s: f"V[{s}]"),
        (
            market,
            (0.0, 0.0, 0.03),
            1,
            lambda own: own,
            lambda s, a: f"state {STATES[s]}, action {ACTIONS[1][a]}",
        ),
        (uneven, (1.0, 0.0, 0.0, 0.0), 0, lambda own: own["bias"], lambda: "bias"),
        (
            uneven,
            (0.0, 0.0, 1.0, 0.0),
            0,
            lambda own: own["slope/a"],
            lambda k: f"slope/a[{k}]",
        ),
    ],
)
def test_the_largest_gap_is_named(make, rates, agent, leaf, entry):
    """Only one array of one agent moves, so that the largest gap is in there."""
    wrapped, start = make(*rates)
    key = jax.random.key(1)
    c = ex.compare(wrapped, start, comparisons.TIMES, scale=5.0, runs=32, key=key)
    ode, mean, variance = (
        leaf(tree[agent])
        for tree in (c.solution.params, c.simulation.mean[0], c.simulation.variance[0])
    )
    largest, (_, index, error), *_ = brute_force((ode,), (mean,), (variance,), runs=32)
    gap = c.parameter_gap
    assert 0 < gap.largest == largest
    assert (gap.agent, gap.entry) == (agent, entry(*index[1:]))
    assert gap.time == c.simulation.ts[index[0]]
    assert gap.standard_error == pytest.approx(error, rel=1e-14)


def test_a_lost_ensemble_shows():
    """Rewards of 1e39 overflow in float32, in which runs are simulated; the ODE is in float64."""
    wrapped = comparisons.dilemma_game()
    of_second = wrapped.game.rewards.at[..., 1].multiply(1e39)
    wrapped = eqx.tree_at(lambda w: w.game.rewards, wrapped, of_second)
    options = {"scale": 10.0, "runs": 64, "key": jax.random.key(0), "dtype": "float32"}
    with pytest.warns(UserWarning, match="64 of 64 runs became infinite or NaN"):
        c = ex.compare(wrapped, wrapped.init(), comparisons.TIMES, **options)
    for gap in (c.parameter_gap, c.policy_gap):
        assert np.isnan(gap.largest)
        assert (gap.agent, gap.time) == (1, 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 1}, "runs must be an integer, at least 2"),
        ({"ts": [0.0]}, "ts must reach beyond the first step"),
        ({"initial_state": [0, 1]}, "initial_state must be a state"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(options, message):
    wrapped = comparisons.dilemma_game()
    arguments = {"ts": comparisons.TIMES, "key": jax.random.key(0)} | options
    with annotations_off(), pytest.raises(ValueError, match=message):
        ex.compare(wrapped, wrapped.init(), **arguments)


def smallest_separation(wrapped, params, scale):
    """By powers of the state chain and differences of the drift, at every time."""
    ratios = []
    for k in range(len(jax.tree.leaves(params)[0])):
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x, k=k: x[k], params))
        chain = np.asarray(wrapped.frozen_chain(unravel(flat)))
        forever = np.linalg.matrix_power(chain, 10**6)
        power, deviation = np.eye(len(chain)), 0.0
        for _ in range(1000):
            deviation = deviation + power - forever
            power = power @ chain
        columns = []
        for direction in np.eye(len(flat)):
            ahead = ex.drift(wrapped, unravel(flat + 1e-5 * direction))
            behind = ex.drift(wrapped, unravel(flat - 1e-5 * direction))
            change = jax.tree.map(lambda a, b: (a - b) / 2e-5, ahead, behind)
            columns.append(jax.flatten_util.ravel_pytree(change)[0])
        singular = np.linalg.svd(np.stack(columns, axis=1), compute_uv=False)
        ratios.append(scale / (abs(deviation).sum(axis=1).max() * singular.max()))
    return min(ratios)


def test_separation_of_time_scales():
    c = comparisons.market()
    expected = smallest_separation(c.wrapped, c.solution.params, 5.0)
    assert c.separation == pytest.approx(expected, rel=1e-6)
    assert f"states mix {expected:.4g} times faster" in str(c)
    assert "may not describe" not in str(c)


def test_poor_separation_is_said():
    wrapped = comparisons.dilemma_game(learning_rate=2.0)
    c = ex.compare(
        wrapped, wrapped.init(), comparisons.TIMES, scale=1.0, runs=16, key=jax.random.key(0)
    )
    assert c.separation < 10
    assert "the ODE may not describe the learners at this scale" in str(c)


@pytest.mark.slow
def test_separation_is_left_out_for_many_parameters():
    game = ex.MarkovGame.deterministic(np.zeros((1, 257), int), np.zeros((1, 257, 1)))
    wrapped = ex.WrappedGame(game, [ex.QLearning()])
    c = ex.compare(wrapped, wrapped.init(), [0.0, 1.0], scale=2.0, runs=2, key=jax.random.key(0))
    assert c.separation is None
    assert "not computed (too many parameters)" in str(c)


def test_table_holds_the_numbers():
    c = comparisons.dilemma()
    rows = [line.split() for line in str(c).splitlines()]
    for row, name, gap in ((1, "Q-values", c.parameter_gap), (2, "policies", c.policy_gap)):
        numbers = (
            gap.largest,
            gap.standard_error,
            gap.root_mean_square,
            gap.root_mean_square_error,
        )
        where = f"agent {gap.agent}, {gap.entry}, t = {gap.time:g}"
        assert rows[row] == [name, *(f"{x:.4g}" for x in numbers), *where.split()]
    assert "64 runs of 200 steps at scale 10" in str(c)
    assert f"{c.simulation.steps_per_second / 1e6:.3g} million steps/s" in str(c)
    for compiling, running in (
        (c.simulation.compile_seconds, c.simulation.run_seconds),
        (c.solve_compile_seconds, c.solve_run_seconds),
    ):
        assert f"compile {compiling:.2f} s, run {running:.3f} s" in str(c)
    assert "parameters" in str(comparisons.market()).splitlines()[1]


def test_timings_are_apart():
    before = time.perf_counter()
    c = again(comparisons.dilemma())
    passed = time.perf_counter() - before
    # Both are compiled side by side.
    for seconds in (
        (c.solve_compile_seconds, c.solve_run_seconds),
        (c.simulation.compile_seconds, c.simulation.run_seconds),
    ):
        assert min(seconds) > 0
        assert sum(seconds) < passed


def test_new_values_do_not_recompile():
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    comparisons.dilemma()
    jax.monitoring.register_event_duration_secs_listener(listen)
    again(comparisons.dilemma())
    compiled.clear()
    wrapped = comparisons.dilemma_game(learning_rate=0.02)
    ex.compare(
        wrapped, wrapped.init(), comparisons.TIMES / 2, scale=8.0, runs=64, key=jax.random.key(9)
    )
    assert compiled == []
    jax.jit(lambda x: 2 * x + len(compiled))(1.0)
    assert compiled  # the listener does listen


def test_slow_mixing_is_warned_of_once():
    wrapped = comparisons.dilemma_game(epsilon=1e-4)
    stay = np.array([[9.0, 0.0], [0.0, 9.0], [0.0, 9.0], [0.0, 9.0]])  # CC and DD last long
    params = (jax.numpy.asarray(stay), jax.numpy.asarray(stay))
    with pytest.warns(UserWarning, match="nearly reducible") as record:
        c = ex.compare(
            wrapped, params, comparisons.TIMES, scale=10.0, runs=64, key=jax.random.key(0)
        )
    assert len(record) == 1
    assert c.separation < 10


@pytest.mark.parametrize(
    ("ts", "scale", "message"),
    [
        ([0.0, 1.0, 1.05], 10.0, r"ts\[1\] = 1 and ts\[2\] = 1.05 are the same step at scale 10"),
        ([1.0, 1.0], 10.0, "increasing"),
        ([1.0], 0.0, "scale must be a positive number; found 0"),
        ([1.0], np.nan, "scale must be a positive number; found nan"),
    ],
)
def test_times_that_do_not_fit(ts, scale, message):
    wrapped = comparisons.dilemma_game()
    with pytest.raises(ValueError, match=message):
        ex.compare(
            wrapped, wrapped.init(), np.array(ts), scale=scale, runs=2, key=jax.random.key(0)
        )


class Cooling(comparisons.Logit):
    """A logit whose slope decays by a rule of its own."""

    def update(self, params, transition, game, agent):
        push = super().update(params, transition, game, agent)["bias"]
        return {"bias": push, "slope/a": params["slope/a"] * jnp.expm1(-self.rate)}


@pytest.mark.slow
def test_parameters_without_noise_are_looked_at_apart():
    game = ex.games.repeated((np.eye(2), np.eye(2)), memory=0)
    wrapped, key = ex.WrappedGame(game, [Cooling()] * 2), jax.random.key(0)
    c = ex.compare(wrapped, wrapped.init(), comparisons.TIMES, scale=20.0, runs=256, key=key)
    # Of three slopes the first is zero, and stays so.
    assert (c.agreement.numbers, c.agreement.without_noise) == (8, 30)
    assert max(c.agreement.mean_z, c.agreement.variance_z) < 5
    # What b / N leaves: of order 1 / N^2.
    assert 0 < c.agreement.deviation < 1e-5
    assert "; 30 without noise are off x + b/N by at most" in str(c)
    fixed = ex.WrappedGame(game, [Cooling(0.0)] * 2)
    c = ex.compare(fixed, fixed.init(), comparisons.TIMES, scale=20.0, runs=8, key=key)
    assert "theory       no parameter is random; 40 without noise are off" in str(c)
