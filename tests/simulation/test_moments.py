"""Moments merged in a tree equal those of all runs, and do not depend on how runs were cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ergodax.simulation.moments import GROUP, Merger, merge_tree, of_groups


def _merged(values, width):
    """Mean and variance of `[R, 3]` values, in batches of the given width."""
    runs = len(values)
    merger = Merger()
    for first in range(0, runs, width):
        part = values[first : first + width]
        live = np.arange(width) < len(part)
        part = np.concatenate([part, np.full((width - len(part), 3), 7.0)])
        groups = of_groups({"x": jnp.asarray(part)}, jnp.asarray(part), jnp.asarray(live))
        merger.add(merge_tree(jax.tree.map(np.asarray, groups)))
    result = merger.result()
    assert result.count == runs
    mean = result.origin["x"] + result.mean["x"]
    return mean, result.square["x"] / (runs - 1), result.total


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 63, 64, 65, 500, 1000])
def test_moments_are_those_of_all_runs_whatever_the_batches(runs):
    rng = np.random.default_rng(runs)
    values = 1e6 + rng.normal(size=(runs, 3)) * [1e-3, 1.0, 1e3]
    with np.errstate(invalid="ignore", divide="ignore"):
        reference = _merged(values, GROUP)
        for width in (2 * GROUP, 8 * GROUP, 32 * GROUP):
            for found, expected in zip(_merged(values, width), reference, strict=True):
                np.testing.assert_array_equal(found, expected)
    mean, variance, total = reference
    exact = values.sum(axis=0, dtype=np.longdouble)
    np.testing.assert_allclose(mean, exact / runs, rtol=3e-16)
    np.testing.assert_allclose(total, exact, rtol=1e-14)
    if runs > 1:
        np.testing.assert_allclose(variance, values.var(axis=0, ddof=1), rtol=1e-9)


@pytest.mark.parametrize("runs", [1, 5, 8, 40])
def test_small_ensembles_have_the_same_moments_in_small_groups(runs):
    rng = np.random.default_rng(runs)
    size = 1 << (runs - 1).bit_length()
    values, live = rng.normal(size=(3 * size, 4)), np.arange(3 * size) % size < runs
    together = of_groups(jnp.asarray(values), jnp.asarray(values), jnp.asarray(live), size)
    for k in range(3):
        own = np.full((GROUP, 4), 7.0)
        own[:runs] = values[k * size : k * size + runs]
        alone = of_groups(jnp.asarray(own), jnp.asarray(own), jnp.arange(GROUP) < runs)
        for found, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(found[k], expected[0], rtol=1e-15, atol=1e-30)


def test_an_unfinished_merger_goes_on_from_its_parts():
    rng = np.random.default_rng(0)
    batches = [
        merge_tree(
            jax.tree.map(
                np.asarray,
                of_groups(jnp.asarray(x), jnp.asarray(x), jnp.ones(GROUP, dtype=bool)),
            )
        )
        for x in rng.normal(size=(7, GROUP))
    ]
    whole, first = Merger(), Merger()
    for batch in batches:
        whole.add(batch)
    for batch in batches[:5]:
        first.add(batch)
    assert first.sizes == [4, 1]
    second = Merger(first.sizes, first.merged)
    for batch in batches[5:]:
        second.add(batch)
    for found, expected in zip(
        jax.tree.leaves(second.result()), jax.tree.leaves(whole.result()), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("cuts", [(3,), (1, 6), (2, 5, 9), (4, 8)])
def test_shares_of_processes_have_the_moments_of_all(cuts):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(11 * GROUP, 3)) * 1e3
    groups = of_groups(jnp.asarray(values), (), jnp.ones(len(values), bool))
    groups = [jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), groups) for k in range(11)]
    whole, joined = Merger(), Merger()
    for group in groups:
        whole.add(group)
    for first, end in zip((0, *cuts), (*cuts, 11), strict=True):
        share = Merger(first=first)
        for group in groups[first:end]:
            share.copy().add(group)
            share.add(group)
        assert len(share.sizes) < end - first or end - first < 3
        for size, moments in zip(share.sizes, share.merged, strict=True):
            joined.add(moments, size)
    for found, expected in zip(joined.result(), whole.result(), strict=True):
        np.testing.assert_array_equal(found, expected)
