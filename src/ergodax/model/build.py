"""What `build(theta)` must return: a wrapped game and the parameters at time 0, of one structure.

JAX traces it once for all values. So it must not decide on a value, and what it returns when traced
must be what it returns for a value.
"""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..base.checks import as_real, describe, is_concrete
from .learner import DECIDES
from .wrapped import WrappedGame

Build = Callable[[Any], tuple[WrappedGame, Any]]


def check_theta(theta: PyTree) -> PyTree:
    """Theta with arrays for numbers; raises ValueError naming a leaf that is not of floats."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        found = as_real(leaf)
        if found is None or not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(
                f"theta{jax.tree_util.keystr(path)} must be floating-point; found {describe(leaf)}."
            )
        if is_concrete(found) and not np.all(np.isfinite(found)):
            name = f"theta{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name} must be finite; found {describe(leaf)}.")
    if not jax.tree.leaves(theta):
        raise ValueError(f"theta must hold at least one number; found {describe(theta)}.")
    return jax.tree.map(jnp.asarray, theta)


def check_build(
    build: Build, theta: PyTree, others: Iterable[tuple[str, PyTree]] = (), here: str = "here"
) -> tuple[WrappedGame, Any]:
    """What `build` returns at theta, after a check that it can be traced.

    Args:
        build: the function.
        theta: a pytree of arrays.
        others: further thetas and where they are, to be compared if `build` decides on a value.
        here: where theta is, for messages.

    Raises:
        ValueError: if it returns something else, decides on a value of theta, or changes its
            structure with it, naming the leaf.
    """
    built = _checked(build(theta))
    expected = _shapes(_learnt(built))
    leaves, structure = jax.tree_util.tree_flatten_with_path(theta)
    for k, (path, leaf) in enumerate(leaves):
        if not is_concrete(leaf):
            continue

        def with_leaf(value, k=k):
            # Values of the others stay known inside the trace, as NumPy arrays.
            known = [np.asarray(x) if is_concrete(x) else x for _, x in leaves]
            return _learnt(build(structure.unflatten([*known[:k], value, *known[k + 1 :]])))

        name = f"theta{jax.tree_util.keystr(path)}"
        try:
            traced = jax.eval_shape(with_leaf, leaf)
        except DECIDES as error:
            for there, other in others:
                _compare(expected, _shapes(_learnt(build(other))), "theta", here, there)
            raise ValueError(
                "build must return the same structure for every theta, but it decides on the "
                f"value of {name}, which JAX cannot trace; use jnp.where in place of `if`: "
                f"{str(error).splitlines()[0]}"
            ) from None
        _compare(expected, _shapes(traced), name, here, "when traced")
    return built


def _checked(built: Any) -> tuple[WrappedGame, Any]:
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], WrappedGame)):
        raise ValueError(
            "build(theta) must return a wrapped game and the parameters at time 0; found "
            f"{built!r}."
        )
    if built[0].game.initial.ndim != 1:
        raise ValueError("build(theta) must return one game, without an axis of runs.")
    built[0].check_structure(built[1])
    return built


def _learnt(built: Any) -> tuple[Any, Any]:
    """The arrays whose shapes must not depend on theta: a game's own may, by its zeros."""
    wrapped, params0 = built
    return eqx.filter((wrapped.learners, params0), eqx.is_array)


def _shapes(learnt: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every array by its name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(learnt)
    return {
        ("learners", "params0")[path[0].idx] + jax.tree_util.keystr(path[1:]): np.shape(leaf)
        for path, leaf in leaves
    }


def _compare(expected: dict, found: dict, cause: str, here: str, there: str) -> None:
    """Raises ValueError naming the first array that is not the same."""
    for name in [*expected, *found]:
        shape, other = expected.get(name, "none"), found.get(name, "none")
        if shape != other:
            raise ValueError(
                f"what build returns changes its structure with {cause}: {name} has shape "
                f"{shape} {here} and {other} {there}."
            )
