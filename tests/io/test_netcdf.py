import functools
import importlib.util
import json
import sys
import types

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import comparisons
import ergodax as ex
from ergodax import io


def test_contents_are_the_comparison():
    c = comparisons.dilemma()
    data = c.to_xarray()
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
    data = comparisons.dilemma().to_xarray()
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
        data = make().to_xarray()
        assert all(data[name].attrs["long_name"] for name in data.variables)
    data = comparisons.dilemma().to_xarray()
    assert data.time.attrs["units"] == "unscaled steps"
    assert data.ode_rewards.attrs["units"] == "reward per step"
    assert data.ensemble_policy.attrs["long_name"] == "policy, mean over runs"
    assert data.ode_state_distribution.attrs["units"] == "1"


def test_unequal_actions_have_their_own_dimensions():
    c = comparisons.market()
    data = c.to_xarray()
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
    data = c.to_xarray()
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
    settings = json.loads(comparisons.dilemma().to_xarray().attrs["settings"])
    assert settings == {
        "result": "Comparison",
        "ergodax": ex.__version__,
        "jax": jax.__version__,
        "scale": 10.0,
        "runs": 64,
        "key_data": np.asarray(jax.random.key_data(jax.random.key(0))).tolist(),
        "initial_state": None,
        "dtype": "float64",
        "game": {
            "agents": 2,
            "states": 4,
            "actions": [2, 2],
            "successors": 1,
            "state_names": ["CC", "CD", "DC", "DD"],
            "action_names": [["C", "D"], ["C", "D"]],
        },
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
    data = comparison.to_xarray()
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
    data = comparisons.dilemma().to_xarray().assign_attrs(bad={"a": 1})
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


def build(theta):
    """Two learners in a game of one state: compiled in no time."""
    rewards = np.array([[[1.0, 2.0], [0.0, 1.0]], [[2.0, 0.5], [1.0, 3.0]]])
    game = ex.games.repeated(rewards, memory=0)
    learners = [
        ex.QLearning(0.05, 0.5, ex.EpsilonSoftmax(theta["tau"], theta["eps"][agent]))
        for agent in range(2)
    ]
    wrapped = ex.WrappedGame(game, learners)
    return wrapped, wrapped.init()


THETA = {"tau": jnp.asarray(1.5), "eps": jnp.asarray([0.1, 0.2])}


def shifted(params):
    return jax.vmap(lambda k: jax.tree.map(lambda leaf: leaf + k, params))(jnp.arange(3.0))


def run_market(ts, **options):
    wrapped = comparisons.market().wrapped
    options = {"scale": 5, "runs": 3, "key": jax.random.key(3)} | options
    return ex.simulate(wrapped, options.pop("params0", wrapped.init()), ts, **options)


@functools.cache
def result(name):
    """One result of every kind, made once."""
    if hasattr(comparisons, name):
        return getattr(comparisons, name)()
    wrapped, start = build(THETA)
    starts, ts = shifted(start), [0.0, 5.0]
    match name:
        case "solution":
            return comparisons.dilemma().solution
        case "failed solution":
            return ex.solve(*comparisons_start(), [0.0, 1e4], max_steps=2, throw=False)
        case "batched solutions":
            return jax.vmap(lambda params: ex.solve(wrapped, params, ts))(starts)
        case "simulation":
            return run_market([0.0, 4.0], keep_runs=True)
        case "own games":
            games = jax.vmap(lambda tau: build(THETA | {"tau": tau})[0])(jnp.arange(1.0, 4.0))
            return ex.simulate(games, start, ts, key=jax.random.key(0))
        case "fluctuations":
            return ex.fluctuations(wrapped, start, ts, bias=True, max_kinks=0)
        case "rest point":
            return ex.rest_point(wrapped, start)
        case "batched rest points":
            return jax.vmap(lambda params: ex.rest_point(wrapped, params))(starts)
        case "rest points":
            return ex.rest_points(wrapped, starts)
        case "basins":
            return ex.basins(wrapped, starts, 2000.0)
        case "sensitivities":
            return ex.sensitivities(build, THETA, ts)
        case "fit":
            return ex.fit(lambda theta: jnp.sum((theta["x"] - 2.0) ** 2), {"x": jnp.zeros(2)})
        case "study":
            return study()
    raise AssertionError(name)


def comparisons_start():
    wrapped = comparisons.dilemma().wrapped
    return wrapped, wrapped.init()


def study():
    """A study with numbers of its own: only their storing is looked at."""
    wrapped, _ = build(THETA)
    numbers = {
        name: np.random.default_rng(k).normal(size=3)
        for k, name in enumerate(
            ("strong", "strong_error", "weak", "weak_error", "plain", "plain_error")
        )
    }
    constant = type(ex.studies.convergence.Constant(1.0, 0.1))
    names = ("strong_constant", "strong_theory", "weak_constant", "strong_slope", "weak_slope")
    return ex.ConvergenceStudy(
        wrapped=wrapped,
        scales=np.array([16.0, 32.0, 64.0]),
        runs=8,
        t1=4.0,
        **numbers,
        **{name: constant(1.0 + k, 0.1) for k, name in enumerate(names)},
        weak_theory=float("nan"),
        bias=np.arange(4.0),
        key_data=np.array([0, 7], np.uint32),
        run_seconds=0.1,
    )


RESULTS = (
    *("dilemma", "market", "untabulated", "solution", "failed solution", "batched solutions"),
    *("simulation", "own games", "fluctuations", "rest point", "batched rest points"),
    *("rest points", "basins", "sensitivities", "fit", "study"),
)


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


def test_double_precision_is_not_lost_silently(tmp_path):
    path = write_market(tmp_path / "a.nc")
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match=r"arrays in float64, .*jax_enable_x64"):
            io.load(path)
    finally:
        jax.config.update("jax_enable_x64", True)


