import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ergodax.base.linear_map import linear_map
from helpers import assert_close

MATRIX, X, SHIFT = jnp.arange(12.0).reshape(3, 4), jnp.arange(4.0) + 0.5, jnp.asarray(1.5)
MATRICES, XS = jnp.stack([MATRIX, MATRIX + 1]), jnp.stack([X, X - 1])


def push(known, inputs):
    x, shift = inputs
    return {"y": known["matrix"] @ x + known["factor"] * shift[None]}


def pull(known, outputs):
    return known["matrix"].T @ outputs["y"], outputs["y"].sum() * known["factor"]


def given(matrix, x, shift):
    """With both directions given; the factor is no array."""
    known, like = {"matrix": matrix, "factor": 2.0}, {"y": jnp.zeros(3)}
    return linear_map(push, pull, known, (x, shift), like)["y"]


def plain(matrix, x, shift):
    """The same, for JAX to transpose."""
    return push({"matrix": matrix, "factor": 2.0}, (x, shift))["y"]


def squared(function):
    return lambda *args: (function(*args) ** 2).sum()


USES = {
    "values": lambda f: f(MATRIX, X, SHIFT),
    "compiled": lambda f: jax.jit(f)(MATRIX, X, SHIFT),
    "gradient": lambda f: jax.grad(squared(f), (1, 2))(MATRIX, X, SHIFT),
    "by one input": lambda f: jax.grad(squared(f), 1)(MATRIX, X, SHIFT),
    "gradient, compiled": lambda f: jax.jit(jax.grad(squared(f), (1, 2)))(MATRIX, X, SHIFT),
    "forward mode": lambda f: jax.jacfwd(f, 1)(MATRIX, X, SHIFT),
    "reverse mode": lambda f: jax.jacrev(f, 1)(MATRIX, X, SHIFT),
    "second derivatives": lambda f: jax.hessian(squared(f), 1)(MATRIX, X, SHIFT),
    "linearised": lambda f: jax.linearize(lambda x: f(MATRIX, x, SHIFT), X)[1](X),
    "two batches": lambda f: jax.grad(
        lambda xs: squared(jax.vmap(jax.vmap(f, (0, None, None)), (None, 0, None)))(
            MATRICES, xs, SHIFT
        )
    )(XS),
}


@pytest.mark.parametrize("use", USES)
def test_maps_are_differentiated_as_plain_ones_are(use):
    found, expected = USES[use](given), USES[use](plain)
    jax.tree.map(lambda one, other: assert_close(one, other, 1e-13), found, expected)


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (0, 0, None), (2, None, None)])
def test_batches_of_what_is_known_or_mapped(axes):
    matrix = MATRIX if axes[0] is None else jnp.moveaxis(MATRICES, 0, axes[0])
    args = matrix, XS if axes[1] == 0 else X, SHIFT
    for of_batch in (
        lambda f: jax.vmap(f, axes)(*args),
        lambda f: jax.grad(squared(jax.vmap(f, axes)), (1, 2))(*args),
        lambda f: jax.vmap(jax.grad(squared(f), (1, 2)), axes)(*args),
        lambda f: jax.jit(jax.vmap(jax.jacrev(f, (1, 2)), axes))(*args),
    ):
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-13),
            of_batch(given),
            of_batch(plain),
        )


def test_maps_are_not_differentiated_by_what_is_known():
    with pytest.raises(NotImplementedError, match="not differentiated"):
        jax.grad(squared(given))(MATRIX, X, SHIFT)
