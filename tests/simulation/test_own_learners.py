"""Learners and explorations of users, simulated."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
import oracle
from helpers import Case, RothErev, random_game
from reference import KEY, Replay, assert_law, rows

pytestmark = pytest.mark.usefixtures("optimised")


class OracleRothErev:
    needs_next_action = False

    def __init__(self, phi):
        self.phi = phi

    def num_params(self, game, agent):
        return game.num_states * game.num_actions[agent]

    def policy(self, params, game, agent, state):
        row = np.reshape(params, (game.num_states, -1))[state]
        return row / row.sum()

    def increment(self, params, game, agent, s, a, reward, t, following):
        x = np.reshape(params, (game.num_states, -1))
        f = np.zeros_like(x)
        f[s] = -self.phi * x[s]
        f[s, a[agent]] += self.phi * reward
        return f.ravel()


class LinearQ(ex.AbstractLearner):
    """Q-learning on linear features, against a running mean reward: dense increments in a dict."""

    features: jax.Array = ex.hyper(scalar=False)
    rate: jax.Array = ex.hyper(0.1)
    activation: Callable = jnp.tanh

    def init(self, game, agent, *, key):
        return {"baseline": jnp.zeros(()), "weights": jnp.zeros(self.features.shape[-1])}

    def policy(self, params, state):
        return jax.nn.softmax(self.activation(self.features[state] @ params["weights"]))

    def update(self, params, transition, game, agent):
        t, w = transition, params["weights"]
        value = self.features[t.state, t.action] @ w
        excess = t.reward - params["baseline"]
        delta = excess + 0.9 * (self.features[t.next_state] @ w).max() - value
        return {
            "baseline": self.rate * excess,
            "weights": self.rate * delta * self.features[t.state, t.action],
        }


class OracleLinearQ:
    needs_next_action = False

    def __init__(self, features, rate):
        self.features, self.rate = features, rate

    def num_params(self, game, agent):
        return 1 + self.features.shape[-1]

    def policy(self, params, game, agent, state):
        return oracle.softmax(np.tanh(self.features[state] @ params[1:]))

    def increment(self, params, game, agent, s, a, reward, t, following):
        baseline, w = params[0], params[1:]
        feature = self.features[s, a[agent]]
        delta = reward - baseline + 0.9 * (self.features[t] @ w).max() - feature @ w
        return self.rate * np.append(reward - baseline, delta * feature)


def user_case(activation):
    """Roth-Erev against linear Q-learning on a game of positive rewards."""
    rng = np.random.default_rng(40)
    kernel = rng.dirichlet(np.ones(3), size=(3, 2, 3))
    rewards = rng.uniform(0.5, 2, size=(3, 2, 3, 2))
    features = rng.normal(size=(3, 3, 4))
    learners = [RothErev(0.2), LinearQ(features, 0.3, activation)]
    wrapped = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), learners)
    return Case(
        wrapped,
        wrapped.init(),
        oracle.DenseGame.from_dense(kernel, rewards),
        [OracleRothErev(0.2), OracleLinearQ(features, 0.3)],
    )


class Tanh(eqx.Module):
    def __call__(self, x):
        return jnp.tanh(x)


@pytest.mark.slow
def test_learners_with_dense_increments_and_pytrees():
    case = user_case(Tanh())
    assert_law(case, 2, 0.6, runs=100_000)
    ts = np.array([3.0, 10.0])
    sim = ex.simulate(case.wrapped, case.params, ts, scale=4.0, runs=3, key=KEY, keep_runs=True)
    replays = [Replay(case, KEY, run, 40, 4.0, np.full(3, 1 / 3)) for run in range(3)]
    expected = np.array([[replay.params[k] for k in (12, 40)] for replay in replays])
    np.testing.assert_allclose(rows(sim.values), expected, rtol=1e-11, atol=1e-12)
    assert set(sim.mean[1]) == {"baseline", "weights"}


@pytest.mark.slow
def test_learners_may_hold_functions():
    """Any callable field, such as a network's activation, not only arrays and modules."""
    options = dict(ts=np.array([5.0]), runs=3, key=KEY)
    plain = ex.simulate(user_case(jnp.tanh).wrapped, user_case(jnp.tanh).params, **options)
    module = ex.simulate(user_case(Tanh()).wrapped, user_case(Tanh()).params, **options)
    np.testing.assert_array_equal(plain.mean[0], module.mean[0])


class Greedy(ex.AbstractExploration):
    """The best action: not continuous in the values."""

    @property
    def continuous(self):
        return False

    def __call__(self, values):
        return jax.nn.one_hot(values.argmax(), values.shape[0])


class OracleGreedyQ(oracle.QLearning):
    def policy(self, params, game, agent, state):
        row = self.table(params, game, agent)[state]
        return np.eye(len(row))[row.argmax()]


@pytest.mark.slow
def test_argmax_policies_can_be_simulated():
    rng = np.random.default_rng(41)
    game, dense = random_game(rng, 4, (3, 3), "deterministic")
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.5, 0.8, Greedy()) for _ in range(2)])
    assert not wrapped.learners[0].continuous
    flat = [rng.normal(size=12) for _ in range(2)]
    params = tuple(jnp.asarray(x.reshape(4, 3)) for x in flat)
    sim = ex.simulate(wrapped, params, np.array([100.0]), scale=2.0, key=KEY, initial_state=3)
    learners = [OracleGreedyQ(0.5, 0.8, 1.0, 0.0) for _ in range(2)]
    xs, visits = oracle.simulate_scalar(dense, learners, flat, 200, 2.0, rng, 3)
    for found, expected in zip(sim.mean, xs, strict=True):
        np.testing.assert_allclose(found[0].ravel(), expected, rtol=1e-12)
    np.testing.assert_allclose(sim.state_frequency[0], visits / 200, rtol=1e-13)
    assert (np.abs(xs[0] - flat[0]) > 0.1).any()
