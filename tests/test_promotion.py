"""The package mixes neither types nor ranks unawares: in float32 nothing of it becomes float64.

Learners and observables of users may mix them as they like, here and in their programs; hence this
module and not the set-up of all tests. Most of it only traces, which is when types meet.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex

pytestmark = pytest.mark.slow

SOFT = ex.EpsilonSoftmax(0.5, 0.1)
LEARNERS = {
    "q": ex.QLearning(0.1, 0.9, SOFT),
    "sarsa": ex.Sarsa(0.1, 0.9, SOFT),
    "counterfactual": ex.CounterfactualQLearning(0.1, 0.9, SOFT),
    "actor_critic": ex.ActorCritic(0.1, 0.2, 0.9, SOFT),
    "greedy": ex.QLearning(0.1, 0.9, ex.EpsilonGreedy(0.1)),
}
TS = np.array([0.0, 1.0, 2.0])


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def wrapped_game(form, *names):
    """A deterministic game and one whose rewards depend on the next state."""
    rng = np.random.default_rng(0)
    game = {
        "deterministic": lambda: ex.games.prisoners_dilemma(1.5),
        "dense": lambda: ex.MarkovGame.from_dense(
            rng.dirichlet(np.ones(3), size=(3, 2, 2)), rng.normal(size=(3, 2, 2, 3, 2))
        ),
    }[form]()
    return ex.WrappedGame(game, [LEARNERS[name] for name in names])


@pytest.mark.parametrize("form", ["deterministic", "dense"])
@pytest.mark.parametrize(
    "names", [("q", "q"), ("sarsa", "counterfactual"), ("actor_critic", "q")], ids="-".join
)
def test_the_averaged_side(form, names):
    wrapped = wrapped_game(form, *names)

    def at_the_end(params):
        return jax.tree.map(lambda leaf: leaf[-1], ex.solve(wrapped, params, TS).params)

    for function in (
        wrapped.policies,
        lambda params: ex.drift(wrapped, params),
        lambda params: ex.jacobian(wrapped, params),
        lambda params: ex.stationary_distribution(wrapped, params),
        lambda params: ex.rest_point(wrapped, params).params,
        lambda params: ex.noise_covariance(wrapped, params),
        lambda params: ex.poisson_values(wrapped, params),
        lambda params: ex.occupation_measure(wrapped, params),
        at_the_end,
        jax.jacrev(at_the_end),
        jax.jacfwd(at_the_end),
    ):
        jax.eval_shape(function, wrapped.init())


@pytest.mark.parametrize(
    "names", [("q", "q"), ("sarsa", "actor_critic"), ("counterfactual", "q")], ids="-".join
)
def test_fluctuations(names):
    wrapped = wrapped_game("deterministic", *names)

    def everything(params):
        found = ex.fluctuations(wrapped, params, TS, bias=True)
        at_scale = found.near_kink(10.0), found.layer(10.0), found.corrected_mean(10.0)
        return found.covariance, at_scale, found.band(wrapped.policies, scale=10.0)

    jax.eval_shape(everything, wrapped.init())


@pytest.mark.parametrize(
    ("names", "dtype"),
    [(("sarsa", "greedy"), jnp.float32), (("actor_critic", "counterfactual"), jnp.float64)],
)
def test_simulations(names, dtype):
    wrapped = wrapped_game("dense", *names)
    key = jax.random.key(0)
    sim = ex.simulate(wrapped, wrapped.init(), TS, runs=3, key=key, dtype=dtype, keep_runs=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(sim.values)} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in ex.games.__all__
        if inspect.isfunction(getattr(ex.games, name))
        and all(
            one.default is not one.empty
            for one in inspect.signature(getattr(ex.games, name)).parameters.values()
        )
    ],
)
def test_games(name):
    getattr(ex.games, name)()
