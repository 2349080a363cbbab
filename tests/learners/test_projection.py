"""Policies with kinks: the projection on the simplex, in learners of any kind."""

import jax
import numpy as np
import pytest

import ergodax as ex

EXPLORE = ex.Projection(1.0, 0.4)


@pytest.fixture(scope="module")
def bandit():
    """One state, two actions with random rewards of mean -1 and 1."""
    prizes = np.array([[[-3.0, 1.0], [-1.0, 3.0]]])[..., None]
    return ex.MarkovGame(np.zeros((1, 2, 2), int), np.full((1, 2, 2), 0.5), prizes)


@pytest.mark.parametrize(
    ("learner", "rows", "smooth"),
    [
        (ex.Sarsa(exploration=EXPLORE), 6, False),
        (ex.QLearning(exploration=EXPLORE), 8, False),
        (ex.FrequencyAdjustedQLearning(exploration=EXPLORE), 14, False),
        (ex.DoubleQLearning(exploration=EXPLORE, selection=EXPLORE), 18, False),
        (ex.ProjectedGradient(), 6, False),
        (ex.QLearning(), 2, False),
        (ex.Sarsa(), 0, True),
        (ex.DoubleQLearning(selection=ex.EpsilonSoftmax()), 0, True),
        (ex.DoubleQLearning(), 0, False),
        (ex.Reinforce(), 0, True),
    ],
)
def test_learners_declare_the_kinks_of_their_exploration(learner, rows, smooth):
    game = ex.MarkovGame.deterministic(np.zeros((2, 3), int), np.zeros((2, 3, 1)))
    values = learner.maximised(learner.init(game, 0, key=None))
    assert (0 if values is None else len(values)) == rows
    assert learner.smooth == smooth


def test_a_single_action_takes_no_maximum():
    game = ex.MarkovGame.deterministic(np.zeros((2, 1), int), np.zeros((2, 1, 1)))
    for learner in (ex.QLearning(), ex.FrequencyAdjustedQLearning()):
        values = learner.maximised(learner.init(game, 0, key=None))
        assert values is None or values.shape[-1] == 2


@pytest.mark.parametrize("learner", [ex.Reinforce, ex.ActorCritic])
def test_gradients_of_a_projection_jump(learner, bandit):
    wrapped = ex.WrappedGame(bandit, [learner(exploration=EXPLORE)])
    with pytest.raises(ValueError, match="not continuous"):
        ex.drift(wrapped, wrapped.init())


@pytest.mark.slow
def test_bias_knows_the_kinks_of_the_policy(bandit):
    """An action that was not played comes to be: the jump of b is ten times the standard error."""
    wrapped = ex.WrappedGame(bandit, [ex.QLearning(1.0, 0.0, EXPLORE, [[0.0, -1.6]])])
    found = ex.fluctuations(wrapped, wrapped.init(), [3.0], bias=True)
    assert found.bias is not None
    jumps = found.kinks.jump[found.kinks.time < 3]
    runs = ex.simulate(
        wrapped, wrapped.init(), [3.0], scale=256, runs=100_000, key=jax.random.key(0)
    )
    bias = 256 * (np.asarray(runs.mean[0][-1]) - found.params[0][-1]).ravel()
    error = 256 * np.sqrt(np.ravel(runs.variance[0][-1]) / runs.runs)
    assert np.all(np.abs(bias - found.bias[-1]) < 5.5 * error)
    assert np.abs(jumps).max() > 10 * error.max()
