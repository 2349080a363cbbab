import importlib
import json
import os
import subprocess
import sys
import textwrap
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import ergodax as ex
from ergodax.model.observable import parameters_and_policies
from ergodax.simulation.side_by_side import simulate_ensembles
from helpers import assert_close

sweep_module = importlib.import_module("ergodax.studies.sweep")

TS = np.array([0.0, 5.0, 40.0])


def dilemma(theta):
    """A dilemma between two different learners, by four quantities."""
    game = ex.games.prisoners_dilemma(theta.get("g", 1.5))
    tau = theta.get("tau", 0.5)
    first = ex.QLearning(theta.get("alpha", 0.1), 0.8, ex.EpsilonSoftmax(tau, 0.1), 10.0)
    second = ex.Sarsa(0.05, theta.get("gamma", 0.7), ex.EpsilonSoftmax(tau))
    wrapped = ex.WrappedGame(game, [first, second])
    return wrapped, wrapped.init()


def stiff(theta):
    """Diverges where `growth` is above 0, the faster the larger it is."""

    class Explosive(ex.AbstractLearner):
        growth: jax.Array = ex.hyper()

        def init(self, game, agent, *, key):
            return jnp.ones(())

        def policy(self, params, state):
            return jnp.array([0.5, 0.5])

        def update(self, params, transition, game, agent):
            return self.growth * params**2

    game = ex.MarkovGame.deterministic(np.zeros((1, 2), int), np.zeros((1, 2, 1)))
    wrapped = ex.WrappedGame(game, [Explosive(theta["growth"])])
    return wrapped, wrapped.init()


def assert_sets_equal_solutions(data, build, names, **options):
    for index in np.ndindex(*data.end_time.shape):
        one = data[dict(zip(data.end_time.dims, index, strict=True))]
        theta = {name: jnp.asarray(float(one[name])) for name in names}
        wrapped, params0 = build(theta)
        expected = ex.solve(wrapped, params0, TS, **options)
        for agent in range(2):
            assert_close(one.parameters[:, agent], expected.params[agent], 1e-12)
            policy = jax.vmap(wrapped.policies)(expected.params)[agent]
            assert_close(one.policy[:, agent], policy, 1e-12)
        assert_close(one.state_distribution, expected.state_distribution, 1e-12)
        assert_close(one.rewards, expected.rewards, 1e-12)
        assert one.result == 0
        assert one.message == "successful"
        assert one.end_time == TS[-1]


# Values and labels


def test_a_grid_equals_single_solutions():
    thetas = {"tau": [0.4, 1.0], "gamma": [0.0, 0.5, 0.9]}
    data = ex.sweep(dilemma, thetas, TS, batch_size=4)
    assert data.parameters.dims == ("tau", "gamma", "time", "agent", "state", "action")
    assert data.result.dims == ("tau", "gamma")
    assert list(data.state.values) == ["CC", "CD", "DC", "DD"]
    assert list(data.action.values) == ["C", "D"]
    np.testing.assert_array_equal(data.time, TS)
    assert_sets_equal_solutions(data, dilemma, thetas)
    assert json.loads(data.attrs["settings"])["rtol"] == 1e-8


@pytest.mark.slow
def test_a_paired_design_runs_along_sets():
    rng = np.random.default_rng(0)
    thetas = {"alpha": rng.uniform(0.01, 0.2, 5), "g": rng.uniform(1.1, 1.9, 5)}
    data = ex.sweep(dilemma, thetas, TS, design="paired", rtol=1e-6, atol=1e-6)
    assert data.parameters.dims == ("set", "time", "agent", "state", "action")
    np.testing.assert_array_equal(data.alpha, thetas["alpha"])
    assert_sets_equal_solutions(data, dilemma, thetas, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_other_parameters_get_variables_of_their_own(tmp_path):
    def build(theta):
        game = ex.MarkovGame.deterministic(np.zeros((1, 2, 3), int), np.ones((1, 2, 3, 2)))
        learners = [ex.ActorCritic(theta["alpha"], 0.1), ex.QLearning(theta["alpha"])]
        wrapped = ex.WrappedGame(game, learners)
        return wrapped, wrapped.init()

    data = ex.sweep(build, {"alpha": [0.1, 0.2]}, TS)
    assert data.parameters_agent0_theta.dims == ("alpha", "time", "state", "action_agent0")
    assert data.parameters_agent0_V.shape == (2, 3, 1)
    assert data.policy_agent1.dims == ("alpha", "time", "state", "action_agent1")
    ex.io.save(data, tmp_path / "sweep.nc")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "sweep.nc"), data)


