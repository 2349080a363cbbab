import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ergodax.ode.path import evaluate, follow, level_times, quintic


def test_a_quintic_fits_value_slope_and_curvature_at_both_ends():
    coefficients = np.random.default_rng(0).normal(size=6)
    length, begin = 0.7, 1.3
    value = np.polynomial.Polynomial(coefficients)
    ends = begin, begin + length
    fitted = quintic(length, *([value.deriv(k)(t) for t in ends] for k in range(3)))
    s = np.linspace(0, 1, 9)
    np.testing.assert_allclose(evaluate(fitted, s), value(begin + length * s), rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_levels_are_taken_at_the_roots(seed):
    rng = np.random.default_rng(seed)
    roots = np.sort(rng.uniform(-0.5, 1.5, size=5))
    value = np.polynomial.Polynomial.fromroots(roots) + 0.3
    fitted = jnp.array(quintic(1.0, *([value.deriv(k)(t) for t in (0.0, 1.0)] for k in range(3))))
    ends, found = map(np.asarray, jax.jit(level_times)(fitted, 0.3))
    assert np.all(np.diff(found) >= 0)
    inside = roots[(roots > 0) & (roots < 1)]
    assert 0 < len(inside) < 5
    taken = found[np.abs(evaluate(fitted, found) - 0.3) < 1e-12]
    np.testing.assert_allclose(taken, inside, atol=1e-9)
    slopes = value.deriv()(np.linspace(ends[:-1], ends[1:], 50)[1:-1])
    assert np.all((slopes > 0).all(axis=0) | (slopes < 0).all(axis=0) | (np.diff(ends) < 1e-9))


def test_a_path_is_the_solution_everywhere():
    @jax.jit
    def solve(start):
        path, solved = follow(
            lambda x, _: -x, start, 3.0, ts=jnp.array([3.0]), rtol=1e-9, atol=1e-9
        )
        return jax.vmap(path)(ts), path.count, solved.ys

    ts = jnp.linspace(0.0, 3.0, 50)
    start = jnp.array([1.0, -2.0])
    found, count, end = solve(start)
    np.testing.assert_allclose(found, np.exp(-ts)[:, None] * start[None], atol=1e-8)
    np.testing.assert_allclose(end[0], found[-1], rtol=1e-12)
    assert 5 < count < 200
