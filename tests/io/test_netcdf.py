import importlib.util
import json
import os
import pickle
import sys
from pathlib import Path

import equinox as eqx
import h5py
import jax
import numpy as np
import pytest
import xarray

import comparisons
import ergodax as ex
from ergodax import io
from ergodax.io.structure import take_apart
from results_of_each_kind import RESULTS, result, run_market


@pytest.mark.slow
@pytest.mark.parametrize("make", ["dilemma", "market", "untabulated"])
def test_files_hold_the_data_set(tmp_path, make):
    comparison = getattr(comparisons, make)()
    data = comparison.to_xarray()
    io.save(comparison, tmp_path / "a.nc")
    io.save(data, str(tmp_path / "b.nc"))
    for name in ("a.nc", "b.nc"):
        with xarray.open_dataset(tmp_path / name, engine="h5netcdf") as found:
            xarray.testing.assert_identical(found.load(), data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nc", "b.nc"]


@pytest.mark.slow
def test_folders_are_made(tmp_path):
    io.save(comparisons.dilemma(), tmp_path / "new" / "deep" / "a.nc")
    assert (tmp_path / "new" / "deep" / "a.nc").is_file()


def break_off(descriptor):
    raise OSError("disk full")


@pytest.mark.slow
@pytest.mark.parametrize("old", [b"precious", None])
def test_failures_leave_nothing_half_written(tmp_path, monkeypatch, old):
    monkeypatch.setattr(os, "fsync", break_off)
    if old:
        (tmp_path / "a.nc").write_bytes(old)
    with pytest.raises(OSError, match="disk full"):
        io.save(comparisons.dilemma(), tmp_path / "a.nc")
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"a.nc": old} if old else {})


@pytest.mark.slow
def test_a_data_set_that_cannot_be_stored(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"precious")
    data = comparisons.dilemma().to_xarray().assign_attrs(bad={"a": 1})
    with pytest.raises(TypeError):
        io.save(data, tmp_path / "a.nc")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_a_complete_file_replaces_the_old_one(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"old")
    io.save(comparisons.dilemma(), tmp_path / "a.nc")
    with xarray.open_dataset(tmp_path / "a.nc") as found:
        assert found.sizes["state"] == 4


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write in the folder '.*file'"):
        io.save(comparisons.dilemma(), tmp_path / "file" / "a.nc")


# Files give the same object back