def assert_sets_equal_simulations(data, build, names, ts, *, key, **options):
    for k in range(data.sizes[names[0]]):
        wrapped, params0 = build({name: jnp.asarray(float(data[name][k])) for name in names})
        own = jax.random.fold_in(key, k)
        expected = ex.simulate(
            wrapped, params0, ts, key=own, observe=parameters_and_policies(wrapped), **options
        )
        moments = zip(expected.mean, expected.variance, ("parameters", "policy"), strict=True)
        for mean, variance, name in moments:
            for agent in range(2):
                np.testing.assert_allclose(data[name][k, :, agent], mean[agent], rtol=1e-12)
                found = data[f"{name}_variance"][k, :, agent]
                np.testing.assert_allclose(found, variance[agent], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(data.state_frequency[k], expected.state_frequency, rtol=1e-12)
        np.testing.assert_allclose(data.rewards[k], expected.rewards, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "runs", "batch_size"),
    # Eight ensembles fill 64 lanes; then three do not; one alone fills a device by itself.
    [(12, 5, 1), (5, 70, np.int64(3)), (2, 300, None)],
)
def test_simulations_equal_single_ones(sets, runs, batch_size):
    key, ts = jax.random.key(3), [0.0, 4.0, 10.0]
    thetas = {"alpha": np.linspace(0.05, 0.3, sets)}
    options = {"runs": runs, "scale": 2, "initial_state": "CD"}
    simulation = {"key": key, **options}
    data = ex.sweep(dilemma, thetas, ts, simulation=simulation, batch_size=batch_size)
    assert_sets_equal_simulations(data, dilemma, ["alpha"], ts, key=key, **options)
    assert np.all(data.parameters_variance[:, 2] > 0)
    np.testing.assert_allclose(data.policy.sum("action"), 1, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "copies_fit"), [(jnp.float32, True), (float, False)])
def test_simulations_with_first_states_of_their_own(monkeypatch, dtype, copies_fit):
    module = importlib.import_module("ergodax.simulation.side_by_side")
    monkeypatch.setattr(module, "copies_fit", lambda *_: copies_fit)
    key, ts = jax.random.key(4), [3.0]
    options = {"runs": 3, "initial_state": [0, 3, 1], "dtype": dtype}
    data = ex.sweep(dilemma, {"g": [1.2, 1.8]}, ts, simulation={"key": key, **options})
    assert_sets_equal_simulations(data, dilemma, ["g"], ts, key=key, **options)
    # Each of three runs visits its first state in the first of three steps.
    assert np.all(data.state_frequency.sel(state=["CC", "CD", "DD"]) >= 1 / 9 - 1e-12)


def test_a_set_whose_runs_diverge_spoils_no_other():
    simulation = {"key": jax.random.key(0), "runs": 2, "scale": 10}
    growth = [-1.0, 50.0, -0.5]
    with pytest.warns(UserWarning, match="1 of 3 sets failed"):
        data = ex.sweep(stiff, {"growth": growth}, [5.0], simulation=simulation)
    np.testing.assert_array_equal(data.result != 0, [False, True, False])
    assert list(data.message) == ["successful", "2 of 2 runs became infinite or NaN", "successful"]
    x = np.ones(3)
    for _ in range(50):
        x[[0, 2]] += np.array([-1.0, -0.5]) * x[[0, 2]] ** 2 / 10
    found = data.parameters_agent0[[0, 2], 0]
    np.testing.assert_allclose(found, x[[0, 2]], rtol=1e-12)


