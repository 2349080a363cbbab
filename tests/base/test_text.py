from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.base.text import describe_end, describe_result, describe_times, describe_value

SUCCESSFUL, REDUCIBLE = ex.RESULTS.successful, ex.RESULTS.reducible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        ("name", "'name'"),
        (np.float32(0.1), "0.1"),
        (np.array(1 / 3), "0.333333"),
        (jnp.array([[1.0, 2.5], [3.0, 1e-9]]), "[1, 2.5, 3, 1e-09]"),
        (jnp.zeros((1, 5), jnp.float32), "float32[1, 5]"),
    ],
)
def test_values(value, text):
    assert describe_value(value) == text


@pytest.mark.parametrize(
    ("ts", "text"),
    [
        (np.array([2.5]), "t = 2.5"),
        (np.array([0.0, 1.0, 1e7]), "3 times from 0 to 1e+07"),
        (np.zeros((2, 3)), "3 times"),
    ],
)
def test_times(ts, text):
    assert describe_times(ts) == text


def test_traced_values_are_told_by_their_shape():
    told = []

    def tell(x):
        told.extend([describe_value(x), describe_times(x)])
        told.append(describe_result(ex.RESULTS.where(x[0] > 0, SUCCESSFUL, REDUCIBLE)))

    jax.jit(tell)(jnp.ones(2))
    assert told == ["float64[2]", "2 times", "traced"]


def test_results():
    assert describe_result(SUCCESSFUL) == "successful"
    assert describe_result(REDUCIBLE).startswith("The state chain became numerically reducible")
    batch = jax.vmap(lambda good: ex.RESULTS.where(good, SUCCESSFUL, REDUCIBLE))(
        jnp.array([True, False, True])
    )
    assert describe_result(batch) == "2 of 3 successful"


def test_ends_say_when_only_if_too_early():
    assert describe_end(SimpleNamespace(result=SUCCESSFUL, end_time=3.0)) == "successful"
    early = describe_end(SimpleNamespace(result=REDUCIBLE, end_time=2.5))
    assert early == f"{describe_result(REDUCIBLE)}, at t = 2.5"
