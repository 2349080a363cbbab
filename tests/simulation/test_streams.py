"""Random streams. Statistical bounds: each comparison fails by chance with probability 1e-9 at most
(a normal variable beyond 6.2 standard deviations, a p-value below 1e-9), and there are fewer than
a hundred of them; the keys are fixed besides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ergodax.simulation import streams
from ergodax.simulation.streams import run_keys, threefry2x32, uniforms

FALSE_ALARM = 1e-9
SIGMAS = 6.2


def words(*values):
    return tuple(jnp.asarray(value, dtype=jnp.uint32) for value in values)


# Known answers of the Random123 library (Salmon et al. 2011), file kat_vectors.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_published_vectors(counter, key, expected):
    found = threefry2x32(words(*key), words(*counter))
    assert tuple(int(word) for word in found) == expected


def test_agrees_with_the_threefry_of_jax():
    threefry_2x32 = pytest.importorskip("jax.extend.random").threefry_2x32
    rng = np.random.default_rng(0)
    for _ in range(5):
        key = words(*rng.integers(2**32, size=2))
        counter = words(*rng.integers(2**32, size=(2, 100)))
        found = jnp.concatenate(threefry2x32(key, counter))
        # JAX takes the first half of its counts as the first words, the second half as the second.
        expected = threefry_2x32(jnp.stack(key), jnp.concatenate(counter))
        np.testing.assert_array_equal(found, expected)


def draw(keys, steps, count, dtype=jnp.float64):
    """Uniform numbers of all runs at all steps: `[runs, steps, count]`."""
    low, high = (np.asarray(steps) % 2**32).astype(np.uint32), np.asarray(steps) // 2**32

    def single(key, low, high):
        return jnp.stack(uniforms(key, (low, high), count, dtype))

    by_step = jax.vmap(single, in_axes=(None, 0, 0))
    by_run = jax.vmap(by_step, in_axes=(0, None, None))
    return np.asarray(jax.jit(by_run)(keys, low, high.astype(np.uint32)))


@pytest.fixture(scope="module")
def sample():
    """256 runs, 2048 steps, 3 draws."""
    keys = run_keys(jax.random.key(7), jnp.arange(256, dtype=jnp.uint32))
    return draw(keys, np.arange(2048), 3)


def test_numbers_are_the_same_in_either_precision(sample):
    keys = run_keys(jax.random.key(7), jnp.arange(256, dtype=jnp.uint32))
    single = draw(keys, np.arange(2048), 3, jnp.float32)
    assert single.dtype == np.float32
    assert sample.dtype == np.float64
    np.testing.assert_array_equal(single, sample)


def test_numbers_are_midpoints_of_equal_cells(sample):
    odd = sample * 2**24
    np.testing.assert_array_equal(odd, np.rint(odd))
    assert (odd % 2 == 1).all()
    assert sample.min() > 0
    assert sample.max() < 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, 2**-24),
        (2**9 - 1, 2**-24),
        (2**9, 3 * 2**-24),
        (2**31, 0.5 + 2**-24),
        (2**32 - 1, 1 - 2**-24),
    ],
)
def test_the_interval_is_open_whatever_the_word(monkeypatch, dtype, word, expected):
    monkeypatch.setattr(streams, "threefry2x32", lambda key, counter: words(word, word))
    found = uniforms(jnp.zeros(2, jnp.uint32), words(0, 0), 2, dtype)
    assert [float(number) for number in found] == [expected, expected]
    assert 0 < expected < 1


def test_the_first_numbers_do_not_depend_on_how_many_are_drawn():
    keys = run_keys(jax.random.key(1), jnp.arange(3, dtype=jnp.uint32))
    many = draw(keys, np.arange(5), 9)
    assert np.unique(many).size == many.size
    for count in (1, 2, 5):
        np.testing.assert_array_equal(draw(keys, np.arange(5), count), many[..., :count])


@pytest.mark.parametrize("shift", [0, 15])
def test_equidistribution(sample, shift):
    """256 cells by the leading bits, and by the last eight bits that are used."""
    cell = (np.floor(sample * 2**23).astype(int) >> (15 - shift)) % 256
    for draws in (cell, *np.moveaxis(cell, -1, 0)):
        counts = np.bincount(draws.ravel(), minlength=256)
        assert scipy.stats.chisquare(counts).pvalue > FALSE_ALARM


def correlation(x, y):
    """Standard score of the correlation of two arrays of uniform numbers, paired."""
    return float(np.sum((x - 0.5) * (y - 0.5)) * 12 / np.sqrt(x.size))


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 32, 256])
def test_no_correlation_across_steps_within_a_run(sample, lag):
    for j in range(3):
        assert abs(correlation(sample[:, lag:, j], sample[:, :-lag, j])) < SIGMAS
        assert abs(correlation(sample[:, lag:, j], sample[:, :-lag, (j + 1) % 3])) < SIGMAS


@pytest.mark.parametrize("lag", [1, 2, 16, 128])
def test_no_correlation_across_runs(sample, lag):
    assert abs(correlation(sample[lag:], sample[:-lag])) < SIGMAS
    assert abs(correlation(sample[lag:, 1:], sample[:-lag, :-1])) < SIGMAS


def test_no_correlation_across_draws(sample):
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(correlation(sample[..., i], sample[..., j])) < SIGMAS


def test_no_correlation_across_keys(sample):
    keys = run_keys(jax.random.key(8), jnp.arange(256, dtype=jnp.uint32))
    other = draw(keys, np.arange(2048), 3)
    assert abs(correlation(sample, other)) < SIGMAS
    assert abs(correlation(sample[1:], other[:-1])) < SIGMAS


@pytest.mark.parametrize("pair", ["steps", "runs", "draws"])
def test_pairs_fill_the_square_evenly(sample, pair):
    x, y = {
        "steps": (sample[:, 1:], sample[:, :-1]),
        "runs": (sample[1:], sample[:-1]),
        "draws": (sample[..., 1:], sample[..., :-1]),
    }[pair]
    # Pairs that share a number are not independent: every other one.
    axis = {"runs": 0, "steps": 1, "draws": 2}[pair]
    x, y = (np.take(z, np.arange(0, z.shape[axis], 2), axis=axis) for z in (x, y))
    counts = np.bincount((np.floor(32 * x) * 32 + np.floor(32 * y)).astype(int).ravel())
    assert counts.size == 1024
    assert scipy.stats.chisquare(counts).pvalue > FALSE_ALARM


def test_the_high_word_of_the_step_is_used():
    keys = run_keys(jax.random.key(2), jnp.arange(4, dtype=jnp.uint32))
    steps = [k + high * 2**32 for high in (0, 1, 2, 255, 256, 2**24 - 1) for k in range(3)]
    numbers = draw(keys, np.array(steps), 4)
    # 288 numbers out of 2^23: two would meet by chance with probability .005; the keys are fixed.
    assert np.unique(numbers).size == numbers.size


@pytest.mark.slow
def test_counters_never_coincide(monkeypatch):
    """Every (step, pair of draws) has a counter of its own, up to the limits of both."""
    seen = []

    def record(key, counter):
        seen.append(tuple(int(word) for word in counter))
        return words(0, 0)

    monkeypatch.setattr(streams, "threefry2x32", record)
    steps = [0, 1, 255, 256, 2**24, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**56 - 1]
    for step in steps:
        uniforms(jnp.zeros(2, jnp.uint32), words(step % 2**32, step // 2**32), 512, jnp.float32)
    assert len(seen) == len(set(seen)) == 256 * len(steps)


def test_a_run_has_the_same_key_whatever_the_other_runs():
    key = jax.random.key(3)
    together = run_keys(key, jnp.arange(100, dtype=jnp.uint32))
    assert together.dtype == jnp.uint32
    apart = run_keys(key, jnp.array([17, 99, 0], dtype=jnp.uint32))
    np.testing.assert_array_equal(apart, together[np.array([17, 99, 0])])
    raw = run_keys(jax.random.PRNGKey(3), jnp.arange(100, dtype=jnp.uint32))
    np.testing.assert_array_equal(raw, together)


@pytest.mark.parametrize("size", [1, 100, streams._FEW, streams._FEW + 1])
def test_keys_of_runs_are_those_that_jax_draws(size):
    runs = jnp.arange(size, dtype=jnp.uint32) + np.uint32(2**32 - 50)
    key = jax.random.key(2**31 + 5)
    expected = jax.vmap(lambda k: jax.random.bits(jax.random.fold_in(key, k), (2,), "uint32"))(runs)
    for found in (run_keys(key, runs), jax.jit(run_keys)(key, runs)):
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, expected)


def test_keys_of_runs_differ():
    runs = jnp.arange(100_000, dtype=jnp.uint32)
    both = np.concatenate([run_keys(jax.random.key(seed), runs) for seed in (0, 1)])
    # 64 bits: two of 200 000 keys coincide with probability 1e-9.
    assert np.unique(both, axis=0).shape == both.shape