@pytest.mark.slow
def test_an_interrupted_sweep_of_simulations_goes_on(tmp_path, monkeypatch):
    thetas, folder, ts = {"tau": np.linspace(0.4, 2, 5)}, tmp_path / "sweep", [3.0]
    simulation = {"key": jax.random.key(1), "runs": 40}
    expected = ex.sweep(dilemma, thetas, ts, simulation=simulation)
    batches = []

    def interrupted(plan, wrapped, params0, numbers):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(numbers)
        return simulate_ensembles(plan, wrapped, params0, numbers)

    monkeypatch.setattr(sweep_module, "simulate_ensembles", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ex.sweep(dilemma, thetas, ts, simulation=simulation, batch_size=1, folder=folder)
    monkeypatch.undo()
    assert len(list(folder.glob("piece-*"))) == 2
    again = ex.sweep(dilemma, thetas, ts, simulation=simulation, folder=folder)
    xarray.testing.assert_allclose(again, expected, rtol=1e-12)
    first = np.zeros(40, int)
    for what, other in (("runs", 41), ("initial_state", first), ("scale", 2), ("dtype", "float32")):
        changed = {**simulation, what: other}
        with pytest.raises(ValueError, match=f"another sweep, which differs in {what}"):
            ex.sweep(dilemma, thetas, ts, simulation=changed, folder=folder)


@pytest.mark.slow
def test_learners_that_cannot_be_averaged_can_be_simulated():
    def build(theta):
        learner = ex.QLearning(0.1, 0.9, ex.EpsilonGreedy(theta["epsilon"]))
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])
        return wrapped, wrapped.init()

    thetas = {"epsilon": [0.1, 0.5]}
    data = ex.sweep(build, thetas, [3.0], simulation={"key": jax.random.key(0), "runs": 16})
    assert np.all(np.isfinite(data.parameters))
    with pytest.raises(ValueError, match="policy of QLearning is not continuous"):
        ex.sweep(build, thetas, [3.0])


# One compile, and sets that fail


@pytest.mark.slow
def test_all_batches_share_one_trace():
    traces = []

    def build(theta):
        traces.append(theta)
        return dilemma(theta)

    ex.sweep(build, {"tau": [0.5, 0.6]}, TS, batch_size=2)
    few = len(traces)
    traces.clear()
    ex.sweep(build, {"tau": np.linspace(0.3, 2, 11)}, TS, batch_size=2)
    # Only the first set's check and the trace without values come anew.
    assert len(traces) < few
    assert len(traces) <= 3


def test_a_diverging_set_says_why_and_spoils_no_other():
    growth = [-1.0, 0.5, -0.5, 0.001, 0.0]
    with pytest.warns(UserWarning, match="1 of 5 sets failed"):
        data = ex.sweep(stiff, {"growth": growth}, TS, batch_size=2, max_steps=500)
    failed = data.result.values != 0
    np.testing.assert_array_equal(failed, [False, True, False, False, False])
    assert data.message[0] == "successful"
    assert data.message[1] != "successful"
    # dx/dt = c x^2 from 1 is 1 / (1 - c t), infinite at t = 1 / c.
    assert data.end_time[1] == 0.0
    exact = 1 / (1 - np.array(growth)[:, None] * TS)
    found = data.parameters_agent0.values
    np.testing.assert_allclose(found[~failed], exact[~failed], rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(found[1]), [False, True, True])
    assert data.steps[0] < 100


@pytest.mark.slow
def test_a_thousand_sets_of_the_papers_example(golden, pd):
    values = golden["pd"]
    initial = values["x0"].reshape(2, 4, 2)

    def build(theta):
        exploration = ex.EpsilonSoftmax(theta["tau"], values["eps"][0])
        learners = [
            ex.QLearning(theta["alpha"], theta["gamma"], exploration, initial[agent])
            for agent in range(2)
        ]
        wrapped = ex.WrappedGame(pd.game, learners)
        return wrapped, wrapped.init()

    def timed(count):
        """Best milliseconds per set of several sweeps, compilation apart."""
        thetas = {
            "alpha": np.linspace(0.005, 0.02, count),
            "gamma": np.linspace(0.8, 0.95, 10),
            "tau": np.append(np.linspace(0.3, 1.0, 9), 0.5),
        }
        taken = []
        for _ in range(4):
            before = time.perf_counter()
            data = ex.sweep(build, thetas, values["times"][[5, -1]], rtol=1e-6, atol=1e-6)
            taken.append(time.perf_counter() - before)
        assert np.all(data.result == 0)
        return min(taken[1:]) * 1e3 / (100 * count)

    few, many = timed(2), timed(10)
    # The bar is 0.5 ms on two idle cores; the rest is for a busy machine.
    assert many < 2.0
    assert many < 2 * few
    thetas = {name: [values[name][0]] for name in ("alpha", "gamma", "tau")}
    data = ex.sweep(build, thetas, values["times"][[5, -1]], rtol=1e-10, atol=1e-10)
    found = data.parameters.values.reshape(2, 16)
    assert_close(found, values["x_t"][[5, -1]], 1e-7)


