"""Agents that see a function of the state, and signals as part of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
import oracle
from helpers import flatten, random_kernel, unflatten
from oracle import eps_softmax, maximum

SOFTMAX = ex.EpsilonSoftmax(0.7, 0.1)


class SeenQLearning(oracle.QLearning):
    """The oracle's Q-learner behind a map of states."""

    def __init__(self, seen):
        super().__init__(0.3, 0.8, 0.7, 0.1)
        object.__setattr__(self, "seen", seen)

    def num_params(self, game, agent):
        return (max(self.seen) + 1) * game.num_actions[agent]

    def policy(self, params, game, agent, state):
        Q = np.reshape(params, (-1, game.num_actions[agent]))
        return eps_softmax(Q[self.seen[state]], self.tau, self.eps)

    def increment(self, params, game, agent, state, joint_action, reward, next_state, _):
        Q = np.reshape(params, (-1, game.num_actions[agent]))
        f, row, own = np.zeros_like(Q), self.seen[state], joint_action[agent]
        target = reward + self.gamma * maximum(Q[self.seen[next_state]])
        f[row, own] = self.alpha * (target - Q[row, own])
        return f.ravel()


def test_drift_of_agents_with_different_eyes():
    rng = np.random.default_rng(0)
    kernel, rewards = random_kernel(rng, 4, (2, 3)), rng.normal(size=(4, 2, 3, 2))
    game = ex.MarkovGame.from_dense(kernel, rewards)
    maps = [[0, 1, 1, 0], [0, 0, 0, 0]]
    q = ex.QLearning(0.3, 0.8, SOFTMAX)
    wrapped = ex.WrappedGame(game, [ex.Observing(q, seen) for seen in maps])
    assert [own.shape for own in wrapped.init()] == [(2, 2), (1, 3)]
    flat = [rng.normal(size=4), rng.normal(size=3)]
    params = unflatten(wrapped, np.concatenate(flat))
    expected = oracle.drift(
        oracle.DenseGame.from_dense(kernel, rewards), [SeenQLearning(seen) for seen in maps], flat
    )
    np.testing.assert_allclose(flatten(ex.drift(wrapped, params)), expected, rtol=1e-10)


def test_a_memoryless_agent_in_a_game_with_memory_is_one_without_memory():
    deep, flat = ex.games.stag_hunt(memory=2), ex.games.stag_hunt(memory=0)
    q = ex.Sarsa(0.3, 0.0, SOFTMAX, [1.0, 2.0])
    seeing = ex.WrappedGame(deep, [ex.Observing(q, [0] * 16)] * 2)
    blind = ex.WrappedGame(flat, [q] * 2)
    found, expected = (ex.drift(wrapped, wrapped.init()) for wrapped in (seeing, blind))
    np.testing.assert_allclose(flatten(found), flatten(expected), rtol=1e-12)


@pytest.mark.slow
def test_agents_of_different_memory_meet():
    game = ex.games.prisoners_dilemma()
    coarse = ex.Observing(
        ex.QLearning(exploration=SOFTMAX), [0, 1, 0, 1]
    )  # the other's last action
    ex.check_learner(coarse, game)
    wrapped = ex.WrappedGame(game, [coarse, ex.QLearning(exploration=SOFTMAX)])
    runs = ex.simulate(wrapped, wrapped.init(), [0.0, 5.0], scale=4, runs=64, key=jax.random.key(0))
    assert [own.shape for own in runs.mean] == [(2, 2, 2), (2, 4, 2)]


def test_a_counterfactual_learner_weighs_the_states_behind_an_observation_equally():
    rng = np.random.default_rng(1)
    kernel, rewards = random_kernel(rng, 3, (2, 2)), rng.normal(size=(3, 2, 2, 2))
    learner = ex.Observing(ex.CounterfactualQLearning(1.0, 0.0), [0, 1, 1])
    wrapped = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), [learner] * 2)
    params = wrapped.init()
    steps, events = wrapped.increments(0, params[0]), wrapped.transitions(0)
    for k in (0, 30):
        other = int(events.joint_action[k, 1])
        behind = [0] if int(events.state[k]) == 0 else [1, 2]
        expected = rewards[behind, :, other, 0].mean(axis=0)
        np.testing.assert_allclose(steps.value[k], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ([0, 2, 2], "from 0 on without gaps; found \\[0, 2\\]"),
        ([0.0, 1.0], "one whole number per state"),
        ([[0, 1]], "one whole number per state"),
    ],
)
def test_observations_are_numbered(observation, message):
    with pytest.raises(ValueError, match=message):
        ex.Observing(ex.QLearning(), np.asarray(observation))


def test_an_observation_for_every_state():
    learners = [ex.Observing(ex.QLearning(), [0, 1, 1])] * 2
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), learners)
    with pytest.raises(ValueError, match="each of the game's 4 states; found 3"):
        wrapped.init()


def test_private_signals_are_part_of_the_state():
    rng = np.random.default_rng(2)
    kernel, rewards = random_kernel(rng, 2, (2, 2)), rng.normal(size=(2, 2, 2, 2))
    game = ex.MarkovGame.from_dense(kernel, rewards, state_names=["x", "y"])
    law = rng.dirichlet(np.ones(6), size=(2, 2)).reshape(2, 2, 2, 3)
    noisy, maps = ex.games.with_signals(game, law)
    assert noisy.num_states == 12
    assert noisy.state_names[:2] == ("x|00", "x|01")
    assert noisy.state_names[-1] == "y|12"
    expected = np.einsum("sabt,abij->sabtij", kernel, law).reshape(2, 2, 2, 12)
    np.testing.assert_allclose(noisy.kernel, np.repeat(expected, 6, axis=0), atol=1e-15)
    np.testing.assert_allclose(noisy.rewards[7, 1, 0, 3], rewards[1, 1, 0])
    np.testing.assert_array_equal(maps[0], np.repeat([0, 1, 2, 3], 3))
    np.testing.assert_array_equal(maps[1], np.tile([0, 1, 2], 4) + np.repeat([0, 3], 6))
    with pytest.raises(ValueError, match="signals must have shape"):
        ex.games.with_signals(game, law[0])


def test_perfect_signals_about_the_other_are_memory_of_it():
    """A matrix game without memory whose signal is the other's action: tit for tat is possible."""
    stage = ex.games.symmetric(memory=0)
    law = np.zeros((2, 2, 2, 2))
    for a, b in np.ndindex(2, 2):
        law[a, b, b, a] = 1
    game, maps = ex.games.with_signals(stage, law)
    q = ex.QLearning(0.2, 0.5, SOFTMAX, jnp.array([[1.0, 2.0], [3.0, 1.5]]))
    seen = ex.WrappedGame(game, [ex.Observing(q, own) for own in maps])
    memory = ex.games.symmetric(memory=1)  # states CC, CD, DC, DD
    remembered = ex.WrappedGame(
        memory, [ex.Observing(q, [0, 1, 0, 1]), ex.Observing(q, [0, 0, 1, 1])]
    )
    first, second = (ex.drift(wrapped, wrapped.init()) for wrapped in (seen, remembered))
    np.testing.assert_allclose(flatten(first), flatten(second), rtol=1e-12)
