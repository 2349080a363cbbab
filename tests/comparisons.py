"""Small comparisons that several test modules look at, each made once."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ergodax as ex

TIMES = np.linspace(0.0, 20.0, 5)


class Logit(ex.AbstractLearner):
    """Two actions, one logit: parameters that are no table, under awkward names."""

    rate: jax.Array = ex.hyper(0.05)

    def init(self, game, agent, *, key):
        return {"bias": jnp.zeros(()), "slope/a": jnp.arange(3.0)}

    def policy(self, params, state):
        up = jax.nn.sigmoid(params["bias"] + params["slope/a"].mean())
        return jnp.stack([1 - up, up])

    def update(self, params, transition, game, agent):
        push = self.rate * transition.reward * jnp.where(transition.action == 1, 1.0, -1.0)
        return {"bias": push, "slope/a": push * jnp.ones(3)}


class Vague(Logit):
    """Parameters whose names are the same once written in plain characters."""

    def init(self, game, agent, *, key):
        return {"a/b": jnp.zeros(()), "a b": jnp.ones(())}

    def policy(self, params, state):
        up = jax.nn.sigmoid(params["a/b"] - params["a b"])
        return jnp.stack([1 - up, up])

    def update(self, params, transition, game, agent):
        push = self.rate * transition.reward
        return {"a/b": push, "a b": -push}


def dilemma_game(learning_rate=0.01, epsilon=0.1):
    """The paper's example, as the command line makes it."""
    learners = [
        ex.QLearning(learning_rate, 0.9, ex.EpsilonSoftmax(0.5, epsilon), initial)
        for initial in (30.0, [22.0, 20.0])
    ]
    return ex.WrappedGame(ex.games.prisoners_dilemma(1.5), learners)


@functools.cache
def dilemma():
    """Two tables of one shape."""
    wrapped = dilemma_game()
    return ex.compare(wrapped, wrapped.init(), TIMES, scale=10.0, runs=64, key=jax.random.key(0))


@functools.cache
def market():
    """Unequal action counts, and one agent with two arrays of parameters."""
    rng = np.random.default_rng(0)
    game = ex.MarkovGame.from_dense(
        rng.dirichlet(np.ones(2), size=(2, 3, 2)),
        rng.normal(size=(2, 3, 2, 2)),
        state_names=["boom", "bust"],
        action_names=[["low", "mid", "high"], ["in", "out"]],
    )
    wrapped = ex.WrappedGame(game, [ex.ActorCritic(0.02, 0.05), ex.Sarsa(0.03)])
    params = (
        eqx.tree_at(lambda p: p.theta, wrapped.init()[0], jnp.asarray(rng.normal(size=(2, 3)))),
        jnp.asarray(rng.normal(size=(2, 2))),
    )
    return ex.compare(wrapped, params, TIMES, scale=5.0, runs=32, key=jax.random.key(1))


@functools.cache
def untabulated():
    """Parameters that are no tables of states and actions."""
    game = ex.games.repeated([[(1.0, 2.0), (0.0, 1.0)], [(2.0, 0.5), (1.0, 3.0)]], memory=0)
    wrapped = ex.WrappedGame(game, [Logit(), Vague()])
    return ex.compare(wrapped, wrapped.init(), TIMES, scale=5.0, runs=16, key=jax.random.key(2))