@pytest.mark.slow
def test_several_devices_share_the_sets():
    program = """
        import jax
        jax.config.update("jax_enable_x64", True)
        import numpy as np
        import ergodax as ex
        assert jax.local_device_count() == 2

        def build(theta):
            learner = ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(theta["tau"]))
            wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])
            return wrapped, wrapped.init()

        data = ex.sweep(build, {"tau": [0.5, 1.0, 2.0]}, [3.0], batch_size=1)
        for k, tau in enumerate(data.tau.values):
            wrapped, params0 = build({"tau": tau})
            expected = ex.solve(wrapped, params0, [3.0]).params[0]
            np.testing.assert_allclose(data.parameters[k, :, 0], expected, rtol=1e-12)

        for runs in (20, 70):
            simulation = {"key": jax.random.key(0), "runs": runs}
            taus = [0.5, 1.0, 2.0, 3.0, 4.0]
            data = ex.sweep(build, {"tau": taus}, [3.0], simulation=simulation, batch_size=3)
            for k, tau in enumerate(taus):
                key = jax.random.fold_in(simulation["key"], k)
                expected = ex.simulate(*build({"tau": tau}), [3.0], runs=runs, key=key).mean[0]
                np.testing.assert_allclose(data.parameters[k, :, 0], expected, rtol=1e-12)
    """
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    subprocess.run(command, env=environment, check=True, timeout=300)


# Interruption


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(tmp_path):
    thetas, folder = {"tau": np.linspace(0.4, 2, 7)}, tmp_path / "sweep"
    expected = ex.sweep(dilemma, thetas, TS, batch_size=2)
    ex.sweep(dilemma, thetas, TS, batch_size=2, folder=folder)
    pieces = sorted(folder.glob("piece-*"))
    assert len(pieces) == 4
    pieces[1].unlink()
    pieces[3].unlink()
    kept = {path: path.stat().st_mtime_ns for path in (pieces[0], pieces[2])}
    (folder / ".piece-00000000.npz.0123.tmp").write_bytes(b"cut off")
    again = ex.sweep(dilemma, thetas, TS, batch_size=3, folder=folder)
    xarray.testing.assert_allclose(again, expected, rtol=1e-12)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    complete = ex.sweep(dilemma, thetas, TS, batch_size=2, folder=folder)
    xarray.testing.assert_identical(complete, again)


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path):
    program = """
        import os, signal, sys
        import jax
        jax.config.update("jax_enable_x64", True)
        import ergodax as ex
        from ergodax import sweep as module

        def build(theta):
            learner = ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(theta["tau"]))
            wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])
            return wrapped, wrapped.init()

        class Killing:
            def __init__(self, *args, initial=0, **options):
                print("found", initial)
                self.left = int(sys.argv[2])
            def __enter__(self):
                return self
            def __exit__(self, *args):
                pass
            def update(self, count):
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.modules["ergodax.studies.sweep"].tqdm = Killing
        thetas = {"tau": [0.4, 0.5, 1.0, 2.0, 3.0]}
        data = ex.sweep(build, thetas, [3.0], folder=sys.argv[1], batch_size=1)
        assert float(abs(data.parameters).sum()) > 0
        print("sets", data.sizes["tau"])
    """
    outputs = []
    for steps, code in (("2", -9), ("100", 0)):
        command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "x"), steps]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode == code, ended.stderr
        outputs.append(ended.stdout.split())
    assert outputs == [["found", "0"], ["found", "2", "sets", "5"]]


@pytest.mark.slow
def test_another_sweeps_folder_is_left_untouched(tmp_path):
    thetas, folder = {"tau": [0.5, 0.7, 1.0]}, tmp_path / "sweep"
    ex.sweep(dilemma, thetas, TS, folder=folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def patient(theta):
        wrapped, params0 = dilemma(theta)
        between = jnp.where(theta["tau"] == 0.7, 1.0, 0.0)
        return wrapped, jax.tree.map(lambda leaf: leaf + between, params0)

    for build, changed, ts, options, what in (
        (dilemma, {"tau": [0.5, 0.7, 1.1]}, TS, {}, "sets"),
        (dilemma, thetas, TS[1:], {}, "times"),
        (dilemma, thetas, TS, {"rtol": 1e-6}, "rtol"),
        (patient, thetas, TS, {}, "initial parameters"),
    ):
        with pytest.raises(ValueError, match=f"another sweep, which differs in .*{what}"):
            ex.sweep(build, changed, ts, folder=folder, **options)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no unfinished work"):
        ex.sweep(dilemma, thetas, TS, folder=tmp_path)


def with_function(function):
    """A learner that holds a function."""

    class Bent(ex.QLearning):
        bend: object = None

        def policy(self, params, state):
            return jax.nn.softmax(self.bend(params[state]))

    def build(theta):
        learner = Bent(0.1, 0.9, ex.EpsilonSoftmax(theta["tau"]), 1.0, bend=function)
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])
        return wrapped, wrapped.init()

    return build


