import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.base.devices import as_array, default_devices


def test_all_local_devices_unless_one_is_named():
    assert default_devices() == jax.local_devices()
    one = jax.local_devices()[-1]
    with jax.default_device(one):
        assert default_devices() == [one]
    with jax.default_device("cpu"):
        assert default_devices() == jax.local_devices(backend="cpu")


def test_one_device_for_every_core_asked_for():
    code = "import ergodax, jax; ergodax.use_all_cores(3); print(len(jax.devices()))"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.split() == ["3"]


def test_counts_below_one_and_late_calls_are_refused():
    with pytest.raises(ValueError, match="count must be a positive integer; found 0"):
        ex.use_all_cores(0)
    jax.devices()
    with pytest.raises(RuntimeError, match="JAX has already started"):
        ex.use_all_cores(3)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.3, float),
        (np.float32(0.3), None),
        (np.arange(7), jnp.int32),
        ([[1, 2], [3, 4]], float),
        (np.array([True, False]), None),
        (np.linspace(0.0, 1.0, 11), np.float32),
    ],
)
def test_arrays_are_those_of_jax_and_need_no_program(value, dtype):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **rest: compiled.append(event) if "backend_compile" in event else None
    )
    jax.clear_caches()
    found = as_array(value, dtype)
    assert compiled == []
    expected = jnp.asarray(value, dtype)
    assert compiled  # those of JAX do
    jax.monitoring.clear_event_listeners()
    assert found.dtype == expected.dtype
    assert not found.weak_type
    assert not found.committed
    np.testing.assert_array_equal(found, expected)


def test_what_is_traced_stays_so():
    def half(x):
        return as_array([x, 2 * x], float) / 2

    np.testing.assert_array_equal(jax.jit(half)(3.0), [1.5, 3.0])
    np.testing.assert_array_equal(jax.jacfwd(half)(3.0), [0.5, 1.0])
