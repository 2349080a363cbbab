import jax
import numpy as np
import pytest

from ergodax.base.checks import check_count, is_concrete


def test_tracers_are_not_concrete():
    seen = []
    jax.jit(lambda x: seen.append(is_concrete(x)))(1.0)
    assert seen == [False]
    assert is_concrete(1.0)
    assert is_concrete(np.ones(2))
    assert is_concrete(jax.numpy.ones(2))


@pytest.mark.parametrize("count", [1, 2**40, np.int32(7), np.uint64(3)])
def test_counts_become_integers_of_python(count):
    found = check_count("runs", count)
    assert found == count
    assert type(found) is int


@pytest.mark.parametrize("count", [0, -1, 1.0, True, np.bool_(True), "1", None, np.ones(1, int)])
def test_other_values_are_named(count):
    with pytest.raises(ValueError, match="runs must be a positive integer; found ") as error:
        check_count("runs", count)
    assert repr(count) in str(error.value)