@pytest.mark.slow
def test_another_function_is_another_sweep(tmp_path):
    thetas, folder = {"tau": [0.5]}, tmp_path / "sweep"
    found = ex.sweep(with_function(jnp.tanh), thetas, TS, folder=folder)
    # The same class and function, defined anew as another process would.
    again = ex.sweep(with_function(jnp.tanh), thetas, TS, folder=folder)
    xarray.testing.assert_identical(again, found)
    with pytest.raises(ValueError, match="differs in games, learners and initial parameters"):
        ex.sweep(with_function(jnp.sin), thetas, TS, folder=folder)


@pytest.mark.slow
def test_processes_that_share_a_folder_spoil_nothing(tmp_path):
    """Two processes with batches of other sizes do the same sets twice."""
    thetas, folder = {"tau": np.linspace(0.4, 2, 7)}, tmp_path / "sweep"
    expected = ex.sweep(dilemma, thetas, TS, batch_size=3, folder=folder)
    ex.sweep(dilemma, thetas, TS, batch_size=2, folder=tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        path.replace(folder / path.name)
    assert len(list(folder.iterdir())) > 4
    found = ex.sweep(dilemma, thetas, TS, folder=folder)
    xarray.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_what_a_killed_process_left_behind_does_not_block(tmp_path):
    (tmp_path / ".piece-00000000.0123.tmp").write_bytes(b"cut off")
    data = ex.sweep(dilemma, {"tau": [0.5]}, TS, folder=tmp_path)
    assert data.result == 0


@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "folder"])
def test_damaged_pieces_are_named_and_left_alone(tmp_path, damage):
    thetas = {"tau": [0.5]}
    ex.sweep(dilemma, thetas, TS, folder=tmp_path)
    (piece,) = tmp_path.iterdir()
    content = {"cut short": piece.read_bytes()[:-9], "empty": b"", "text": b"mine"}.get(damage)
    piece.unlink()
    if content is None:
        piece.mkdir()
    else:
        piece.write_bytes(content)
    with pytest.raises(ValueError, match=f"{piece.name}.*it was left as it is"):
        ex.sweep(dilemma, thetas, TS, folder=tmp_path)
    assert piece.is_dir() or piece.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(sweep_module, "_solve_batch", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(OSError, match="cannot write in the folder"):
        ex.sweep(dilemma, {"tau": [0.5]}, TS, folder=tmp_path / "file" / "sweep")


def test_a_full_disk_loses_no_set(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"No space left on device.*the sweep goes on"):
        data = ex.sweep(dilemma, {"tau": [0.5]}, TS, folder=tmp_path)
    assert data.result == 0


# Bad input


@pytest.mark.slow
def test_names_of_the_data_set_are_refused_before_the_work():
    def unequal(theta):
        game = ex.MarkovGame.deterministic(np.zeros((1, 2, 3), int), np.ones((1, 2, 3, 2)))
        learners = [ex.ActorCritic(theta["alpha"], 0.1), ex.QLearning(theta["alpha"])]
        wrapped = ex.WrappedGame(game, learners)
        return wrapped, wrapped.init()

    simulation = {"key": jax.random.key(0)}
    taken = {"set", "policy_noise/2"}
    for build in (dilemma, unequal):
        for how in (None, simulation):
            taken |= set(ex.sweep(build, {"alpha": [0.1]}, [1.0], simulation=how).variables)
    taken.remove("alpha")
    assert len(taken) > 20
    for name in taken:
        with pytest.raises(ValueError, match=f"thetas: the name '{name}'"):
            ex.sweep(lambda theta: pytest.fail("it has begun"), {name: [0.1]}, TS)
    free = ex.sweep(dilemma, {"policy_noise": [0.1]}, [1.0])
    assert free.policy_noise.dims == ("policy_noise",)


def test_a_structure_that_changes_names_the_leaf():
    def build(theta):
        cls = ex.Sarsa if theta["tau"] > 1 else ex.ActorCritic
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [cls(0.1), ex.QLearning(0.1)])
        return wrapped, wrapped.init()

    with pytest.raises(
        ValueError, match=r"structure with theta: .*critic_rate .* at tau = 0\.5 and .* at tau = 2"
    ):
        ex.sweep(build, {"tau": [0.5, 2.0]}, TS)


