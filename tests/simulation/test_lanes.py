"""Batching over lanes gives what `jax.vmap` gives, for every kind of operation."""

import functools

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

    expected = jax.vmap(function)(table, state, key)

    def in_loop(function, *arguments):
        return lanes.in_loop(lambda _, *given: function(*given), (), *arguments)(*arguments)

    for way in (lanes.over_lanes, functools.partial(lanes.over_lanes, ordered=True), in_loop):

        @jax.jit
        def batched(*arguments, way=way):
            return lanes.from_lanes(way(function, *lanes.to_lanes(arguments)))

        found = batched(table, state, key)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-14)


def test_kept_values_are_the_same_to_their_sign_of_zero():
    values = jnp.array([-0.0, 0.0, -1.5, jnp.inf])
    found = jax.jit(
        lambda x: lanes.from_lanes(lanes.over_lanes(lanes.reused, *lanes.to_lanes((x,))))
    )(values)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(values))
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("lanes_", [64, 128, 512, 1024])
def test_ordered_sums_do_not_depend_on_the_number_of_lanes(lanes_):
    rows = np.random.default_rng(4).normal(size=(1024, 4, 3)).astype(np.float32)
    weights = jnp.asarray(rows[0].ravel())

    def of_run(x):
        return x.mean(), x.sum(axis=0), x.ravel() @ weights

    @jax.jit
    def batched(x):
        return lanes.from_lanes(lanes.over_lanes(of_run, *lanes.to_lanes((x,)), ordered=True))

    for found, expected in zip(
        batched(jnp.asarray(rows[:lanes_])), batched(jnp.asarray(rows[:64])), strict=True
    ):
        np.testing.assert_array_equal(found[:64], expected)


def test_what_depends_on_shared_numbers_alone_is_computed_once():
    def one(shared, own):
        return shared + 1, own * jnp.exp(shared)

    def batched(shared, own):
        carry = lanes.Lanes(shared, None), lanes.to_lanes(own)
        found = lanes.over_lanes(one, *carry, like=carry)
        assert [value.axis for value in found] == [None, -1]
        return lanes.from_lanes(found)

    own = jnp.arange(3.0)
    later, found = batched(jnp.asarray(0.5), own)
    np.testing.assert_array_equal(later, np.full(3, 1.5))
    np.testing.assert_allclose(found, own * np.exp(0.5), rtol=1e-15)
    program = jax.make_jaxpr(batched)(0.5, own)
    (powers,) = [e for e in program.eqns if e.primitive.name == "exp"]
    assert powers.outvars[0].aval.shape == ()


def test_large_arrays_stand_with_their_lanes_first():
    small, large = jnp.zeros((LANES, 2, 3)), jnp.zeros((LANES, 5, 7))
    found = lanes.to_lanes((small, large))
    assert [(value.axis, value.array.shape) for value in found] == [
        (-1, (2, 3, LANES)),
        (0, (LANES, 5, 7)),
    ]
    assert [value.shape for value in found] == [(2, 3), (5, 7)]
    assert jax.tree.map(jnp.shape, lanes.from_lanes(found)) == (small.shape, large.shape)
