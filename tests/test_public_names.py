"""Public names are imported when they are first used, and nothing before."""

import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ergodax as ex

REFERENCE = Path(__file__).parent.parent / "docs" / "api.md"


def run(code):
    """What a program prints that has only just started."""
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, env=environment, text=True)


def test_names_are_imported_when_used():
    documented = re.findall(r"^\.\. auto\w+:: (ergodax\.[\w.]+)", REFERENCE.read_text(), re.M)
    assert len(documented) > 60
    code = f"""if True:
        import sys, ergodax
        print(*sorted({{"jax", "numpy"}} & set(sys.modules)))
        assert set(ergodax.__all__) <= set(dir(ergodax))
        for name in reversed({documented}):
            assert eval(name).__doc__, name
        assert all(map(callable, (getattr(ergodax.plot, name) for name in ergodax.plot.__all__)))
        from ergodax import *
        assert Sensitivities is ergodax.sensitivities.__globals__["Sensitivities"]
        print(ergodax.__version__)
    """
    assert run(code).split("\n") == ["", ex.__version__, ""]


def test_files_are_loaded_before_their_classes_are_used(tmp_path):
    ex.io.save(ex.Lenient(ex.QLearning(0.1, 0.5), 2), tmp_path / "learner.nc")
    code = f"import ergodax; print(ergodax.io.load({str(tmp_path / 'learner.nc')!r}))"
    assert run(code).startswith("Lenient(")


def test_misspelt_names():
    with pytest.raises(AttributeError, match="slove") as caught:
        operator.attrgetter("slove")(ex)
    # By which Python finds the nearest name.
    assert (caught.value.name, caught.value.obj) == ("slove", ex)
    with pytest.raises(ImportError, match="cannot import name 'slove' from 'ergodax'"):
        exec("from ergodax import slove")
