"""The averaged side compiled as users do: fusion may round one number differently in two places."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
from helpers import (
    assert_close,
    assert_derivatives_close,
    flatten,
    flatten_derivatives,
    golden_build,
    golden_derivatives,
    unflatten,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]

CASES = ("pd", "random", "mixed")


@pytest.mark.parametrize("case", ["mixed"])  # the others with little optimisation
def test_derivatives_through_kinks_equal_golden(golden, case):
    build, theta = golden_build(golden, case)
    ts = golden[case]["times"][-1:]

    def end(theta):
        return ravel_pytree(ex.solve(*build(theta), ts).params)[0]

    for derivatives in (jax.jacrev, jax.jacfwd):
        found = jax.jit(derivatives(end))(theta)
        assert_derivatives_close(found, golden_derivatives(golden, case), 1e-5)


def test_sensitivities_equal_golden(golden):
    build, theta = golden_build(golden, "random")
    found = ex.sensitivities(build, theta, golden["random"]["times"])
    last = {n: leaf[-1] for n, leaf in flatten_derivatives(found.derivatives, theta).items()}
    assert_derivatives_close(last, golden_derivatives(golden, "random"), 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_rest_points_and_their_derivatives(golden, wrapped_games, case):
    wrapped, values = wrapped_games[case], golden[case]
    guess = unflatten(wrapped, values["x0"])
    found = ex.rest_point(wrapped, guess)
    assert_close(flatten(found.params), values["fixed_point"], 1e-10)

    build, theta = golden_build(golden, case)

    def rest(theta):
        return ravel_pytree(ex.rest_point(build(theta)[0], guess).params)[0]

    # Where F(x, theta) = 0: dx/dtheta = -DF^-1 dF/dtheta.
    at = found.params

    def drift(theta):
        return ravel_pytree(ex.drift(build(theta)[0], at))[0]

    slopes = jax.jit(jax.jacfwd(drift))(theta)
    expected = {
        name: -np.linalg.solve(found.jacobian, np.reshape(slope, (len(slope), -1)))
        for name, slope in slopes.items()
        if name != "alpha"  # at all rates the same point
    }
    assert_derivatives_close(jax.jit(jax.jacrev(rest))(theta), expected, 1e-7)
