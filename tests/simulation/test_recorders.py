"""Recorders of a user's own: against brute force, and however the work is cut."""

import os
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.simulation import capacity
from helpers import interrupt_after

KEY = jax.random.key(4)


class TimeAverage(ex.AbstractRecorder):
    """Mean over all steps of what is observed of the parameters after each."""

    observe: Any

    def init(self, wrapped, params):
        return jax.tree.map(jnp.zeros_like, self.observe(params)), jnp.zeros(())

    def update(self, state, event, before, after):
        total, steps = state
        return jax.tree.map(jnp.add, total, self.observe(after)), steps + 1

    def report(self, state):
        total, steps = state
        share = 1 / steps  # a division would have other bits on several devices
        return jax.tree.map(lambda leaf: leaf * share, total), state


class FirstPassage(ex.AbstractRecorder):
    """When agent 0's first parameter first lies below a level; infinite until then."""

    level: jax.Array

    def init(self, wrapped, params):
        return jnp.asarray(jnp.inf)

    def update(self, state, event, before, after):
        reached = after[0].ravel()[0] < self.level
        return jnp.minimum(state, jnp.where(reached, event.time, jnp.inf))

    def report(self, state):
        return state, state


class JointActions(ex.AbstractRecorder):
    """How often every joint action was played in every state since the last report."""

    def init(self, wrapped, params):
        game = wrapped.game
        return jnp.zeros((game.num_states, *game.num_actions), jnp.int32)

    def update(self, state, event, before, after):
        return state.at[(event.state, *event.joint_action)].add(1)

    def report(self, state):
        return state, jnp.zeros_like(state)


def build(theta):
    """Two states, two and three actions, learners of two kinds, of which one needs its action."""
    rng = np.random.default_rng(3)
    game = ex.MarkovGame.from_dense(
        rng.dirichlet(np.ones(2), size=(2, 2, 3)), rng.normal(size=(2, 2, 3, 2))
    )
    explore = ex.EpsilonSoftmax(theta, 0.1)
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.5, 0.6, explore), ex.Sarsa(0.4, 0.5, explore)])
    return wrapped, wrapped.init()


@pytest.fixture(scope="module")
def wrapped():
    return build(0.6)[0]


def simulate(wrapped, ts, recorder, runs=70, **options):
    options = {"scale": 2.0, "key": KEY, "keep_runs": True, "batch_size": 64} | options
    return ex.simulate(wrapped, wrapped.init(), ts, runs=runs, recorder=recorder, **options)


@pytest.mark.slow
def test_time_average_of_policies(wrapped):
    """That of a simulation that keeps every step."""
    every = ex.simulate(
        *(wrapped, wrapped.init(), np.arange(1, 41) / 2),
        **dict(scale=2.0, runs=70, key=KEY, keep_runs=True, observe=wrapped.policies),
    )
    sim = simulate(wrapped, [0.0, 5.0, 20.0], TimeAverage(wrapped.policies))
    for found, mean, variance, steps in zip(
        *(sim.recorded.values, sim.recorded.mean, sim.recorded.variance, every.values), strict=True
    ):
        assert np.isnan(found[:, 0]).all()
        for k, count in ((1, 10), (2, 40)):
            np.testing.assert_allclose(found[:, k], steps[:, :count].mean(axis=1), rtol=1e-12)
            np.testing.assert_allclose(mean[k], found[:, k].mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(variance[k], found[:, k].var(axis=0, ddof=1), rtol=1e-10)


@pytest.mark.slow
def test_first_passage(wrapped):
    ts = np.arange(0, 61) / 2
    first = simulate(wrapped, ts, None).values[0][:, :, 0, 0]
    level = float(np.median(first[:, 20]))
    sim = simulate(wrapped, [4.0, 30.0], FirstPassage(jnp.asarray(level)))
    below = first[:, 1:] < level
    expected = np.where(below.any(axis=1), ts[1 + below.argmax(axis=1)], np.inf)
    assert 0 < np.isinf(expected).sum() < 70
    np.testing.assert_array_equal(sim.recorded.values[:, 1], expected)
    np.testing.assert_array_equal(
        sim.recorded.values[:, 0], np.where(expected <= 4, expected, np.inf)
    )


@pytest.mark.slow
def test_histogram_of_joint_actions(wrapped):
    """It starts anew at every report, and adds up to the visits of states."""
    sim = simulate(wrapped, [0.0, 3.0, 10.0], JointActions())
    counts = sim.recorded.values
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts.sum(axis=(2, 3, 4)), np.tile([0, 6, 14], (70, 1)))
    visits = counts.sum(axis=(3, 4)).mean(axis=0)[1:]
    np.testing.assert_allclose(visits / [[6], [14]], sim.state_frequency[1:], rtol=1e-12)
    # The first step of every run is drawn from the initial law and the initial policies.
    one = simulate(wrapped, [0.5], JointActions(), runs=20_000, batch_size=512, keep_runs=False)
    assert one.recorded.values is None
    law = np.array(wrapped.game.initial)
    for policy in wrapped.policies(wrapped.init()):
        law = law[..., None] * np.expand_dims(policy, tuple(range(1, law.ndim)))
    error = np.sqrt(law * (1 - law) / 20_000)
    assert (np.abs(one.recorded.mean[0] - law) < 5 * error).all()
    np.testing.assert_allclose(one.recorded.variance[0], law * (1 - law), atol=0.01)