def test_learners_of_users_must_be_there(tmp_path, monkeypatch):
    io.save(comparisons.untabulated(), tmp_path / "a.nc")
    monkeypatch.delitem(sys.modules, "comparisons")
    with pytest.raises(ValueError, match="needs Logit of comparisons: import comparisons first"):
        io.load(tmp_path / "a.nc")
    monkeypatch.setitem(sys.modules, "comparisons", types.ModuleType("comparisons"))
    with pytest.raises(ValueError, match="needs Logit of comparisons, which is not there"):
        io.load(tmp_path / "a.nc")


def test_a_class_that_has_changed(tmp_path, monkeypatch):
    io.save(comparisons.untabulated(), tmp_path / "a.nc")

    class Logit(comparisons.Logit):
        slope: jax.Array = ex.hyper(1.0)

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


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (break_bytes, "damaged, cut short or no netCDF-4 file"),
        (break_object, "damaged, cut short or no netCDF-4 file"),
        (cut_short, "damaged, cut short or no netCDF-4 file"),
        (replace_by_text, "damaged, cut short or no netCDF-4 file"),
        (newer, r"written by a newer version of ergodax \(layout 99; this one reads 1\)"),
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


def test_only_results_are_saved(tmp_path):
    with pytest.raises(ValueError, match="a data set is needed; found dict"):
        io.save({}, tmp_path / "a.nc")


def test_data_sets_come_back(tmp_path):
    data = comparisons.market().to_xarray()
    io.save(data, tmp_path / "a.nc", attributes={"note": "first"})
    xarray.testing.assert_identical(io.load(tmp_path / "a.nc"), data.assign_attrs(note="first"))


# Labels of the single results


def test_labels_of_a_simulation():
    saved = result("simulation")
    data = saved.to_xarray()
    runs = data.parameters_runs_agent1
    assert runs.dims == ("run", "time", "state", "action_agent1")
    np.testing.assert_array_equal(runs, saved.values[1])
    np.testing.assert_array_equal(data.parameters_agent0_theta, saved.mean[0].theta)
    np.testing.assert_array_equal(data.parameters_variance_agent1, saved.variance[1])
    np.testing.assert_array_equal(data.final_parameters_agent0_V, saved.final.params[0].V)
    np.testing.assert_array_equal(data.final_state, saved.final.state)
    assert data.rewards.dims == ("time", "agent")
    settings = json.loads(data.attrs["settings"])
    assert (settings["runs"], settings["scale"], settings["compensated"]) == (3, 5.0, False)
    assert settings["key_data"] == saved.key_data.tolist()


