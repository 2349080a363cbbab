import dataclasses
import json
import math
import sys
import types
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import ergodax as ex
from ergodax.io.structure import known_classes, put_together, take_apart


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

    own = known_classes([Pair, Plain, Holder, diffrax.Tsit5])
    return put_together(json.loads(json.dumps(take_apart(value, store))), fetch, own)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2**70, 0.1, -0.0, math.inf, "text", "", [], (), {}),
        [1, (2, [3.5, None])],
        {"a": 1, 2: {"b": (None,)}, "order": 0, "a b/c": []},
        Pair(1, Pair((), "x")),
        Plain({"x": [1]}),
        Holder((1, 2), ("CC", "CD")),
        np.dtype("int8"),
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
    assert put_together(structure, renumbered, {}) == result
    structure["messages"][0][1] = "a text of another version"
    with pytest.raises(ValueError, match=r"no result is known with code .* and text 'a text of an"):
        put_together(structure, renumbered, {})
    structure["messages"] = []
    with pytest.raises(ValueError, match="no result is known"):
        put_together(structure, renumbered, {})


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
        (Plain(jax.nn.relu), r"\.values cannot be saved: relu is code, which no file holds"),
        ([ex.QLearning], r"\[0\] cannot be saved: QLearning is code"),
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
        ({"name": "os:system"}, "nothing is written as"),
        ({"class": "os:system", "fields": {}}, r"needs the class system of os: .*classes=\[system"),
        ({"class": "test_structure:Plain", "fields": {"values": 1}}, "needs the class Plain of"),
        ({"class": "equinox:Partial", "fields": {}}, "needs the class Partial of equinox"),
        ({"class": "ergodax:no_such", "fields": {}}, "which this version does not have"),
        ({"class": "ergodax:simulate", "fields": {}}, "which this version does not have"),
        ({"class": "ergodax:At.apply", "fields": {}}, "which this version does not have"),
        (
            {"class": "ergodax:At", "fields": {"x": 1}},
            "other fields than when it was saved",
        ),
        ({"unknown": 1}, "nothing is written as"),
    ],
)
def test_structures_that_cannot_be_put_together(structure, message):
    with pytest.raises(ValueError, match=message):
        put_together(structure, lambda place: np.zeros(1), known_classes())


def test_no_module_is_imported_or_looked_into_because_a_file_names_it(monkeypatch):
    class Trap(types.ModuleType):
        def __getattr__(self, name):
            raise AssertionError

    monkeypatch.setitem(sys.modules, "trap", Trap("trap"))
    monkeypatch.setattr("builtins.__import__", None)
    for name in ("this:s", "trap:x"):
        with pytest.raises(ValueError, match="import or define it first"):
            put_together({"class": name, "fields": {}}, lambda place: np.zeros(1), {})


def test_only_classes_with_fields_are_known():
    for wrong in (jax.nn.relu, int, "Plain", Plain(1)):
        with pytest.raises(TypeError, match="classes must be dataclasses or named tuples"):
            known_classes([wrong])
    assert all(map(callable, known_classes().values()))
    assert {"ergodax:QLearning", "ergodax:ActorCriticParams", "ergodax:Solution"} <= {
        *known_classes()
    }


def test_a_class_defined_anew_is_the_one_that_counts(monkeypatch):
    def define():
        class Anew(ex.QLearning):
            pass

        Anew.__qualname__ = "Anew"
        return Anew

    first, second = define(), define()
    for current in (first, second):
        monkeypatch.setattr(sys.modules[__name__], "Anew", current, raising=False)
        assert known_classes()[f"{__name__}:Anew"] is current


def test_solvers_are_dataclasses_like_any_other():
    assert there_and_back(diffrax.Tsit5()) == diffrax.Tsit5()
