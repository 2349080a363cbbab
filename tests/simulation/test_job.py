"""Batches of runs: a run's numbers depend on its key, its number and the step alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from helpers import KINDS, Spec, make_learner, random_case
from reference import KEY, rows

pytestmark = pytest.mark.usefixtures("optimised")

MIXTURES = [
    (("q", "q"), jnp.float32),
    (("sarsa", "sarsa"), jnp.float64),
    (("counterfactual", "counterfactual"), jnp.float64),
    (("actor_critic", "actor_critic"), jnp.float32),
    (("actor_critic", "counterfactual", "q"), jnp.float32),
    (("q", "sarsa", "counterfactual", "actor_critic"), jnp.float64),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [*MIXTURES[-2:], *(pytest.param(*one, marks=pytest.mark.slow) for one in MIXTURES[:-2])],
)
def test_runs_do_not_depend_on_other_runs_on_report_times_or_on_batches(kinds, dtype):
    case = random_case(50, 3, (2, 3, 2, 2)[: len(kinds)], kinds, "next_state")
    ts = np.array([1.0, 4.0, 20.5])
    options = dict(scale=4.0, key=KEY, keep_runs=True, dtype=dtype)

    def simulate(ts, runs, batch_size=48):
        return ex.simulate(
            case.wrapped, case.params, ts, runs=runs, batch_size=batch_size, **options
        )

    reference = simulate(ts, 520)
    values = rows(reference.values)
    assert values.shape[:2] == (520, 3)
    assert len(np.unique(values[:, -1], axis=0)) == 520

    for runs in (40, 97):
        fewer = simulate(ts, runs)
        np.testing.assert_array_equal(rows(fewer.values), values[:runs])
        for found, expected in zip(
            jax.tree.leaves(fewer.final), jax.tree.leaves(reference.final), strict=True
        ):
            np.testing.assert_array_equal(found, expected[:runs])
    once = simulate(ts[2:], 97)
    np.testing.assert_array_equal(rows(once.values), values[:97, 2:])

    wide = simulate(ts, 520, 512)
    for name in ("values", "final", "mean", "variance", "rewards", "state_frequency"):
        jax.tree.map(np.testing.assert_array_equal, getattr(wide, name), getattr(reference, name))


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_the_papers_example_is_the_same_bitwise_in_batches_of_any_size(kind):
    learner = make_learner(Spec(kind, 0.5, 0.9, 0.5, 0.1, 0.3))
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [learner, learner])
    options = dict(scale=4.0, key=KEY, keep_runs=True, runs=520, dtype=jnp.float32)
    values = [
        rows(
            ex.simulate(
                wrapped, wrapped.init(), np.array([20.5]), batch_size=batch_size, **options
            ).values
        )
        for batch_size in (16, 48, 512)
    ]
    np.testing.assert_array_equal(values[0], values[2])
    np.testing.assert_array_equal(values[1], values[2])


MANY_TERMS = [
    (12, (4,), ("counterfactual",), jnp.float32),
    (12, (3, 4), ("counterfactual", "actor_critic"), jnp.float32),
    (12, (3, 4), ("counterfactual", "counterfactual"), jnp.float64),
    (1, (20, 20), ("actor_critic", "counterfactual"), jnp.float32),
]


@pytest.mark.parametrize(
    ("num_states", "num_actions", "kinds", "dtype"),
    [MANY_TERMS[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in MANY_TERMS[1:])],
)
def test_sums_of_many_terms_are_the_same_bitwise_in_batches_of_any_size(
    num_states, num_actions, kinds, dtype
):
    """A library that XLA uses for large arrays alone adds in an order of its own."""
    case = random_case(53, num_states, num_actions, kinds)
    found = [
        ex.simulate(
            *(case.wrapped, case.params, [20.0]),
            **dict(runs=512, key=KEY, dtype=dtype, batch_size=batch_size),
        )
        for batch_size in (64, 512)
    ]
    jax.tree.map(np.testing.assert_array_equal, found[0].final.params, found[1].final.params)


@pytest.mark.slow
def test_the_same_key_gives_the_same_numbers_and_another_key_others():
    case = random_case(51, 3, (2, 2), ("q", "actor_critic"), "state_action")
    options = dict(ts=np.array([5.0, 10.0]), runs=20, keep_runs=True)

    def values(key):
        return rows(ex.simulate(case.wrapped, case.params, key=key, **options).values)

    first = values(jax.random.key(4))
    np.testing.assert_array_equal(values(jax.random.key(4)), first)
    np.testing.assert_array_equal(values(jax.random.PRNGKey(4)), first)
    other = values(jax.random.key(5))
    assert not (other[:, :, None] == first[:, :, None]).all(axis=-1).any()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [16, 100])
def test_moments_are_those_of_the_kept_runs(batch_size):
    case = random_case(52, 3, (2, 3), ("q", "actor_critic"), "next_state")
    options = dict(scale=2.0, runs=90, key=KEY, batch_size=batch_size, keep_runs=True)
    sim = ex.simulate(case.wrapped, case.params, np.arange(1.0, 5.0), **options)
    for mean, variance, error, values in zip(
        *map(jax.tree.leaves, (sim.mean, sim.variance, sim.standard_error, sim.values)), strict=True
    ):
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(variance, values.var(axis=0, ddof=1), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(error, values.std(axis=0, ddof=1) / np.sqrt(90), rtol=1e-9)
        assert (values.std(axis=0) > 0).any()


@pytest.mark.slow
def test_the_final_standing_is_the_last_one_reported(small):
    ts = np.array([3.0, 9.0])
    sim = ex.simulate(small.wrapped, small.params, ts, runs=37, key=KEY, keep_runs=True)
    for final, values in zip(*map(jax.tree.leaves, (sim.final.params, sim.values)), strict=True):
        np.testing.assert_array_equal(final, values[:, -1])
    assert sim.final.state.shape == (37,)
    # Where the last state was acted in shows in a run longer by one step.
    longer = ex.simulate(small.wrapped, small.params, np.array([9.0, 10.0]), runs=37, key=KEY)
    frequency = np.bincount(sim.final.state, minlength=3) / 37
    np.testing.assert_allclose(longer.state_frequency[1], frequency, rtol=1e-14)


def test_progress_is_shown_on_request(small, capsys):
    options = dict(scale=10.0, runs=20, key=KEY)
    ex.simulate(small.wrapped, small.params, np.arange(1.0, 4.0), **options)
    assert capsys.readouterr().err == ""
    ex.simulate(small.wrapped, small.params, np.arange(1.0, 4.0), progress=True, **options)
    assert "600/600" in capsys.readouterr().err
