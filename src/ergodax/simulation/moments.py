"""Mean and variance over runs, merged pairwise in one fixed order.

Runs are grouped by `GROUP`, and groups are merged as the leaves of a binary tree over the run
numbers (Chan, Golub and LeVeque 1983). Batches hold a power of two of whole groups, so that the
numbers do not depend on how runs are cut into batches or spread over devices. Values are held as
distances from one run's value, which round less than the values themselves.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GROUP = 64
_SMALL = 512  # numbers of a run


class Moments(NamedTuple):
    """Moments of some runs; each leaf has leading axes of its own, here `[...]`.

    Attributes:
        count: number of runs, `[...]`.
        origin: what distances are measured from, a pytree.
        mean: mean distance from `origin`.
        square: sum of squared distances from the mean.
        total: what is only summed over runs, a pytree.
    """

    count: Any
    origin: Any
    mean: Any
    square: Any
    total: Any


def of_groups(values: Any, total: Any, live, size: int = GROUP) -> Moments:
    """Moments of consecutive groups of runs.

    Args:
        values: arrays `[R, ...]`, R a multiple of `size`.
        total: arrays `[R, ...]` to be summed.
        live: `[R]`, which runs count; in every group the first ones.
        size: runs of a group, a power of two. Those of a small ensemble that stands alone in a
            group of `GROUP` have the same moments in a smaller one.

    Returns:
        Moments with a leading axis of R / size groups.
    """
    live = live.reshape(-1, size)
    count = jnp.sum(live, axis=1)

    def sum_live(leaf):
        # In halves, so that the order of additions is the same in arrays of any shape.
        leaf = jnp.where(_like(live, leaf), leaf, 0)
        while leaf.shape[1] > 1:
            half = leaf.shape[1] // 2
            leaf = leaf[:, :half] + leaf[:, half:]
        return leaf[:, 0]

    def grouped(leaf):
        return leaf.reshape(-1, size, *leaf.shape[1:])

    def moments_of(array):
        origin = array[:, 0]
        distances = array - origin[:, None]
        # XLA divides by an array's reciprocal on one device, and not on several: so do it always.
        mean = sum_live(distances) * (1 / jnp.maximum(count, 1)[:, None].astype(array.dtype))
        return origin, mean, sum_live((distances - mean[:, None]) ** 2)

    leaves, structure = jax.tree.flatten(values)
    widths = [math.prod(leaf.shape[1:]) for leaf in leaves]
    # Small arrays side by side: every array has as much code as another, however small.
    blocks: dict[Any, list[int]] = {}
    for k, leaf in enumerate(leaves):
        blocks.setdefault(leaf.dtype if widths[k] <= _SMALL else k, []).append(k)
    found: list[Any] = [None] * len(leaves)
    for block in blocks.values():
        flat = jnp.concatenate(
            [leaves[k].reshape(len(leaves[k]), widths[k]) for k in block], axis=1
        )
        ends = np.cumsum([widths[k] for k in block])[:-1]
        parts = [jnp.split(moment, ends, axis=1) for moment in moments_of(grouped(flat))]
        for k, *moments in zip(block, *parts, strict=True):
            found[k] = [moment.reshape(len(live), *leaves[k].shape[1:]) for moment in moments]
    origin, mean, square = (structure.unflatten(m[j] for m in found) for j in range(3))
    return Moments(count, origin, mean, square, jax.tree.map(lambda t: sum_live(grouped(t)), total))


def merge_tree(moments: Moments) -> Moments:
    """Merges moments along their leading axis, a power of two long, in pairs of neighbours."""
    while moments.count.shape[0] > 1:
        even, odd = (jax.tree.map(lambda leaf, k=k: leaf[k::2], moments) for k in (0, 1))
        moments = merge(even, odd)
    return jax.tree.map(lambda leaf: leaf[0], moments)


@np.errstate(invalid="ignore")
def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the runs of both; those of no runs leave the other unchanged.

    Infinite values make NaN, silently.
    """
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)

    def apart(oa, ob, ma, mb):
        return np.where(_like(b.count, oa) > 0, (ob - oa) + (mb - ma), 0)

    distance = jax.tree.map(apart, a.origin, b.origin, a.mean, b.mean)
    mean = jax.tree.map(lambda m, d: m + _like(share, d) * d, a.mean, distance)
    square = jax.tree.map(
        lambda p, q, d: p + q + _like(a.count * share, d) * d**2, a.square, b.square, distance
    )
    return Moments(count, a.origin, mean, square, jax.tree.map(np.add, a.total, b.total))


class Merger:
    """Merges moments of equally many runs each, given in the order of their runs.

    Attributes:
        sizes: how many of them each of `merged` holds.
        merged: moments that wait for neighbours of the same size.
        first: how many there are before the first of them: those of other processes.
    """

    def __init__(self, sizes: Sequence[int] = (), merged: Sequence[Moments] = (), first: int = 0):
        """Starts from what another merger holds, if any."""
        self.sizes, self.merged, self.first = list(sizes), list(merged), first

    def copy(self) -> "Merger":
        """Another merger that goes on from the same moments."""
        return Merger(self.sizes, self.merged, self.first)

    def add(self, moments: Moments, size: int = 1) -> None:
        """Adds those of the next runs, in float64; `size` of them that are merged already."""
        place = self.first + sum(self.sizes)
        # Neighbours in the tree: of the same size, the left one at an even place.
        while self.sizes and self.sizes[-1] == size and place // size % 2:
            place -= size
            moments, size = merge(self.merged.pop(), moments), size + self.sizes.pop()
        self.sizes.append(size)
        self.merged.append(moments)

    def result(self) -> Moments:
        """Moments of all runs so far."""
        return functools.reduce(lambda later, earlier: merge(earlier, later), reversed(self.merged))


def _like(array, leaf):
    """The array with axes of one appended, to be broadcast against the leaf."""
    return array.reshape(array.shape + (1,) * (leaf.ndim - array.ndim))