def assert_same(found, expected):
    """The same structure and types, and arrays that agree in every bit."""
    leaves, structure = jax.tree.flatten(found)
    others, other = jax.tree.flatten(expected)
    assert structure == other
    for a, b in zip(leaves, others, strict=True):
        assert type(a) is type(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_files_give_the_same_object_back(tmp_path, name):
    saved = result(name)
    io.save(saved, tmp_path / "a.nc")
    found = io.load(tmp_path / "a.nc")
    assert type(found) is type(saved)
    assert_same(found, saved)
    # What is labelled is what was loaded, for any tool.
    if hasattr(saved, "to_xarray"):
        with xarray.open_dataset(tmp_path / "a.nc") as data:
            xarray.testing.assert_identical(data.load(), found.to_xarray())
    io.save(found, tmp_path / "b.nc")
    assert_same(io.load(tmp_path / "b.nc"), saved)


def test_nothing_is_stored_twice(tmp_path):
    """Large arrays that are labelled, whole or at one agent, are not among the other bytes."""
    own = comparisons.dilemma()
    large = np.random.default_rng(0).normal(size=(2, 5, 1000, 4, 2))
    simulation = eqx.tree_at(
        lambda s: (s.values, s.runs),
        own.simulation,
        (tuple(np.moveaxis(table, 1, 0) for table in large), 1000),
        is_leaf=lambda x: x is None,
    )
    simulation = eqx.tree_at(
        lambda s: (s.mean, s.variance),
        simulation,
        tuple(tree[0] for tree in (own.simulation.mean, own.simulation.variance)),
    )
    simulation = eqx.tree_at(lambda s: s.final, simulation, None)
    object.__setattr__(simulation, "observed", ("parameters",))
    io.save(simulation, tmp_path / "a.nc")
    assert (tmp_path / "a.nc").stat().st_size < 1.5 * large.nbytes
    assert_same(io.load(tmp_path / "a.nc"), simulation)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_loaded_simulation_goes_on_bitwise(tmp_path, dtype):
    """With compensation in float32, and the action that Sarsa has drawn already."""
    whole = run_market([2.0, 4.0, 8.0], dtype=dtype)
    io.save(run_market([2.0, 4.0], dtype=dtype), tmp_path / "a.nc")
    start = io.load(tmp_path / "a.nc")
    assert start.final.joint_action is not None
    assert (start.final.compensation is not None) == (dtype == np.float32)
    rest = run_market([8.0], params0=None, runs=None, start=start, dtype=dtype)
    assert_same(rest.final, whole.final)
    assert_same(rest.mean, jax.tree.map(lambda leaf: leaf[2:], whole.mean))
    assert_same(rest.rewards, whole.rewards[2:])


def test_not_a_number_keeps_its_bits(tmp_path):
    saved = comparisons.dilemma().simulation
    odd = np.frombuffer(np.array([0xFFF8000000000001] * 20, np.uint64).tobytes()).reshape(5, 4)
    saved = eqx.tree_at(lambda s: s.state_frequency, saved, odd)
    io.save(saved, tmp_path / "a.nc")
    assert io.load(tmp_path / "a.nc").state_frequency.tobytes() == odd.tobytes()


def test_arrays_of_any_type(tmp_path):
    own = comparisons.dilemma().solution
    odd = {"text": np.array(["a", "bcd"]), "truth": np.array([True, False]), "i": np.array(1j)}
    saved = eqx.tree_at(lambda s: s.stats, own, own.stats | odd)
    io.save(saved, tmp_path / "a.nc")
    assert_same(io.load(tmp_path / "a.nc"), saved)


# What cannot be stored or loaded


def write_market(path):
    io.save(comparisons.market(), path)
    return path


@pytest.mark.slow
def test_double_precision_is_not_lost_silently(tmp_path):
    path = write_market(tmp_path / "a.nc")
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match=r"arrays in float64, .*jax_enable_x64"):
            io.load(path)
    finally:
        jax.config.update("jax_enable_x64", True)


@pytest.mark.slow
def test_learners_of_users_must_be_there(tmp_path, monkeypatch):
    io.save(comparisons.untabulated(), tmp_path / "a.nc")
    monkeypatch.delitem(sys.modules, "comparisons")
    monkeypatch.setattr(comparisons.Logit, "__module__", "elsewhere")
    with pytest.raises(ValueError, match="needs the class Logit of comparisons: import or define"):
        io.load(tmp_path / "a.nc")


def test_a_class_that_has_changed(tmp_path, monkeypatch):
    io.save(comparisons.untabulated(), tmp_path / "a.nc")

    class Logit(comparisons.Logit):
        slope: jax.Array = ex.hyper(1.0)

    Logit.__module__, Logit.__qualname__ = "comparisons", "Logit"
    monkeypatch.setattr(comparisons, "Logit", Logit)
    with pytest.raises(ValueError, match="Logit has other fields than when it was saved: slope"):
        io.load(tmp_path / "a.nc")


def test_classes_that_cannot_be_found_again(tmp_path):
    class Hidden(comparisons.Logit):
        pass

    own = comparisons.untabulated()
    solution = eqx.tree_at(lambda s: s.wrapped.learners[0], own.solution, Hidden())
    with pytest.raises(ValueError, match=r"wrapped.learners\[0\] cannot be saved: .*Hidden"):
        io.save(solution, tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [{1, 2}, jax.random.key(0), np.array([None])])
