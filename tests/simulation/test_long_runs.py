"""Long simulations: interrupted, killed, saved, damaged, continued; and cut up in any way."""

import importlib
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax import plot
from ergodax.base import memory
from helpers import interrupt_after

store_module = importlib.import_module("ergodax.io.store")
job_module = importlib.import_module("ergodax.simulation.job")
width_module = importlib.import_module("ergodax.simulation.capacity")

pytestmark = pytest.mark.usefixtures("optimised")

KEY = jax.random.key(3)
TIMES = np.array([0.0, 7.0, 8.0, 30.0])


@pytest.fixture(scope="module")
def wrapped():
    game = ex.games.prisoners_dilemma(1.5)
    learner = ex.QLearning(0.3, 0.9, ex.EpsilonSoftmax(0.5, 0.1), initial=2.0)
    return ex.WrappedGame(game, [learner, ex.Sarsa(0.2, 0.8)])


def simulate(wrapped, ts=TIMES, **options):
    options = dict(scale=3, runs=300, key=KEY, keep_runs=True, batch_size=64) | options
    return ex.simulate(wrapped, wrapped.init(), ts, **options)


def assert_same(found, expected, names=("mean", "variance", "values", "rewards", "final")):
    for name in (*names, "state_frequency", "ts", "steps"):
        for a, b in zip(
            *(jax.tree.leaves(getattr(sim, name)) for sim in (found, expected)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def assert_goes_on(later, whole, first):
    """A simulation is what another one is from a report time on."""
    for name in ("mean", "variance"):
        for a, b in zip(
            *(jax.tree.leaves(getattr(sim, name)) for sim in (later, whole)), strict=True
        ):
            np.testing.assert_array_equal(a, b[first:])
    np.testing.assert_array_equal(later.rewards, whole.rewards[first:])
    for a, b in zip(jax.tree.leaves(later.final), jax.tree.leaves(whole.final), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of ten steps, so that intervals are cut and many blocks make a round."""
    limits = width_module.PROCESSOR._replace(block=640)
    monkeypatch.setattr(width_module, "PROCESSOR", limits)
    monkeypatch.setattr(store_module, "_SHARE", 1e9)


def test_plans_cut_long_intervals_and_lose_no_step():
    blocks = job_module.plan(np.array([0, 25, 3, 3, 3, 0, 41]), 10)
    assert all(b.lengths.sum() <= 10 for b in blocks)
    lengths = np.concatenate([b.lengths for b in blocks])
    ends = np.flatnonzero(np.concatenate([b.ends for b in blocks]))
    np.testing.assert_array_equal(np.cumsum(lengths)[ends], np.cumsum([0, 25, 3, 3, 3, 0, 41]))
    assert len({len(b.lengths) for b in blocks}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)])
def test_numbers_do_not_depend_on_how_the_work_is_cut(wrapped, monkeypatch, dtype):
    reference = simulate(wrapped, dtype=dtype)
    assert_same(simulate(wrapped, dtype=dtype, batch_size=512), reference)
    limits = width_module.PROCESSOR._replace(block=640)
    monkeypatch.setattr(width_module, "PROCESSOR", limits)
    assert_same(simulate(wrapped, dtype=dtype), reference, ("mean", "variance", "values", "final"))
    few = simulate(wrapped, TIMES[2:], dtype=dtype)
    for a, b in zip(jax.tree.leaves(few.values), jax.tree.leaves(reference.values), strict=True):
        np.testing.assert_array_equal(a, b[:, 2:])


@pytest.mark.slow
def test_ctrl_c_returns_the_complete_runs(wrapped, short_blocks):
    expected = simulate(wrapped, runs=128)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 25)
        with pytest.warns(
            UserWarning, match="interrupted: 128 of 300 runs are complete, up to t = 30"
        ):
            part = simulate(wrapped)
    assert part.result == ex.RESULTS.interrupted
    assert part.runs == 128
    assert_same(part, expected)


@pytest.mark.slow
def test_ctrl_c_in_the_first_round_returns_the_times_reached(wrapped, short_blocks):
    expected = simulate(wrapped, TIMES[:3], runs=64)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.warns(
            UserWarning, match="interrupted: 64 of 300 runs are complete, up to t = 8"
        ):
            part = simulate(wrapped)
    assert_same(part, expected, ("mean", "variance", "values", "rewards"))
    assert part.final is None
    assert len(plot.parameters(part, 0, 0).get_lines()) == 2
    with pytest.raises(ValueError, match="was interrupted between report times"):
        simulate(wrapped, TIMES[3:], start=part)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            simulate(wrapped, TIMES[3:])


@pytest.mark.slow
def test_runs_with_their_own_games_keep_those_that_are_complete(wrapped, short_blocks):
    games = jax.vmap(lambda _: wrapped)(jnp.arange(300))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.warns(UserWarning, match="interrupted: 64 of 300 runs"):
            part = ex.simulate(
                games, wrapped.init(), TIMES, scale=3, key=KEY, batch_size=64, keep_runs=True
            )
    assert part.wrapped.game.initial.shape == (64, wrapped.game.num_states)
    assert len(plot.policies(part, 0, 0).get_lines()) == 2


@pytest.mark.parametrize("blocks", [1, 4, 11, 24])
def test_an_interrupted_simulation_goes_on_from_its_checkpoint(
    wrapped, short_blocks, tmp_path, blocks
):
    path = tmp_path / "unfinished"
    expected = simulate(wrapped)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, blocks)
        if blocks == 1:
            with pytest.raises(KeyboardInterrupt):
                simulate(wrapped, TIMES[1:], checkpoint=path)
        else:
            with pytest.warns(UserWarning, match="interrupted"):
                simulate(wrapped, TIMES[1:], checkpoint=path)
    started = []
    with pytest.MonkeyPatch.context() as patch:
        run = job_module.Job.run

        def counted(self):
            started.append(self.steps_done)
            yield from run(self)

        patch.setattr(job_module.Job, "run", counted)
        resumed = simulate(wrapped, TIMES[1:], checkpoint=path, batch_size=512)
    assert started[0] > 0
    assert_goes_on(resumed, expected, 1)
    # What is finished is not done again.
    again = simulate(wrapped, TIMES[1:], checkpoint=path)
    assert_same(again, resumed)


@pytest.mark.slow
def test_foreign_and_damaged_checkpoints_are_refused_and_left_alone(wrapped, tmp_path):
    path = tmp_path / "finished"
    simulate(wrapped, checkpoint=path)
    content = path.read_bytes()
    other = ex.WrappedGame(ex.games.prisoners_dilemma(1.6), wrapped.learners)
    for what, change in (
        ("key", lambda: simulate(wrapped, checkpoint=path, key=jax.random.key(4))),
        ("scale", lambda: simulate(wrapped, checkpoint=path, scale=4)),
        ("runs", lambda: simulate(wrapped, checkpoint=path, runs=301)),
        ("law", lambda: simulate(wrapped, checkpoint=path, initial_state=1)),
        ("observe", lambda: simulate(wrapped, checkpoint=path, observe=wrapped.policies)),
        ("params0", lambda: simulate(wrapped, checkpoint=path, dtype=jnp.float32)),
        ("ts", lambda: simulate(wrapped, TIMES[1:], checkpoint=path)),
        ("wrapped", lambda: simulate(other, checkpoint=path)),
    ):
        message = f"belongs to another simulation, which differs in .*{what}.*; give the same"
        with pytest.raises(ValueError, match=message):
            change()
        assert path.read_bytes() == content
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="damaged or cut short"):
        simulate(wrapped, checkpoint=path)
    assert path.read_bytes() == content[:-1]


@pytest.mark.slow
def test_forged_checkpoints_are_refused(wrapped, short_blocks, monkeypatch):
    """With right digests, but with arrays missing, of other shapes, or senseless."""
    states = []
    monkeypatch.setattr(store_module.Store, "save", lambda self, state, **_: states.append(state()))
    interrupt_after(monkeypatch, 11)
    with pytest.warns(UserWarning, match="interrupted"):
        simulate(wrapped)
    monkeypatch.undo()
    limits = width_module.PROCESSOR._replace(block=640)
    monkeypatch.setattr(width_module, "PROCESSOR", limits)
    whole = states[-1]
    assert {"report0", "batch0", "final0", "value0", "merged0"} <= whole.keys()
    forged = [{k: v for k, v in whole.items() if k != name} for name in whole]
    forged += [whole | {name: array[..., None]} for name, array in whole.items()]
    forged += [whole | {name: np.zeros(array.shape, np.float16)} for name, array in whole.items()]
    forged += [whole | {"width": np.array(width)} for width in (0, -64, 63, 192, 2**40)]
    forged += [whole | {"done": np.array(done)} for done in (-1, 10**9)]
    forged += [whole | {"sizes": np.array(sizes, int)} for sizes in ([], [-1, 2], [2**40])]
    for arrays in forged:
        monkeypatch.setattr(store_module.Store, "load", lambda self, arrays=arrays: arrays)
        with pytest.raises(ValueError, match="the checkpoint does not hold what was saved"):
            simulate(wrapped)
    monkeypatch.setattr(store_module.Store, "load", lambda self: whole)
    assert_same(simulate(wrapped), simulate(wrapped, batch_size=512))


@pytest.mark.slow
def test_another_function_is_another_simulation(wrapped, tmp_path):
    """Functions that share a name and a file are told apart by what they do."""
    path = tmp_path / "unfinished"
    options = dict(keep_runs=False, checkpoint=path)
    found = simulate(wrapped, observe=lambda q: q[0][0, 0], **options)
    again = simulate(wrapped, observe=lambda q: q[0][0, 0], **options)
    np.testing.assert_array_equal(again.mean, found.mean)
    with pytest.raises(ValueError, match="differs in observe"):
        simulate(wrapped, observe=lambda q: 100 * q[1][3, 1], **options)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(wrapped, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module.Job, "run", lambda self: pytest.fail("it has begun"))
        with pytest.raises(OSError, match="cannot write in the folder"):
            simulate(wrapped, checkpoint=tmp_path / "file" / "unfinished")
        with pytest.raises(ValueError, match="is no file"):
            simulate(wrapped, checkpoint=tmp_path)


def test_a_full_disk_loses_neither_the_run_nor_what_was_saved(
    wrapped, short_blocks, tmp_path, monkeypatch
):
    path = tmp_path / "unfinished"
    expected = simulate(wrapped)
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert_same(simulate(wrapped, checkpoint=path), expected)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["unfinished"]
    assert_same(simulate(wrapped, checkpoint=path), expected)


SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import ergodax as ex
from ergodax import plot
from ergodax.io import store
store._SHARE = 1e9
game = ex.games.prisoners_dilemma(1.5)
wrapped = ex.WrappedGame(game, [ex.QLearning(0.3), ex.Sarsa(0.2)])
sim = ex.simulate(
    wrapped, wrapped.init(), np.linspace(0, 40000, 401), scale=2, runs=300, batch_size=64,
    key=jax.random.key(0), checkpoint=sys.argv[1] if len(sys.argv) > 2 else None
)
np.savez(sys.argv[-1], *jax.tree.leaves((sim.mean, sim.variance, sim.rewards, sim.final)))
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_as_if_it_had_not_been(tmp_path):
    """SIGKILL at several moments, some of them while the checkpoint is being written."""
    path = tmp_path / "unfinished"
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run([*command, str(tmp_path / "whole.npz")], check=True)
    sizes = []
    for kill in range(4):
        process = subprocess.Popen([*command, str(path), str(tmp_path / "resumed.npz")])
        before = path.read_bytes() if path.exists() else b""
        deadline = time.monotonic() + 60
        while (path.read_bytes() if path.exists() else b"") == before:
            assert time.monotonic() < deadline, "nothing was saved"
            assert process.poll() is None, "the process ended before it could be killed"
            time.sleep(0.001)
        time.sleep(0.03 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(path.stat().st_size)
    assert not (tmp_path / "resumed.npz").exists()
    subprocess.run([*command, str(path), str(tmp_path / "resumed.npz")], check=True)
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "resumed.npz") as resumed:
        assert whole.files == resumed.files
        for name in whole.files:
            np.testing.assert_array_equal(resumed[name], whole[name])


@pytest.mark.slow
def test_a_simulation_goes_on_where_it_ended(wrapped):
    for dtype in (jnp.float32, jnp.float64):
        whole = simulate(wrapped, dtype=dtype)
        first = simulate(wrapped, TIMES[:2], dtype=dtype)
        second = ex.simulate(
            wrapped, None, TIMES[2:], scale=3, key=KEY, start=first, keep_runs=True
        )
        assert_goes_on(second, whole, 2)
    with pytest.raises(ValueError, match="another key"):
        simulate(wrapped, TIMES[2:], start=first, key=jax.random.key(9))
    with pytest.raises(ValueError, match="initial_state and start cannot both be given"):
        simulate(wrapped, TIMES[2:], start=first, initial_state=1)
    with pytest.raises(ValueError, match="start has parameters in float64; found dtype float32"):
        simulate(wrapped, TIMES[2:], start=first, dtype=jnp.float32)
    others = ex.WrappedGame(wrapped.game, [wrapped.learners[0]] * 2)
    with pytest.raises(ValueError, match="start was simulated with another value of learners"):
        simulate(others, TIMES[2:], start=first)
    others = ex.WrappedGame(ex.games.prisoners_dilemma(1.6), wrapped.learners)
    with pytest.raises(ValueError, match="start was simulated with another value of game"):
        simulate(others, TIMES[2:], start=first)
    others = ex.WrappedGame(wrapped.game, [ex.QLearning(0.3, 0.8), wrapped.learners[1]])
    with pytest.raises(ValueError, match="start was simulated with another value of learners"):
        simulate(others, TIMES[2:], start=first)
    with pytest.raises(ValueError, match="start has scale 3; found scale 4"):
        simulate(wrapped, TIMES[2:], start=first, scale=4)
    with pytest.raises(ValueError, match="start has reached t = 7; ts must not begin before, at 0"):
        simulate(wrapped, TIMES, start=first)
    with pytest.raises(ValueError, match="the numbers of runs differ: runs has 5"):
        simulate(wrapped, TIMES[2:], start=first, runs=5)


def test_results_that_do_not_fit_are_refused_before_the_work(wrapped, monkeypatch):
    with pytest.raises(ValueError, match=r"needs .* GiB but .* leave keep_runs out"):
        simulate(wrapped, np.arange(10**5), runs=10**8)
    with pytest.raises(ValueError, match=r"needs .* simulate fewer runs at once"):
        simulate(wrapped, runs=10**10, keep_runs=False)

    def large(params):
        return jnp.zeros(10**9)

    with pytest.raises(ValueError, match=r"means and variances of .* needs .* observe less"):
        simulate(wrapped, np.arange(10.0), keep_runs=False, observe=large)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**30)
    with pytest.raises(ValueError, match=r"at 1000000 times needs .* report fewer times"):
        simulate(wrapped, np.arange(1e6), runs=1, keep_runs=False)
    with pytest.raises(ValueError, match=r"a game of 4\^20 states needs .* fewer rounds"):
        ex.games.repeated((np.zeros((2, 2)),) * 2, memory=20)
    with pytest.raises(ValueError, match=r"1000000000 kinks needs .* lower max_kinks"):
        ex.fluctuations(wrapped, wrapped.init(), [1.0], max_kinks=10**9)
    with pytest.raises(ValueError, match="count must be about the number of cores"):
        ex.use_all_cores(100_000)


DEVICES = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import ergodax as ex
from ergodax import plot
ex.use_all_cores(int(sys.argv[1]))
assert jax.device_count() == int(sys.argv[1])
game = ex.games.prisoners_dilemma(1.5)
wrapped = ex.WrappedGame(game, [ex.QLearning(0.3), ex.ActorCritic(0.2)])
out = []
for dtype in ("float32", "float64"):
    sim = ex.simulate(
        wrapped, wrapped.init(), [1.0, 20.0, 50.0], scale=2, runs=700, key=jax.random.key(0),
        dtype=dtype, keep_runs=True
    )
    out += jax.tree.leaves((sim.mean, sim.variance, sim.values, sim.rewards, sim.final))
np.savez(sys.argv[2], *out)
try:
    ex.use_all_cores(int(sys.argv[1]) + 1)
except RuntimeError as error:
    assert "JAX has already started" in str(error)
else:
    raise AssertionError("devices changed under way")
"""


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_number_of_devices(tmp_path):
    for count in (1, 2, 3):
        command = [sys.executable, "-c", DEVICES, str(count), str(tmp_path / f"{count}.npz")]
        subprocess.run(command, check=True)
    with np.load(tmp_path / "1.npz") as one:
        for count in (2, 3):
            with np.load(tmp_path / f"{count}.npz") as several:
                for name in one.files:
                    np.testing.assert_array_equal(several[name], one[name])


def test_the_number_of_devices_must_be_positive():
    with pytest.raises(ValueError, match="count must be a positive integer; found 0"):
        ex.use_all_cores(0)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_runs_do_not_depend_on_their_number_with_keys_of_any_kind(wrapped, kind):
    key = jax.random.key(3, impl=kind)
    few, many = (simulate(wrapped, runs=runs, key=key) for runs in (3, 130))
    for own, among_many in zip(
        jax.tree.leaves(few.values), jax.tree.leaves(many.values), strict=True
    ):
        np.testing.assert_array_equal(own, among_many[:3])
