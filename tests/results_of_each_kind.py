"""One result of every kind, each made once: what is labelled and stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import comparisons
import ergodax as ex


def build(theta):
    """Two learners in a game of one state: compiled in no time."""
    rewards = [[(1.0, 2.0), (0.0, 1.0)], [(2.0, 0.5), (1.0, 3.0)]]
    game = ex.games.repeated(rewards, memory=0)
    learners = [
        ex.QLearning(0.05, 0.5, ex.EpsilonSoftmax(theta["tau"], theta["eps"][agent]))
        for agent in range(2)
    ]
    wrapped = ex.WrappedGame(game, learners)
    return wrapped, wrapped.init()


THETA = {"tau": jnp.asarray(1.5), "eps": jnp.asarray([0.1, 0.2])}


def shifted(params):
    return jax.vmap(lambda k: jax.tree.map(lambda leaf: leaf + k, params))(jnp.arange(3.0))


def run_market(ts, **options):
    wrapped = comparisons.market().wrapped
    options = {"scale": 5, "runs": 3, "key": jax.random.key(3)} | options
    return ex.simulate(wrapped, options.pop("params0", wrapped.init()), ts, **options)


@functools.cache
def result(name):
    """One result of every kind, made once."""
    if hasattr(comparisons, name):
        return getattr(comparisons, name)()
    wrapped, start = build(THETA)
    starts, ts = shifted(start), [0.0, 5.0]
    match name:
        case "solution":
            return comparisons.dilemma().solution
        case "failed solution":
            return ex.solve(*comparisons_start(), [0.0, 1e4], max_steps=2, throw=False)
        case "batched solutions":
            return jax.vmap(lambda params: ex.solve(wrapped, params, ts))(starts)
        case "simulation":
            return run_market([0.0, 4.0], keep_runs=True)
        case "own games":
            games = jax.vmap(lambda tau: build(THETA | {"tau": tau})[0])(jnp.arange(1.0, 4.0))
            return ex.simulate(games, start, ts, key=jax.random.key(0))
        case "stopped runs":
            options = {"max_steps": 9, "runs": 3, "key": jax.random.key(3)}
            return ex.simulate_until(wrapped, start, ex.until.settled(10.0, 5), **options)
        case "fluctuations":
            return ex.fluctuations(wrapped, start, ts, bias=True, max_kinks=0)
        case "rest point":
            return ex.rest_point(wrapped, start)
        case "batched rest points":
            return jax.vmap(lambda params: ex.rest_point(wrapped, params))(starts)
        case "rest points":
            return ex.rest_points(wrapped, starts)
        case "basins":
            return ex.basins(wrapped, starts, 2000.0)
        case "sensitivities":
            return ex.sensitivities(build, THETA, ts)
        case "fit":
            return ex.fit(lambda theta: jnp.sum((theta["x"] - 2.0) ** 2), {"x": jnp.zeros(2)})
        case "study":
            return study()
        case "kinks":
            return ex.kinks(wrapped, start, ts)
        case "game":
            return wrapped.game
        case "no rest points":
            return ()
    raise AssertionError(name)


def comparisons_start():
    wrapped = comparisons.dilemma().wrapped
    return wrapped, wrapped.init()


def study():
    """A study with numbers of its own: only their storing is looked at."""
    wrapped, _ = build(THETA)
    numbers = {
        name: np.random.default_rng(k).normal(size=3)
        for k, name in enumerate(
            ("strong", "strong_error", "weak", "weak_error", "plain", "plain_error")
        )
    }
    constant = type(ex.studies.convergence.Constant(1.0, 0.1))
    names = ("strong_constant", "strong_theory", "weak_constant", "strong_slope", "weak_slope")
    return ex.ConvergenceStudy(
        wrapped=wrapped,
        scales=np.array([16.0, 32.0, 64.0]),
        runs=8,
        t1=4.0,
        **numbers,
        **{name: constant(1.0 + k, 0.1) for k, name in enumerate(names)},
        weak_theory=float("nan"),
        bias=np.arange(4.0),
        key_data=np.array([0, 7], np.uint32),
        run_seconds=0.1,
    )


RESULTS = (
    *("dilemma", "market", "untabulated", "solution", "failed solution", "batched solutions"),
    *("simulation", "own games", "stopped runs", "fluctuations", "rest point"),
    *("batched rest points", "rest points", "basins", "sensitivities", "fit", "study"),
    *("kinks", "game", "no rest points"),
)
