"""Whatever a public function cannot use it refuses, by the argument's name and before it computes.

One list of wrong values goes to every parameter of every public function, but for those that are
right for it.
"""

import contextlib
import inspect
import warnings

import numpy as np
import pytest

import ergodax as ex
import refused
from helpers import annotations_off

WRONG = {
    "None": None,
    "text": "nonsense",
    "nan": float("nan"),
    "inf": float("inf"),
    "-1": -1,
    "0": 0,
    "complex": 1j,
    "bool": True,
    "ragged": [1.0, [2.0]],
    "empty": [],
    "shape": np.ones((7, 5, 3)),
    "result": lambda *arguments, **options: None,
}


@pytest.mark.parametrize(
    ("name", "parameter"),
    [(name, parameter) for name, call in refused.CALLS.items() for parameter in call.takes],
    ids=str,
)
def test_wrong_values_are_refused_by_name(name, parameter, tmp_path):
    function, arguments, takes = refused.CALLS[name]
    accepted, unclear = [], []
    with annotations_off(), warnings.catch_warnings(), contextlib.chdir(tmp_path):
        warnings.simplefilter("ignore")
        for label, value in WRONG.items():
            if label in takes[parameter].split():
                continue
            try:
                function(**arguments() | {parameter: value})
            except (ValueError, TypeError) as error:
                if parameter not in str(error):
                    unclear.append(f"{label}: {type(error).__name__}: {error}")
            except Exception as error:
                unclear.append(f"{label}: {type(error).__name__}: {error}")
            else:
                accepted.append(label)
    assert not accepted
    assert not unclear


def test_every_parameter_of_every_public_function_is_tried():
    for name, call in refused.CALLS.items():
        parameters = inspect.signature(call.function).parameters.values()
        assert set(call.takes) == {
            one.name for one in parameters if one.kind is not one.VAR_POSITIONAL
        }, name
    public = {
        name
        for module in (ex, ex.games, ex.io, ex.plot, ex.outcomes)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    missing = public - {name.rpartition(".")[2] for name in refused.CALLS}
    assert not missing
