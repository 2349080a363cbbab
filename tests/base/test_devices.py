import os
import subprocess
import sys

import jax
import pytest

import ergodax as ex
from ergodax.base.devices import default_devices


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
