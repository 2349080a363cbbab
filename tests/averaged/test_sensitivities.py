import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
from ergodax.averaged import sensitivities
from helpers import (
    annotations_off,
    assert_close,
    assert_derivatives_close,
    central_difference,
    flatten_derivatives,
    flatten_times,
    golden_build,
    golden_derivatives,
    turning,
)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pd", "random", "mixed"])
def test_sensitivities_equal_golden(golden, case):
    build, theta = golden_build(golden, case)
    found = ex.sensitivities(build, theta, golden[case]["times"])
    assert found.result == ex.RESULTS.successful
    assert_close(flatten_times(found.params), golden[case]["x_t"], 1e-5)
    last = {n: leaf[-1] for n, leaf in flatten_derivatives(found.derivatives, theta).items()}
    assert_derivatives_close(last, golden_derivatives(golden, case), 1e-5)


def bandit(theta):
    """One state, two actions, and an initial table that depends on theta."""
    rewards = jnp.stack([theta["reward"], jnp.asarray(1.0)])
    game = ex.MarkovGame.deterministic(np.zeros((1, 2), int), rewards[None, :, None])
    learner = ex.QLearning(0.3, 0.6, ex.EpsilonSoftmax(theta["tau"], 0.1))
    return ex.WrappedGame(game, [learner]), (theta["start"],)


THETA = {
    "reward": jnp.array(2.0),
    "start": jnp.array([[0.5, 0.2]]),
    "tau": 0.7,
}


@pytest.mark.slow
def test_derivatives_are_nested_as_jax_nests_a_jacobian():
    found = ex.sensitivities(bandit, THETA, [0.0, 1.0, 6.0])
    assert found.params[0].shape == (3, 1, 2)
    assert set(found.derivatives[0]) == set(THETA)
    assert found.derivatives[0]["tau"].shape == (3, 1, 2)
    assert found.derivatives[0]["start"].shape == (3, 1, 2, 1, 2)
    np.testing.assert_array_equal(found.params[0][0], THETA["start"])
    np.testing.assert_array_equal(found.derivatives[0]["start"][0].reshape(2, 2), np.eye(2))
    np.testing.assert_array_equal(found.derivatives[0]["tau"][0], 0)


@pytest.mark.slow
def test_derivatives_equal_differences():
    flat, unravel = ravel_pytree(THETA)
    ts = jnp.array([1.0, 6.0])
    found = ex.sensitivities(bandit, THETA, ts)

    @jax.jit
    def table(flat):
        return ex.solve(*bandit(unravel(flat)), ts, rtol=1e-11, atol=1e-11).params[0]

    leaves = [np.reshape(found.derivatives[0][name], (2, 1, 2, -1)) for name in THETA]
    derivative = np.concatenate(leaves, axis=-1)
    for k, direction in enumerate(np.eye(len(flat))):
        expected = central_difference(table, flat, direction, step=1e-4)
        assert_close(derivative[..., k], expected, 1e-6)


SINGLE = """
import warnings
import jax, numpy as np, ergodax as ex
def build(rate):
    learners = [ex.QLearning(rate, 0.9, ex.EpsilonSoftmax(1.0, 0.1), q) for q in (2.0, 1.0)]
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), learners)
    return wrapped, wrapped.init()
if not DOUBLE:
    warnings.simplefilter("ignore")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_enable_x64", DOUBLE)
# At a tolerance below the working precision it takes 863 steps, and far more of longer times.
most = 4096 if DOUBLE else 200
found = ex.sensitivities(build, 0.1, [300.0], max_steps=most, throw=False)
print(int(found.result == ex.RESULTS.successful), *np.ravel(found.derivatives))
"""


@pytest.mark.slow
def test_single_precision_does_not_run_out_of_steps():
    def run(double):
        script = SINGLE.replace("DOUBLE", str(double))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        success, *values = done.stdout.split()
        assert success == "1"
        return np.array(values, dtype=float)

    assert_close(run(False), run(True), 2e-3)


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"theta\['tau'\] must be floating-point; found 1"):
        ex.sensitivities(bandit, THETA | {"tau": 1}, [1.0])


def test_a_build_that_decides_on_a_value_is_refused():
    def build(theta):
        return bandit(theta if theta["tau"] > 1 else theta | {"reward": jnp.array(3.0)})

    with pytest.raises(ValueError, match=r"decides on the value of theta\['tau'\]"):
        ex.sensitivities(build, THETA, [1.0])


def test_a_build_whose_structure_changes_is_refused():
    def build(theta):
        wrapped, params0 = bandit(theta)
        if isinstance(theta["tau"], jax.core.Tracer):
            learner = ex.Sarsa(0.3, 0.6, initial=theta["start"])
        else:
            learner = ex.Sarsa(0.3, 0.6)
        return ex.WrappedGame(wrapped.game, [learner]), params0

    message = (
        r"structure with theta\['tau'\]: learners\[0\]\.initial has shape \(\) here and \(1, 2\)"
    )
    with pytest.raises(ValueError, match=message):
        ex.sensitivities(build, THETA, [1.0])


def test_a_build_that_returns_something_else_is_refused():
    with annotations_off(), pytest.raises(ValueError, match=r"build\(theta\) must return"):
        ex.sensitivities(lambda theta: bandit(theta)[0], THETA, [1.0])


def test_learners_that_are_not_continuous_are_refused():
    def build(theta):
        wrapped, params0 = bandit(theta)
        learner = ex.QLearning(theta["tau"], 0.5, ex.EpsilonGreedy(0.1))
        return ex.WrappedGame(wrapped.game, [learner]), params0

    with pytest.raises(ValueError, match="agent 0: the policy of QLearning is not continuous"):
        ex.sensitivities(build, THETA, [1.0])


@pytest.mark.slow
def test_a_derivative_that_is_not_finite_names_its_parameter():
    def build(theta):
        return bandit(theta | {"reward": 2 + jnp.sqrt(theta["reward"])})

    message = r"the derivative by theta\['reward'\] = 0.0 is not finite"
    with pytest.raises(RuntimeError, match=message):
        ex.sensitivities(build, THETA | {"reward": jnp.array(0.0)}, [1.0])


@pytest.mark.slow
def test_too_few_steps_are_an_error_that_names_the_time():
    with pytest.raises(RuntimeError, match=r"solved only up to t = .* of 50: .*steps"):
        ex.sensitivities(bandit, THETA, [1.0, 50.0], max_steps=8)
    found = ex.sensitivities(bandit, THETA, [1.0, 50.0], max_steps=8, throw=False)
    assert found.result == ex.RESULTS.max_steps_reached


@pytest.mark.slow
def test_what_cannot_be_checked_for_kinks_is_warned_of_and_not_raised(monkeypatch):
    monkeypatch.setattr(sensitivities, "kinks", functools.partial(ex.kinks, max_steps=1))
    theta = {"alpha": jnp.asarray(0.5), "lead": jnp.asarray(0.1)}
    with pytest.warns(UserWarning, match="not checked for kinks: .* only up to t = "):
        found = ex.sensitivities(turning, theta, [4000.0], throw=False)
    assert found.result == ex.RESULTS.successful
