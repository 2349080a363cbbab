"""One compiled program serves all values of hyper-parameters, rewards, parameters and times."""

import re
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.averaged import basins as of_basins
from ergodax.base.compiling import compiled

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
    # Another class: what programs have in common was traced for those of other tests.
    monkeypatch.setattr(sys.modules[__name__], "Watched", type("Watched", (Watched,), {}))
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


def dilemma(shift):
    learner = ex.QLearning(0.1 + shift, 0.6, ex.EpsilonSoftmax(1.0 + shift, 0.1))
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5 + shift), [learner] * 2)
    return wrapped, jax.tree.map(lambda leaf: leaf + shift, wrapped.init())


def outcomes(shift):
    wrapped, params = dilemma(shift)
    policies, discount = wrapped.policies(params), 0.9 + shift
    for function in (ex.outcomes.values, ex.outcomes.exploitability, ex.outcomes.q_loss):
        function(wrapped.game, policies, discount)
    ex.outcomes.is_equilibrium(wrapped.game, policies, discount, tolerance=0.01 + shift)
    for function in (ex.outcomes.action_values, ex.outcomes.best_response):
        function(wrapped.game, policies, discount, 0)
    ex.outcomes.mean_rewards(wrapped.game, policies)
    strategies, _ = ex.outcomes.greedy(wrapped.game, policies)
    ex.outcomes.play(wrapped.game, strategies, int(shift > 0))
    ex.outcomes.deviation_response(wrapped.game, strategies, 0, 1, 0, periods=1 + (shift > 0))


def markets(shift):
    ex.games.LogitMarket(differentiation=0.25 + shift).game()
    ex.games.LinearMarket(intercept=1.0 + shift).game()


def basins(shift):
    """Those of a limit cycle."""
    payoffs = np.array([[3.0, 0.0], [5.0, 1.0 + shift / 10]])
    learner = ex.QLearning(1.0 + shift, 0.8, ex.EpsilonSoftmax(1.0))
    game = ex.games.repeated((payoffs, payoffs.T), memory=0)
    starts = jnp.zeros((1, 1, 2)), jnp.array([[[-0.04 - shift, 0.04]]])
    found = ex.basins(ex.WrappedGame(game, [learner] * 2), starts, 4000.0 + shift)
    assert found.attractors[0].kind == "limit cycle"


def check(shift):
    wrapped, _ = dilemma(shift)
    ex.check_learner(wrapped.learners[0], wrapped.game)


def until(shift):
    ex.simulate_until(
        *dilemma(shift),
        ex.until.GreedyUnchanged(50),
        runs=8,
        key=jax.random.key(int(shift > 0)),
        max_steps=1000,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*not identified")
@pytest.mark.parametrize("function", [check, outcomes, markets, basins, until])
def test_nothing_is_compiled_for_other_values(function, caplog):
    def compiled_by(shift):
        caplog.clear()
        with jax.log_compiles(True):
            function(shift)
        names = re.findall(r"Compiling jit\((.+?)\) with", caplog.text)
        # Where basins are found, the numbers decide what is looked at, of any shape.
        return [name for name in names if function is not basins or hasattr(of_basins, name)]

    assert compiled_by(0.0)
    assert compiled_by(0.03125) == []


def test_a_float_that_would_be_compiled_into_the_program_is_refused():
    double = compiled(lambda x: 2 * x)
    assert double(jnp.asarray(1.5)) == 3
    with pytest.raises(TypeError, match="compiled anew for every value of a Python float"):
        double(1.5)
