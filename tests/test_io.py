import json

import jax
import numpy as np
import pytest
import xarray

import comparisons
import ergodax as ex
from ergodax import io


def test_contents_are_the_comparison():
    c = comparisons.dilemma()
    data = io.to_dataset(c)
    expected = {
        "ode_parameters": np.stack(c.solution.params, axis=1),
        "ensemble_parameters": np.stack(c.simulation.mean[0], axis=1),
        "ensemble_parameters_variance": np.stack(c.simulation.variance[0], axis=1),
        "ode_policy": np.stack(c.policies, axis=1),
        "ensemble_policy": np.stack(c.simulation.mean[1], axis=1),
        "ensemble_policy_variance": np.stack(c.simulation.variance[1], axis=1),
        "ode_state_distribution": c.solution.state_distribution,
        "ensemble_state_frequency": c.simulation.state_frequency,
        "ode_rewards": c.solution.rewards,
        "ensemble_rewards": c.simulation.rewards,
    }
    assert set(data.data_vars) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(data[name], values)
        assert data[name].dtype == np.float64
        table = ("time", "agent", "state", "action")
        kind = name.split("_")[-1]
        dimensions = {"rewards": table[:2], "distribution": table[::2], "frequency": table[::2]}
        if kind in ("distribution", "frequency"):
            assert data[name].dims == ("time", "state")
        else:
            assert data[name].dims == dimensions.get(kind, table)


def test_coordinates_are_the_games_names():
    data = io.to_dataset(comparisons.dilemma())
    np.testing.assert_array_equal(data.time, comparisons.TIMES)
    np.testing.assert_array_equal(data.step, [0, 50, 100, 150, 200])
    assert data.step.dims == ("time",)
    assert data.state.values.tolist() == ["CC", "CD", "DC", "DD"]
    assert data.action.values.tolist() == ["C", "D"]
    assert data.agent.values.tolist() == [0, 1]
    value = data.ensemble_policy.sel(time=20.0, agent=1, state="DC", action="D")
    assert value == comparisons.dilemma().simulation.mean[1][1][4, 2, 1]


def test_everything_is_described():
    for make in (comparisons.dilemma, comparisons.market, comparisons.untabulated):
        data = io.to_dataset(make())
        assert all(data[name].attrs["long_name"] for name in data.variables)
    data = io.to_dataset(comparisons.dilemma())
    assert data.time.attrs["units"] == "unscaled steps"
    assert data.ode_rewards.attrs["units"] == "reward per step"
    assert data.ensemble_policy.attrs["long_name"] == "policy, mean over runs"
    assert data.ode_state_distribution.attrs["units"] == "1"


def test_unequal_actions_have_their_own_dimensions():
    c = comparisons.market()
    data = io.to_dataset(c)
    assert "action" not in data.dims
    assert data.action_agent0.values.tolist() == ["low", "mid", "high"]
    assert data.action_agent1.values.tolist() == ["in", "out"]
    for agent in range(2):
        dimensions = ("time", "state", f"action_agent{agent}")
        for name, values in (
            ("ode_policy", c.policies[agent]),
            ("ensemble_policy", c.simulation.mean[1][agent]),
            ("ensemble_policy_variance", c.simulation.variance[1][agent]),
        ):
            variable = data[f"{name}_agent{agent}"]
            assert variable.dims == dimensions
            np.testing.assert_array_equal(variable, values)
    np.testing.assert_array_equal(data.ode_parameters_agent1, c.solution.params[1])
    assert data.ode_parameters_agent1.dims == ("time", "state", "action_agent1")
    theta, critic = data.ode_parameters_agent0_theta, data.ensemble_parameters_agent0_V
    assert theta.dims == ("time", "state", "action_agent0")
    np.testing.assert_array_equal(theta, c.solution.params[0].theta)
    assert critic.dims == ("time", "parameters_agent0_V_axis0")
    np.testing.assert_array_equal(critic, c.simulation.mean[0][0].V)


def test_any_parameters_are_stored_under_plain_names():
    c = comparisons.untabulated()
    data = io.to_dataset(c)
    bias, slope = data.ode_parameters_agent0_bias, data.ode_parameters_agent0_slope_a
    assert bias.dims == ("time",)
    assert slope.dims == ("time", "parameters_agent0_slope_a_axis0")
    np.testing.assert_array_equal(bias, c.solution.params[0]["bias"])
    np.testing.assert_array_equal(slope, c.solution.params[0]["slope/a"])
    # "a b" and "a/b" would be one plain name.
    own = [name for name in data.data_vars if name.startswith("ode_parameters_agent1")]
    assert len(own) == 2
    found = {tuple(data[name].values.tolist()) for name in own}
    assert found == {tuple(leaf.tolist()) for leaf in c.solution.params[1].values()}
    # Policies are tables all the same.
    assert data.ode_policy.dims == ("time", "agent", "state", "action")


def test_settings():
    settings = json.loads(io.to_dataset(comparisons.dilemma()).attrs["settings"])
    assert settings == {
        "ergodax": ex.__version__,
        "jax": jax.__version__,
        "scale": 10.0,
        "runs": 64,
        "key_data": np.asarray(jax.random.key_data(jax.random.key(0))).tolist(),
        "initial_state": None,
        "dtype": "float64",
        "game": {"agents": 2, "states": 4, "actions": [2, 2], "successors": 1},
        "learners": [
            {
                "type": "QLearning",
                "learning_rate": 0.01,
                "discount": 0.9,
                "exploration": {"type": "EpsilonSoftmax", "temperature": 0.5, "epsilon": 0.1},
                "initial": initial,
            }
            for initial in (30.0, [22.0, 20.0])
        ],
    }


@pytest.mark.parametrize("make", ["dilemma", "market", "untabulated"])
def test_files_hold_the_data_set(tmp_path, make):
    comparison = getattr(comparisons, make)()
    data = io.to_dataset(comparison)
    io.save(comparison, tmp_path / "a.nc")
    io.save(data, str(tmp_path / "b.nc"))
    for name in ("a.nc", "b.nc"):
        with xarray.open_dataset(tmp_path / name, engine="h5netcdf") as found:
            xarray.testing.assert_identical(found.load(), data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nc", "b.nc"]


def test_folders_are_made(tmp_path):
    io.save(comparisons.dilemma(), tmp_path / "new" / "deep" / "a.nc")
    assert (tmp_path / "new" / "deep" / "a.nc").is_file()


def break_off(self, path, **_):
    path.write_bytes(b"half")
    raise OSError("disk full")


@pytest.mark.parametrize("old", [b"precious", None])
def test_failures_leave_nothing_half_written(tmp_path, monkeypatch, old):
    monkeypatch.setattr(xarray.Dataset, "to_netcdf", break_off)
    if old:
        (tmp_path / "a.nc").write_bytes(old)
    with pytest.raises(OSError, match="disk full"):
        io.save(comparisons.dilemma(), tmp_path / "a.nc")
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"a.nc": old} if old else {})


def test_a_data_set_that_cannot_be_stored(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"precious")
    data = io.to_dataset(comparisons.dilemma()).assign_attrs(bad={"a": 1})
    with pytest.raises(TypeError):
        io.save(data, tmp_path / "a.nc")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_a_complete_file_replaces_the_old_one(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"old")
    io.save(comparisons.dilemma(), tmp_path / "a.nc")
    with xarray.open_dataset(tmp_path / "a.nc") as found:
        assert found.sizes["state"] == 4


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write in the folder '.*file'"):
        io.save(comparisons.dilemma(), tmp_path / "file" / "a.nc")
