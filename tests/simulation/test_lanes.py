"""Batching over lanes gives what `jax.vmap` gives, for every kind of operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ergodax.simulation import lanes

LANES = 24


def _rows(rng, *shape):
    return jnp.asarray(rng.normal(size=(LANES, *shape)))


def _softmax(table, state, key):
    return jax.nn.softmax(table[state] / 0.3)


def _entry(table, state, key):
    return table[state, (state + 1) % table.shape[1]]


def _negative(table, state, key):
    return table[state - 3, -1]


def _maximum(table, state, key):
    return table[state].max(), table[state].argmax(), (table > 0).any(axis=1)


def _write(table, state, key):
    return table.at[state, 0].add(2.0), table.at[state].set(1.0)


def _several_rows(table, state, key):
    return table[jnp.stack([state, (state + 1) % table.shape[0]])]


def _one_hot(table, state, key):
    chosen = jax.nn.one_hot(state, table.shape[0])
    return chosen @ table, jnp.outer(chosen, table[0]), jnp.concatenate([chosen, table[:, 0]])


def _bits(table, state, key):
    mixed = (key[0] << 7) ^ (key[1] >> 3)
    return (
        mixed,
        mixed.astype(jnp.float32),
        jnp.cumsum(table, axis=0)[::-1],
        jnp.sort(table, axis=1),
    )


def _control_flow(table, state, key):
    doubled = jax.lax.fori_loop(0, state, lambda _, t: 2 * t, table)
    return doubled, jax.lax.cond(state > 1, lambda t: t.sum(), lambda t: t[0, 0], table)


def _shared(table, state, key):
    constant = jnp.arange(12.0).reshape(3, 4)
    return constant[state % 3], constant.sum() * 2, jnp.where(state > 1, constant, table[0, 0])


def _kept(table, state, key):
    value, flag = lanes.reused((table[state] ** 2, state > 1))
    return value + 1, flag


FUNCTIONS = [
    _softmax,
    _entry,
    _negative,
    _maximum,
    _write,
    _several_rows,
    _one_hot,
    _bits,
    _control_flow,
    _shared,
    _kept,
]


@pytest.mark.parametrize("shape", [(4, 3), (7, 5)], ids=["small table", "large table"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__.strip("_"))
def test_lanes_give_what_vmap_gives(function, shape):
    rng = np.random.default_rng(0)
    assert lanes.is_large(shape) == (shape == (7, 5))
    table = _rows(rng, *shape)
    state = jnp.asarray(rng.integers(shape[0], size=LANES), jnp.int32)
    key = jnp.asarray(rng.integers(2**32, size=(LANES, 2)), jnp.uint32)

    @jax.jit
    def batched(*arguments):
        return lanes.from_lanes(lanes.over_lanes(function, *lanes.to_lanes(arguments)))

    found = batched(table, state, key)
    expected = jax.vmap(function)(table, state, key)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_large_arrays_stand_with_their_lanes_first():
    small, large = jnp.zeros((LANES, 2, 3)), jnp.zeros((LANES, 5, 7))
    found = lanes.to_lanes((small, large))
    assert [(value.axis, value.array.shape) for value in found] == [
        (-1, (2, 3, LANES)),
        (0, (LANES, 5, 7)),
    ]
    assert [value.shape for value in found] == [(2, 3), (5, 7)]
    assert jax.tree.map(jnp.shape, lanes.from_lanes(found)) == (small.shape, large.shape)
