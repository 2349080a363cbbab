import dataclasses
import json
import math
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import ergodax as ex
from ergodax.io.structure import put_together, take_apart


class Pair(NamedTuple):
    first: object
    second: object


@dataclasses.dataclass(frozen=True)
class Plain:
    values: object


class Holder(eqx.Module):
    values: object
    fixed: object = eqx.field(static=True)


def there_and_back(value):
    """Through JSON text, with arrays kept in a list."""
    arrays = []

    def store(array):
        arrays.append(array.tobytes())
        return {"k": len(arrays) - 1, "dtype": array.dtype.name, "shape": list(array.shape)}

    def fetch(place):
        flat = np.frombuffer(arrays[place["k"]], np.dtype(place["dtype"]))
        return flat.reshape(place["shape"])

    return put_together(json.loads(json.dumps(take_apart(value, store))), fetch)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2**70, 0.1, -0.0, math.inf, "text", "", [], (), {}),
        [1, (2, [3.5, None])],
        {"a": 1, 2: {"b": (None,)}, "order": 0, "a b/c": []},
        Pair(1, Pair((), "x")),
        Plain({"x": [1]}),
        Holder((1, 2), ("CC", "CD")),
        *(np.float32, np.dtype("int8"), jax.nn.relu, Plain, ex.QLearning),
    ],
)
def test_plain_values_come_back(value):
    found = there_and_back(value)
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value)


def test_numbers_that_are_none():
    assert math.isnan(there_and_back(math.nan))


@pytest.mark.parametrize(
    "value",
    [
        *(np.float64(0.1), np.bool_(True), np.uint32(7), np.zeros((2, 0, 3)), np.array(1j)),
        *(np.array([[True, False]]), np.arange(6, dtype=np.int8)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        *(jnp.arange(3.0), jnp.zeros((), jnp.float32), jnp.zeros((0, 2), int)),
        jnp.arange(3, dtype=ml_dtypes.bfloat16),
    ],
)
def test_arrays_come_back_with_type_and_shape(value):
    found = there_and_back(value)
    assert type(found) is type(value)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert np.asarray(found).tobytes() == np.asarray(value).tobytes()


@pytest.mark.parametrize("result", [ex.RESULTS.successful, ex.RESULTS.kinks])
def test_results_are_known_by_their_message(result):
    found = there_and_back(result)
    assert found == result
    assert isinstance(found, type(result))

    def renumbered(array):
        return array + 100

    structure = take_apart(result, lambda array: array)
    structure["messages"] = [[code + 100, text] for code, text in structure["messages"]]
    assert put_together(structure, renumbered) == result


def test_batched_results():
    batch = jax.vmap(lambda k: ex.RESULTS.where(k > 0, ex.RESULTS.successful, ex.RESULTS.kinks))(
        jnp.arange(3)
    )
    found = there_and_back(batch)
    np.testing.assert_array_equal(found == ex.RESULTS.kinks, [True, False, False])


def test_only_what_has_a_form_is_taken():
    class Local(eqx.Module):
        pass

    for value, message in (
        ({"a": [Pair(1, {2})]}, r"\['a'\]\[0\]\.second cannot be saved: set objects"),
        (Local(), "Local cannot be found by its name; define it at the top level"),
        (lambda: 1, "<lambda> cannot be found by its name"),
        (jax.random.key(0), r"keep jax\.random\.key_data of a key"),
        (np.array([None]), "an array of Python objects"),
    ):
        with pytest.raises(ValueError, match=message):
            take_apart(value, lambda array: array)
    with pytest.raises(ValueError, match="inside a JAX transformation"):
        jax.jit(lambda x: take_apart(x, lambda array: array))(1.0)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"name": "no.such.module:f"}, r"import no\.such\.module first"),
        ({"name": "ergodax:no_such"}, "needs no_such of ergodax, which is not there"),
        ({"name": "ergodax:__version__"}, "is neither a class nor a function"),
        ({"class": "os:system", "fields": {}}, "is neither a dataclass nor a named tuple"),
        (
            {"class": "ergodax:At", "fields": {"x": 1}},
            "other fields than when it was saved",
        ),
        ({"unknown": 1}, "nothing is written as"),
    ],
)
def test_structures_that_cannot_be_put_together(structure, message):
    with pytest.raises(ValueError, match=message):
        put_together(structure, lambda place: np.zeros(1))


def test_no_module_is_imported_because_a_file_names_it(monkeypatch):
    monkeypatch.setattr("builtins.__import__", None)
    with pytest.raises(ValueError, match="import this first"):
        put_together({"name": "this:s"}, lambda place: np.zeros(1))


def test_solvers_are_dataclasses_like_any_other():
    assert there_and_back(diffrax.Tsit5()) == diffrax.Tsit5()
