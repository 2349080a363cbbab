import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergodax.base.times import check_scale, check_times, steps_at


@pytest.mark.parametrize(
    ("scale", "numerator", "denominator"),
    [(10.0, 10, 10), (1000.0, 1000, 10), (3.7, 37, 100), (0.1, 1, 100)],
)
def test_decimal_fractions_of_time_land_on_their_step(scale, numerator, denominator):
    k = np.arange(5001)
    exact = numerator * k // denominator  # floor(scale k / 10), in integers
    accumulated = np.cumsum(np.r_[0.0, np.full(5000, 0.1)])
    for ts in (0.1 * k, k / 10, accumulated):
        steps, times = steps_at(ts, scale)
        np.testing.assert_array_equal(steps, exact)
        np.testing.assert_array_equal(times, exact / scale)
        assert steps.dtype == np.int64
    # The floor of the floating-point product alone misses some of them.
    assert (np.floor(scale * accumulated) != exact).any()


@pytest.mark.parametrize(
    ("time", "step"),
    [
        (1 - 0.9e-9, 1),
        (1 - 1.1e-9, 0),
        (1 + 0.9e-9, 1),
        (0.9e-9, 0),
        (1.1e-9, 0),
        # Beyond 1 the distance counts relative to the integer, up to 1e-3.
        (100 - 0.9e-7, 100),
        (100 - 1.1e-7, 99),
        (100 + 1.1e-7, 100),
        (1e9 - 0.9e-3, 1e9),
        (1e9 - 1.1e-3, 1e9 - 1),
        (6e8 + 0.6, 6e8),
        (2.5, 2),
        (2.999, 2),
        (0.0, 0),
    ],
)
def test_products_within_1e_9_of_an_integer_count_as_that_integer(time, step):
    assert steps_at(np.array([time]), 1.0)[0].tolist() == [step]
    assert steps_at(np.array([time / 8]), 8.0)[0].tolist() == [step]


@given(time=st.floats(0, 1e5), scale=st.floats(1e-3, 1e3))
def test_elsewhere_the_step_is_the_floor(time, scale):
    product = time * scale
    if abs(product - round(product)) > np.clip(1e-9 * product, 1e-9, 1e-3):
        steps, times = steps_at(np.array([time]), scale)
        assert steps[0] == int(product)
        assert times[0] == int(product) / scale


@given(ts=st.lists(st.floats(0, 1e4), min_size=1, max_size=20), scale=st.floats(1e-2, 1e4))
def test_steps_never_decrease(ts, scale):
    steps, _ = steps_at(np.sort(ts), scale)
    assert (np.diff(steps) >= 0).all()
    assert steps[0] >= 0


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        (3.0, r"ts must be a non-empty list of times; found shape \(\)\."),
        (np.zeros((2, 2)), r"non-empty list of times; found shape \(2, 2\)\."),
        ([], r"non-empty list of times; found shape \(0,\)\."),
        ([-1.0, 2.0], r"finite, not negative and increasing; found ts\[0\] = -1\.0\."),
        ([0.0, 2.0, 1.0], r"found ts\[2\] = 1\.0 after 2\.0\."),
        ([0.0, 2.0, 2.0], r"found ts\[2\] = 2\.0 after 2\.0\."),
        ([0.0, np.nan, 3.0], r"found ts\[1\] = nan after 0\.0\."),
        ([np.nan], r"found ts\[0\] = nan\."),
        ([0.0, np.inf], r"found ts\[1\] = inf after 0\.0\."),
    ],
)
def test_times_that_do_not_fit_are_refused(ts, message):
    with pytest.raises(ValueError, match=message):
        check_times(ts)


@pytest.mark.parametrize("ts", [[0.0], [5], np.array([0, 1, 7]), np.array([1e-9, 1e9])])
def test_increasing_times_are_accepted(ts):
    check_times(ts)


def test_traced_times_are_checked_by_shape_only():
    def kernel(ts):
        check_times(ts)
        return ts

    np.testing.assert_array_equal(jax.jit(kernel)(np.array([2.0, 1.0])), [2.0, 1.0])
    with pytest.raises(ValueError, match="non-empty list of times"):
        jax.jit(kernel)(np.zeros((0,)))


@pytest.mark.parametrize("scale", [1, 0.5, np.int64(3), np.float32(2.5), jnp.asarray(4.0)])
def test_scales_become_floats(scale):
    assert type(check_scale(scale)) is float
    assert check_scale(scale) == scale


@pytest.mark.parametrize("scale", [0, -1.0, np.nan, np.inf, -np.inf, np.ones(2), [1.0]])
def test_scales_that_are_not_positive_numbers_are_refused(scale):
    with pytest.raises(ValueError, match="scale must be a positive number; found "):
        check_scale(scale)