def test_a_build_that_looks_at_values_is_refused():
    def build(theta):
        return dilemma({"tau": theta["tau"] if theta["tau"] > 1 else 1.0 + 0 * theta["tau"]})

    with pytest.raises(ValueError, match=r"use jnp\.where"):
        ex.sweep(build, {"tau": [0.5, 2.0]}, TS)


@pytest.mark.slow
def test_invalid_sets_are_named():
    with pytest.raises(
        ValueError, match=r"EpsilonSoftmax\.temperature must be .* found -1\.0 at tau = -1, gamma"
    ):
        ex.sweep(dilemma, {"tau": [0.5, -1.0], "gamma": [0.5]}, TS)

    def build(theta):
        kernel = jnp.full((2, 2, 2), 0.5).at[0, 0, 0].add(theta["shift"])
        game = ex.MarkovGame.from_dense(kernel, np.ones((2, 2, 1)))
        wrapped = ex.WrappedGame(game, [ex.QLearning(0.1)])
        return wrapped, wrapped.init()

    with pytest.raises(ValueError, match=r"transition probabilities are not valid at shift = 0\.1"):
        ex.sweep(build, {"shift": [0.0, 0.1]}, TS)


@pytest.mark.parametrize(
    ("thetas", "options", "message"),
    [
        ({}, {}, "at least one quantity"),
        ({"tau": [[1.0]]}, {}, r"thetas\['tau'\] must be a list of values"),
        ({"tau": [1.0, np.nan]}, {}, r"thetas\['tau'\] must be finite; found nan"),
        ({"tau": [1.0, 1.0]}, {}, "must be distinct on a grid"),
        ({"time": [1.0]}, {}, "name 'time' is taken by the data set"),
        ({"tau": [1.0], "g": [1.0, 2.0]}, {"design": "paired"}, "same length; found tau: 1, g: 2"),
        ({"tau": [1.0]}, {"simulation": {"runs": 2}}, "at least a random key"),
        (
            {"tau": [1.0]},
            {"simulation": {"key": jax.random.key(0), "observe": None}},
            "simulation takes no 'observe': it takes key, runs, scale, initial_state, dtype",
        ),
        (
            {"tau": [1.0]},
            {"simulation": {"key": jax.random.key(0), "runs": 10**12}},
            "values of 1000000000000 runs needs .* GiB",
        ),
        ({"tau": [1.0]}, {"batch_size": 0}, "batch_size must be a positive integer"),
    ],
)
def test_bad_arguments_are_refused(thetas, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ex.sweep(dilemma, thetas, TS, **options)


def test_build_must_return_one_game():
    def build(theta):
        return jax.vmap(dilemma)({"tau": theta["tau"] * jnp.ones(4)})

    with pytest.raises(ValueError, match="one game, without an axis of runs"):
        ex.sweep(build, {"tau": [1.0]}, TS)


def test_build_must_return_a_game_and_parameters():
    with pytest.raises(ValueError, match="must return a wrapped game and the parameters at time 0"):
        ex.sweep(lambda theta: dilemma(theta)[0], {"tau": [1.0]}, TS)


def test_progress_counts_sets(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ex.sweep(dilemma, {"tau": [0.5, 1.0]}, TS, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_batches_suit_the_size_of_the_game():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("sets",))

    def size(memory, count=10_000):
        game = ex.games.repeated((np.ones((2, 2)), np.ones((2, 2))), memory=memory)
        wrapped = ex.WrappedGame(game, [ex.QLearning(0.1)] * 2)
        return sweep_module._batch_size(None, wrapped, wrapped.init(), 2, mesh, count)

    assert size(1) == 128
    assert size(1, 7) == 7
    assert 2 <= size(4) <= 16