def assert_same(found, expected):
    for a, b in zip(
        *(jax.tree.leaves((s.recorded, s.mean, s.rewards)) for s in (found, expected)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_records_are_labelled_and_saved(wrapped, tmp_path):
    options = {"scale": 3, "runs": 5, "key": KEY, "keep_runs": True}
    found = ex.simulate(wrapped, wrapped.init(), [2.0, 4.0], recorder=JointActions(), **options)
    data = found.to_xarray()
    assert data.recorded.dims[0] == "time"
    assert data.recorded_runs.dims[:2] == ("run", "time")
    assert data.recorded_runs.shape == (5, 2, 2, 2, 3)
    np.testing.assert_array_equal(data.recorded, found.recorded.mean)
    np.testing.assert_array_equal(data.recorded_variance, found.recorded.variance)
    ex.io.save(found, tmp_path / "a.nc")
    again = ex.io.load(tmp_path / "a.nc")
    np.testing.assert_array_equal(again.recorded.values, found.recorded.values)


def test_without_a_recorder_and_with_one_the_rest_is_the_same(wrapped):
    ts = [0.0, 5.0, 20.0]
    plain, sim = simulate(wrapped, ts, None), simulate(wrapped, ts, JointActions())
    assert plain.recorded is None
    assert_same(eqx.tree_at(lambda s: s.recorded, sim, None), plain)


@pytest.mark.slow
def test_records_do_not_depend_on_how_the_work_is_cut(wrapped, monkeypatch):
    ts, recorder = [0.0, 5.0, 20.0, 50.0], TimeAverage(wrapped.policies)
    expected = simulate(wrapped, ts, recorder, runs=150)
    assert_same(simulate(wrapped, ts, recorder, runs=150, batch_size=512), expected)
    # Blocks of ten steps: intervals are cut.
    monkeypatch.setattr(capacity, "PROCESSOR", capacity.PROCESSOR._replace(block=640))
    assert_same(simulate(wrapped, ts, recorder, runs=150), expected)
    # The last report does not depend on whether others come before.
    last = simulate(wrapped, ts[-1:], recorder, runs=150)
    for a, b in zip(*map(jax.tree.leaves, (last.recorded, expected.recorded)), strict=True):
        np.testing.assert_array_equal(a.take(-1, int(a.ndim > 3)), b.take(-1, int(b.ndim > 3)))


@pytest.mark.parametrize("blocks", [2, 17])
def test_records_go_on_from_a_checkpoint(wrapped, monkeypatch, tmp_path, blocks):
    ts, recorder = [1.0, 20.0, 50.0], TimeAverage(wrapped.policies)
    monkeypatch.setattr(capacity, "PROCESSOR", capacity.PROCESSOR._replace(block=640))
    expected = simulate(wrapped, ts, recorder, runs=150)
    options = {"runs": 150, "checkpoint": tmp_path / "unfinished"}
    with monkeypatch.context() as patch:
        interrupt_after(patch, blocks)
        with pytest.warns(UserWarning, match="interrupted"):
            simulate(wrapped, ts, recorder, **options)
    assert_same(simulate(wrapped, ts, recorder, **options), expected)
    with pytest.raises(ValueError, match="belongs to another"):
        simulate(wrapped, ts, JointActions(), **options)


@pytest.mark.slow
def test_runs_with_games_of_their_own_have_recorders_of_their_own():
    temperatures, ts = jnp.array([0.3, 0.6, 0.9]), [10.0]
    many, starts = jax.vmap(build)(temperatures)
    options = {"scale": 2.0, "key": KEY, "keep_runs": True}
    own = ex.simulate(many, starts, ts, recorder=TimeAverage(many.policies), **options)
    for k, temperature in enumerate(temperatures):
        wrapped, _ = build(temperature)
        sim = simulate(wrapped, ts, TimeAverage(wrapped.policies), runs=3)
        for a, b in zip(own.recorded.values, sim.recorded.values, strict=True):
            np.testing.assert_allclose(a[k], b[k], rtol=1e-12)
    with pytest.raises(ValueError, match="all arrays in recorder must have a leading axis of runs"):
        ex.simulate(many, starts, ts, recorder=FirstPassage(jnp.asarray(0.0)), **options)
    with pytest.raises(ValueError, match="arrays in recorder must have a leading axis of 3 runs"):
        ex.simulate(many, starts, ts, recorder=FirstPassage(jnp.zeros(2)), **options)


DEVICES = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import ergodax as ex
ex.use_all_cores(int(sys.argv[1]))
from test_recorders import TimeAverage, build, simulate
wrapped = build(0.6)[0]
sim = simulate(wrapped, [5.0, 20.0], TimeAverage(wrapped.policies), runs=500)
np.savez(sys.argv[2], *jax.tree.leaves(sim.recorded))
"""


@pytest.mark.slow
def test_records_do_not_depend_on_the_number_of_devices(tmp_path):
    found = []
    for count in (1, 3):
        path = tmp_path / f"{count}.npz"
        places = [os.path.dirname(__file__), *sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
        command = [sys.executable, "-c", DEVICES, str(count), str(path)]
        subprocess.run(command, check=True, env=environment)
        with np.load(path) as archive:
            found.append(dict(archive))
    for name, expected in found[0].items():
        np.testing.assert_array_equal(found[1][name], expected)


class Growing(JointActions):
    def update(self, state, event, before, after):
        return jnp.stack([state, state])


class Forgetful(JointActions):
    def report(self, state):
        return state


class Rounding(JointActions):
    def report(self, state):
        return state, state / 2


@pytest.mark.parametrize(
    ("recorder", "message"),
    [
        (Growing(), r"recorder.update must return a state .*init does: int32\[2, 2, 3\]; found"),
        (Forgetful(), r"recorder.report must return a pair"),
        (Rounding(), r"recorder.report must return a state .*; found float\d\d\[2, 2, 3\]"),
    ],
)
def test_states_that_change_their_form_are_refused(wrapped, recorder, message):
    with pytest.raises(ValueError, match=message):
        simulate(wrapped, [1.0], recorder)
