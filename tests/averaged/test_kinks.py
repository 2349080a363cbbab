import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from helpers import TURN, golden_build, turning

HORIZON = 40.0


def lead(value):
    return {"alpha": jnp.asarray(0.5), "lead": jnp.asarray(value)}


def of_first_agent(report):
    return [tie for tie in report.ties if tie.agent == 0]


@pytest.mark.parametrize(("case", "count"), [("pd", 1), ("random", 5)])
def test_fast_crossings_are_listed_and_harmless(golden, case, count):
    build, theta = golden_build(golden, case)
    report = ex.kinks(*build(theta), golden[case]["times"])
    assert sum(tie.kind == "crossing" for tie in report.ties) == count
    assert {tie.kind for tie in report.ties} <= {"crossing", "start"}
    assert report.error < 1e-5


@pytest.mark.slow
def test_a_fast_crossing_is_found_where_it_is():
    wrapped, params0 = turning(lead(-0.3))
    first, second = of_first_agent(ex.kinks(wrapped, params0, [HORIZON]))
    for tie in (first, second):
        assert (tie.kind, tie.row, tie.margin < 1e-12) == ("crossing", 0, True)
        ts = tie.time + 1e-3 * np.array([-1, 0, 1])
        table = np.asarray(ex.solve(wrapped, params0, ts, rtol=1e-12, atol=1e-12).params[0])[:, 0]
        gap = table[:, 0] - table[:, 1]
        assert abs(gap[1]) < 1e-8
        np.testing.assert_allclose(tie.speed, abs(gap[2] - gap[0]) / 2e-3, rtol=1e-4)
        # Twice the error of the solution, over the speed.
        known = 1e-8 * np.abs(table[1]).max() + 1e-8
        np.testing.assert_allclose(tie.doubt, 2 * known / tie.speed, rtol=0.5)
    assert (first.old, first.new, second.old, second.new) == (0, 1, 1, 0)
    assert first.time < TURN < second.time


def of_sensitivities(theta, **options):
    found = ex.sensitivities(turning, theta, [HORIZON], **options).derivatives
    return np.concatenate([np.ravel(leaf[-1]) for leaf in jax.tree.leaves(found)])


@jax.jit
def by_gradients(theta, ts):
    """The same derivatives by reverse mode."""

    def end(theta):
        return jax.tree.map(lambda leaf: leaf[-1], ex.solve(*turning(theta), ts).params)

    derivatives = jax.tree.leaves(jax.jacrev(end)(theta))
    return jnp.concatenate([jnp.ravel(leaf) for leaf in derivatives])


@pytest.mark.slow
def test_short_visits_beyond_a_tie_are_not_passed_over():
    theta = lead(-2e-5)
    report = ex.kinks(*turning(theta), [HORIZON])
    assert len(report.stops) == 2
    assert 0 < report.stops[1] - report.stops[0] < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact, found = (of_sensitivities(theta, rtol=tol, atol=tol) for tol in (1e-13, 1e-8))

    def error(derivatives):
        return np.abs(derivatives - exact).max() / np.abs(exact).max()

    assert error(found) < 1e-5
    plain = error(by_gradients(theta, jnp.array([HORIZON - 2, HORIZON - 1, HORIZON])))
    assert 1e-4 < plain < report.error < 100 * plain
    assert error(by_gradients(theta, jnp.array([*report.stops, HORIZON]))) < 1e-5


@pytest.mark.slow
def test_a_crossing_that_is_hardly_one_is_warned_of():
    with pytest.warns(UserWarning, match=r"uncertain: .*\s+crossing at t = 5\.\d+: agent 0"):
        of_sensitivities(lead(-2e-7))


def test_touching_is_told_from_passing_by():
    ((tie,), (near,), far) = (
        of_first_agent(ex.kinks(*turning(lead(value)), [HORIZON])) for value in (0.0, 1e-5, 0.1)
    )
    for one in (tie, near):
        assert (one.kind, one.old, one.new) == ("touch", 0, 1)
        assert abs(one.time - TURN) < 0.01
    assert tie.margin < 1e-8
    assert tie.error > 1e-4
    # Its derivative is right: on one side all the time, if by little.
    assert 1e-6 < near.margin < 3e-6
    assert near.error == 0
    assert far == []


def same_rewards(start):
    """One agent whose two actions are the same in all but their initial values."""
    game = ex.MarkovGame.deterministic(np.zeros((1, 2), int), np.ones((1, 2, 1)))
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.5, 0.6)])
    return wrapped, (jnp.asarray(start),)


@pytest.mark.slow
def test_resting_on_a_tie_is_warned_of():
    def build(start):
        return same_rewards(start)

    for start in ([[0.0, 0.0]], [[3.0, 1.0]]):
        with pytest.warns(
            UserWarning, match=r"rest at t = .*: agent 0 \(QLearning\) state 0, 0 and"
        ):
            ex.sensitivities(build, jnp.array(start), [200.0])
        (tie,) = ex.kinks(*same_rewards(start), [200.0]).ties
        assert tie.kind == "rest"
        assert tie.error > 1
        assert (tie.time, tie.doubt) == (0.0, 200.0) or start[0][0] > 0


def test_a_tie_that_the_drift_does_not_feel_is_harmless():
    wrapped, params0 = same_rewards([[0.0, 0.0]])
    learner = ex.QLearning(0.5, 0.0)
    report = ex.kinks(ex.WrappedGame(wrapped.game, [learner]), params0, [200.0])
    assert [tie.kind for tie in report.ties] == ["rest"]
    assert report.error < 1e-8


def test_learners_without_a_maximum_have_no_kinks():
    learners = [ex.Sarsa(0.1, 0.9), ex.Sarsa(0.1, 0.9)]
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), learners)
    assert ex.kinks(wrapped, wrapped.init(), [100.0]).ties == ()


def test_traced_values_are_refused():
    with pytest.raises(ValueError, match="call it outside jit"):
        jax.jit(lambda theta: ex.kinks(*turning(theta), [1.0]).error)(lead(0.1))


def test_ties_are_described_by_the_names_of_the_game():
    game = ex.MarkovGame.deterministic(
        np.zeros((1, 2), int),
        np.array([[[0.0], [1.0]]]),
        state_names=["home"],
        action_names=[["stay", "go"]],
    )
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.5, 0.6)])
    report = ex.kinks(wrapped, wrapped.init(), [1.0])
    assert "start at t = 0: agent 0 (QLearning) state home, stay and go" in repr(report)
    assert len(report.ties) == 1