def test_what_is_observed_is_named():
    wrapped, start = build(THETA)
    observed = {
        "policy": wrapped.policies,
        "observable": lambda params: {"gap": params[0][0, 0] - params[0][0, 1], "all": params[1]},
    }
    data = {
        name: ex.simulate(wrapped, start, [2.0], runs=2, key=jax.random.key(0), observe=observe)
        for name, observe in observed.items()
    }
    assert data["policy"].to_xarray().policy.dims == ("time", "agent", "state", "action")
    found, labelled = data["observable"], data["observable"].to_xarray()
    np.testing.assert_array_equal(labelled.observable_gap, found.mean["gap"])
    np.testing.assert_array_equal(labelled.observable_variance_all, found.variance["all"])
    assert labelled.observable_all.dims == ("time", "observable_all_axis0", "observable_all_axis1")


def test_labels_of_a_batch_of_solutions():
    saved = result("batched solutions")
    data = saved.to_xarray()
    assert data.parameters.dims == ("batch", "time", "agent", "state", "action")
    np.testing.assert_array_equal(data.parameters, np.stack(saved.params, axis=2))
    one = jax.tree.map(lambda leaf: leaf[1], saved).to_xarray()
    xarray.testing.assert_allclose(
        data.isel(batch=1).drop_vars("message"), one.drop_vars("message"), rtol=1e-14
    )
    assert data.message.values.tolist() == ["successful"] * 3


def test_labels_of_derivatives():
    saved = result("sensitivities")
    data = saved.to_xarray()
    assert data.by_tau.dims == ("time", "agent", "state", "action")
    assert data.by_eps.dims == ("time", "eps_axis0", "agent", "state", "action")
    for agent, own in enumerate(saved.derivatives):
        np.testing.assert_array_equal(data.by_tau.sel(agent=agent), own["tau"])
        for k in range(2):
            np.testing.assert_array_equal(
                data.by_eps.sel(agent=agent).isel(eps_axis0=k), own["eps"][..., k]
            )


def test_labels_of_fluctuations():
    saved = result("fluctuations")
    data = saved.to_xarray()
    names = data.parameter.values.tolist()
    assert names[1] == "agent 0, -, 1"
    np.testing.assert_array_equal(data.covariance, saved.covariance)
    np.testing.assert_array_equal(
        data.bias.sel(parameter="agent 1, -, 0"), np.asarray(saved.bias)[:, 2]
    )
    assert data.covariance.dims == ("time", "parameter", "other_parameter")
    assert data.sizes["kink"] == 0


def test_only_kinks_that_were_crossed_are_labelled():
    crossed = [np.array([3.0, 5.0]), *(np.array([k, -1]) for k in range(4)), np.zeros((2, 4))]
    kinks = ex.second_order.fluctuations.Kinks(*map(jnp.asarray, crossed))
    saved = eqx.tree_at(lambda f: f.kinks, result("fluctuations"), kinks)
    data = saved.to_xarray()
    assert data.kink_time.values.tolist() == [3.0]
    assert [int(data[f"kink_{name}"][0]) for name in ("agent", "row", "old", "new")] == [0, 1, 2, 3]


def test_labels_of_rest_points():
    saved = result("rest point")
    data = saved.to_xarray()
    np.testing.assert_array_equal(
        data.eigenvalues_real + 1j * data.eigenvalues_imag, saved.eigenvalues
    )
    assert data.stability == saved.stability
    batch = result("batched rest points").to_xarray()
    assert batch.stability.values.tolist() == ["stable"] * 3
    np.testing.assert_allclose(
        batch.eigenvalues_real, np.tile(data.eigenvalues_real, (3, 1)), rtol=1e-6
    )


def test_labels_of_basins_and_fits():
    saved = result("basins")
    data = saved.to_xarray()
    assert data.kind.values.tolist() == ["rest point"]
    assert data.attractor_of.values.tolist() == saved.labels.tolist()
    assert data.share_interval.sel(attractor=0, bound="high") == saved.intervals[0, 1]
    assert data.orbit0.dims == ("point0", "agent", "state", "action")
    fitted = result("fit")
    data = fitted.to_xarray()
    np.testing.assert_array_equal(data.theta_x, fitted.theta["x"])
    np.testing.assert_array_equal(data.losses, fitted.losses)


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


def test_zarr_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ergodax\[zarr\]'"):
        io.save(comparisons.dilemma().to_xarray(), tmp_path / "a.zarr")
