"""One compiled program serves all values of hyper-parameters, rewards, parameters and times."""

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex

update = ex.QLearning.update


class Watched(ex.QLearning):
    """Q-learning whose update tests replace by one that must not be traced."""

    def update(self, params, transition, game, agent):
        return update(self, params, transition, game, agent)


def averages(wrapped, params, ts, tol):
    for function in (ex.drift, ex.jacobian, ex.occupation_measure):
        function(wrapped, params)


def solve(wrapped, params, ts, tol):
    ex.solve(wrapped, params, ts, rtol=tol)


def rest_point(wrapped, params, ts, tol):
    ex.rest_point(wrapped, params, throw=False)


def fluctuations(wrapped, params, ts, tol):
    ex.fluctuations(wrapped, params, ts, rtol=tol)


def second_order(wrapped, params, ts, tol):
    ex.noise_covariance(wrapped, params)
    ex.poisson_values(wrapped, params)
    ex.fluctuations(wrapped, params, ts, bias=True, scale=1e7 * tol, atol=tol)


def kinks(wrapped, params, ts, tol):
    ex.kinks(wrapped, params, ts, rtol=tol)


def rest_points(wrapped, params, ts, tol):
    ex.rest_points(wrapped, jax.tree.map(lambda x: x[None], params), rtol=tol)


def simulate(wrapped, params, ts, tol):
    ex.simulate(wrapped, params, ts, scale=1e7 * tol, runs=8, key=jax.random.key(0))


def call(function, rate, discount, temperature, epsilon, reward, x, ts, tol):
    learner = Watched(rate, discount, ex.EpsilonSoftmax(temperature, epsilon))
    payoffs = jnp.stack([jnp.asarray(1.0), jnp.asarray(reward, dtype=float)])[:, None]
    wrapped = ex.WrappedGame(ex.games.repeated(payoffs, memory=0), [learner])
    function(wrapped, (jnp.array([[x, x + 1.0]]),), ts, tol)


def seal(monkeypatch):
    """From here on, any new trace fails."""
    sealed = chex.assert_max_traces(ex.QLearning.update, n=0)
    monkeypatch.setattr(sys.modules[__name__], "update", sealed)


@pytest.mark.filterwarnings("ignore:at .* of .* times, from t")
@pytest.mark.parametrize(
    "function",
    [
        *(averages, solve, rest_point, fluctuations, simulate),
        *(second_order, kinks, rest_points),
    ],
)
def test_compiled_once_for_all_values(function, monkeypatch):
    first = (0.1, 0.9, 1.0, 0.1, 1.5, 0.0, jnp.array([0.0, 1.0, 2.0]), 1e-7)
    with monkeypatch.context() as patch:
        seal(patch)
        with pytest.raises(AssertionError, match="traced > 0 times"):
            call(function, *first)
    call(function, *first)
    seal(monkeypatch)
    call(function, 0.3, 0.25, 2, 1, 2.5, 1.0, jnp.array([0.5, 0.6, 9.0]), 1e-6)
    ts = np.array([1.0, 7.0, 8.0])
    call(function, np.float32(0.2), 0.5, jnp.asarray(0.5), 1, np.float64(1.1), -2.0, ts, 1e-8)


@pytest.mark.slow
def test_simulations_of_other_sizes_share_programs(monkeypatch):
    def simulate(ts, rate=0.1, start=0.0, runs=33, seed=0, **options):
        learners = [Watched(rate, 0.9, ex.EpsilonSoftmax(1.0, 0.1)) for _ in range(2)]
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), learners)
        params = jax.tree.map(lambda x: x + start, wrapped.init())
        return ex.simulate(wrapped, params, ts, runs=runs, key=jax.random.key(seed), **options)

    simulate(np.arange(1.0, 6.0))
    # From 32 report times on, all numbers of them share one program.
    simulate(np.arange(1.0, 33.0))
    seal(monkeypatch)
    simulate(np.array([0.0, 0.1, 0.2, 50.0, 51.5]))
    simulate(np.arange(1.0, 6.0), scale=3.7)
    simulate(np.arange(1.0, 6.0), rate=0.5, start=2.0, seed=3)
    simulate(np.arange(1.0, 6.0), runs=48, initial_state="CD")
    simulate(np.arange(1.0, 101.0))
    simulate(np.geomspace(1.0, 300.0, 77))
