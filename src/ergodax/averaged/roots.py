"""Roots of the averaged drift as functions that can be differentiated, and what describes them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax

from ..base.checks import is_concrete
from ..base.codes import RESULTS
from ..base.compiling import lightly_compiled, precise
from .drift import flat_drift
from .krylov import solve_by_products
from .per_visit import flat_per_visit
from .root_search import DRAWN, RootSearch, first_found
from .stationary import is_reducible, mixing_time, preserve_rows, stationary_law

# Of derivatives that are found by products with the Jacobian.
_DERIVATIVES = 1e-10


@lightly_compiled
def search_roots(wrapped, guesses, rtol, atol, max_steps, by_matrix):
    """What became of every attempt from every guess, and how each guess's last one ended."""

    def search(guess):
        fixed, start = _frozen((wrapped, guess))
        found = RootSearch(fixed, start, rtol, atol, max_steps, by_matrix)(DRAWN, True)
        found = found._replace(near=found.near.step)
        return found, jax.tree.map(lambda leaf: leaf[-1], found.result)

    # Not vmapped: batched LAPACK calls are to be avoided, and searches end when they end.
    return jax.lax.map(search, guesses)


def root_near(wrapped, guess, rtol, atol, max_steps, by_matrix) -> tuple:
    """All fields of a `RestPoint` but the first; what is learnt per visit there, in its unit."""
    settings = rtol, atol, max_steps, by_matrix
    if all(map(is_concrete, jax.tree.leaves((wrapped, guess, rtol, atol)))):
        # Few guesses need the flow, which most of the program would consist of.
        found, (success, rate) = _root_from(wrapped, guess, *settings)
        if is_concrete(success):  # otherwise the call is part of another program
            if not success:
                end = _flow_end(wrapped, guess, rate, *settings)
                found, _ = _root_from(wrapped, end, *settings)
            return found
    return _root_near(wrapped, guess, *settings)


@lightly_compiled
def _root_near(wrapped, guess, *settings) -> tuple:
    search = RootSearch(*_frozen((wrapped, guess)), *settings)
    return _found(search, wrapped, *first_found(search((1.0,), False)))


@lightly_compiled
def _root_from(wrapped, start, *settings) -> tuple:
    """What Newton's method finds from where it starts; whether it does, and how fast F turns."""
    search = RootSearch(*_frozen((wrapped, start)), *settings)
    root, near, result = search.newton(search.start, jnp.asarray(True))
    success = result == RESULTS.successful
    x = jnp.where(success, root, search.start)
    return _found(search, wrapped, x, near, result), (success, search.rate(near))


@lightly_compiled
def _flow_end(wrapped, guess, rate, *settings) -> tuple:
    """Where the flow from a guess leads."""
    search = RootSearch(*_frozen((wrapped, guess)), *settings)
    return search.unravel(search.follow(jnp.asarray(True), rate))


def _found(search: RootSearch, wrapped, x, near, result) -> tuple:
    """What `root_near` returns."""
    known = near.drift, near.jacobian
    params = search.unravel(x)
    fields = _described(wrapped, params, near.step, result, search.by_matrix, known)
    return fields, near.change / search.unit.size


@lightly_compiled
def described_root(wrapped, params, step, by_matrix) -> tuple:
    """All fields of a `RestPoint` but the first, for a root that was found."""
    return _described(wrapped, params, step, RESULTS.successful, by_matrix)


def _described(wrapped, params, step, result, by_matrix, known=None) -> tuple:
    """All fields of a `RestPoint` but the first, for a root; F and DF there may be known."""
    wrapped = preserve_rows(wrapped)
    start, unravel, field = flat_drift(params)
    x = jax.lax.stop_gradient(start)
    x = _root(x, wrapped, per_visit=flat_per_visit(params), by_matrix=by_matrix)
    params = unravel(x)
    chain = wrapped.frozen_chain(params)
    reducible = is_reducible(mixing_time(chain, stationary_law(chain)))
    found = result == RESULTS.successful
    result = RESULTS.where(found & reducible, RESULTS.reducible, result)

    def linearised(x, wrapped):
        if not by_matrix:
            return field(x, wrapped), None
        jacobian, velocity = jax.jacfwd(lambda x: (field(x, wrapped),) * 2, has_aux=True)(x)
        return velocity, jacobian

    inputs = x, wrapped
    velocity, jacobian = (
        linearised(*inputs) if known is None else _known(known, inputs, function=linearised)
    )
    return params, jnp.max(jnp.abs(velocity)), step, jacobian, result


@eqx.filter_custom_jvp
def _known(values, inputs, *, function):
    """What a function is known to return, differentiable by its inputs."""
    return values


@_known.def_jvp
@precise
def _known_jvp(primals, tangents, *, function):
    values, inputs = primals
    pushed = eqx.filter_jvp(function, inputs, tangents[1])[1]
    return _known(values, inputs, function=function), pushed


@eqx.filter_custom_jvp
def _root(x, wrapped, *, per_visit, by_matrix):
    """A root of what is learnt per visit, differentiable by the game and the learners."""
    return x


@_root.def_jvp
@precise
def _root_jvp(primals, tangents, *, per_visit, by_matrix):
    x, wrapped = _root(*primals, per_visit=per_visit, by_matrix=by_matrix), primals[1]
    if not jax.tree.leaves(tangents[1]):
        return x, jnp.zeros_like(x)

    def learnt(x):
        return per_visit(x, wrapped).change

    def by_products(product, y):
        return solve_by_products(product, y, jnp.ones_like(y), _DERIVATIVES)

    pushed = eqx.filter_jvp(lambda w: per_visit(x, w).change, (wrapped,), (tangents[1],))[1]
    if not by_matrix:
        product = jax.linearize(learnt, x)[1]
        return x, -jax.lax.custom_linear_solve(product, pushed, by_products, by_products)
    slope = lineax.MatrixLinearOperator(jax.jacfwd(learnt)(x))
    # Of minimal norm where the Jacobian is singular.
    return x, -lineax.linear_solve(slope, pushed, lineax.SVD(), throw=False).value


def _frozen(tree) -> Any:
    """The same values, as constants of differentiation."""
    return jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree
    )