def test_what_has_no_form_in_a_file(tmp_path, value):
    solution = eqx.tree_at(lambda s: s.stats, comparisons.dilemma().solution, {"num_steps": value})
    with pytest.raises((ValueError, TypeError), match=r"stats\['num_steps'\] cannot be saved"):
        take_apart(solution, lambda array: None)


def break_bytes(path):
    """Turns one byte over in every large array."""
    content = bytearray(path.read_bytes())
    table = np.asarray(comparisons.market().solution.params[1]).tobytes()
    content[content.index(table) + 20] ^= 1
    path.write_bytes(bytes(content))


def break_object(path):
    content = bytearray(path.read_bytes())
    content[content.index(b'"is_data_set"') + 100] ^= 1
    path.write_bytes(bytes(content))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def replace_by_text(path):
    path.write_text("not a file of results")


def newer(path):
    with h5py.File(path, "a") as file:
        file["object"].attrs["layout"] = 99


def foreign(path):
    path.unlink()
    comparisons.market().to_xarray().to_netcdf(path, engine="h5netcdf")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (break_bytes, "was damaged, or changed by another program, after it was saved"),
        (break_object, "was damaged, or changed by another program, after it was saved"),
        (cut_short, "damaged, cut short or no netCDF-4 file"),
        (replace_by_text, "damaged, cut short or no netCDF-4 file"),
        (newer, r"written by a newer version of ergodax \(layout 99; this one reads 2\)"),
        (foreign, "was not written by ergodax.io.save"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, act, message):
    path = write_market(tmp_path / "a.nc")
    act(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"a.nc' .*{message}"):
        io.load(path)
    assert path.read_bytes() == before


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*a\.nc'"):
        io.load(tmp_path / "a.nc")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("a", value)
            for value in (True, None, {"b": 1}, Path("x"), 1j, [], [[1]], [1, "x", None])
        ),
        *(("a", value) for value in ([1, [2]], object(), 2**70, b"x")),
        *((name, 1) for name in ("", "a/b")),
    ],
)
def test_attributes_are_texts_and_numbers(tmp_path, name, value):
    with pytest.raises(ValueError, match="attributes"):
        io.save(comparisons.market(), tmp_path / "a.nc", attributes={name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_attributes_do_not_hide_how_the_result_was_made(tmp_path):
    with pytest.raises(ValueError, match="'settings' says how the result was made"):
        io.save(comparisons.market(), tmp_path / "a.nc", attributes={"settings": "mine"})
    own = {"a": "text", "b": 1, "c": np.float32(2), "d": [1.5, 2.5], "e": ["x", "y"], "f": "\u00e9"}
    own["g"] = jax.numpy.arange(3)
    io.save(comparisons.market(), tmp_path / "a.nc", attributes=own)
    with xarray.open_dataset(tmp_path / "a.nc") as data:
        assert {name: np.asarray(data.attrs[name]).tolist() for name in own} == {
            name: np.asarray(value).tolist() for name, value in own.items()
        }


@pytest.mark.slow
def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a.nc").symlink_to(tmp_path / "real" / "b.nc")
    for _ in range(2):
        io.save(comparisons.market(), tmp_path / "a.nc")
        assert (tmp_path / "a.nc").is_symlink()
        assert [path.name for path in (tmp_path / "real").iterdir()] == ["b.nc"]
    assert io.load(tmp_path / "a.nc").wrapped.game.num_agents == 2


@pytest.mark.slow
def test_home_folders_and_long_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "a" * 252 + ".nc"
    io.save(comparisons.market(), f"~/{name}")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert io.load(f"~/{name}").wrapped.game.num_agents == 2


def test_only_results_are_saved(tmp_path):
    with pytest.raises(ValueError, match="a data set is needed; found dict"):
        io.save({}, tmp_path / "a.nc")


def test_data_sets_come_back(tmp_path):
    data = comparisons.market().to_xarray()
    io.save(data, tmp_path / "a.nc", attributes={"note": "first"})
    xarray.testing.assert_identical(io.load(tmp_path / "a.nc"), data.assign_attrs(note="first"))


# Tables


def test_tables_have_a_row_for_every_entry():
    c = comparisons.dilemma()
    frame = io.table(c)
    assert len(frame) == 5 * 2 * 4 * 2
    columns = ["time", "step", "agent", "state", "action", "ode_parameters"]
    assert frame.columns[:6].tolist() == columns
    (row,) = frame[
        (frame.time == 20) & (frame.agent == 1) & (frame.state == "DC") & (frame.action == "D")
    ].itertuples()
    assert row.ensemble_policy == c.simulation.mean[1][1][4, 2, 1]
    assert row.step == 200


def test_tables_of_unequal_actions_are_not_padded():
    c = comparisons.market()
    frame = io.table(c)
    assert len(frame) == 5 * 2 * (3 + 2)
    assert not frame.ode_policy.isna().any()
    own = frame[frame.agent == 0]
    assert sorted(set(own.action)) == ["high", "low", "mid"]
    np.testing.assert_array_equal(own.ode_parameters_theta, np.ravel(c.solution.params[0].theta))
    assert set(frame[frame.agent == 1].action) == {"in", "out"}
    runs = io.table(result("simulation"))
    assert len(runs[runs.agent == 1]) == 3 * 2 * 2 * 2
    saved = result("simulation").values[1]
    np.testing.assert_array_equal(runs[runs.agent == 1].parameters_runs, saved.ravel())


@pytest.mark.slow
def test_tables_of_other_results():
    batch = io.table(result("batched solutions"))
    assert batch.columns[:6].tolist() == ["batch", "time", "agent", "state", "action", "parameters"]
    assert len(batch) == 3 * 2 * 2 * 2
    basins = io.table(result("basins"))
    assert basins.columns.tolist() == ["start", "agent", "state", "action", "ends"]
    assert len(basins) == 3 * 2 * 2
    points = result("rest points")
    assert len(io.table(points)) == len(points) * 2 * 2
    assert "final_parameters" not in io.table(result("simulation"))


def test_tables_need_tables():
    with pytest.raises(ValueError, match="no quantity per state and action"):
        io.table(result("fit"))


# zarr


@pytest.fixture
def zarr():
    return pytest.importorskip("zarr")


def test_zarr_stores(tmp_path, zarr):
    data = comparisons.market().to_xarray()
    for values in (data, data.isel(time=slice(2))):  # the second replaces the first
        io.save(values, tmp_path / "a.zarr")
        xarray.testing.assert_identical(io.load(tmp_path / "a.zarr").load(), values)
        assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    with pytest.raises(ValueError, match="holds a data set alone"):
        io.save(comparisons.market(), tmp_path / "a.zarr")


def test_other_folders_are_not_replaced(tmp_path, zarr):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "precious").touch()
    data = comparisons.market().to_xarray()
    with pytest.raises(ValueError, match="is no zarr store; it was left as it is"):
        io.save(data, tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="is no zarr store"):
        io.load(tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "precious").exists()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_zarr_stores_run_nothing(tmp_path, zarr, monkeypatch, place):
    """Zarr has a codec that unpickles, which runs code: it must not be used."""
    monkeypatch.chdir(tmp_path)
    io.save(comparisons.market().to_xarray(), "a.zarr")
    store = tmp_path / "a.zarr"
    array = json.loads((store / "state" / ".zarray").read_text()) | {
        "filters": None,
        "compressor": None,
    }
    array[place] = [{"id": "pickle"}] if place == "filters" else {"id": "pickle"}
    everything = json.loads((store / ".zmetadata").read_text())
    everything["metadata"]["state/.zarray"] = array
    (store / "state" / ".zarray").write_text(json.dumps(array))
    (store / ".zmetadata").write_text(json.dumps(everything))
    (store / "state" / "0").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="pickle"):
        io.load("a.zarr").load()
    assert not (tmp_path / "ran").exists()


def test_zarr_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ergodax\[zarr\]'"):
        io.save(comparisons.dilemma().to_xarray(), tmp_path / "a.zarr")
