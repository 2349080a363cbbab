"""Runs that stop by themselves: where brute force says, and as `simulate` has them there."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.simulation import capacity, pool
from helpers import annotations_off, interrupt_after

pytestmark = pytest.mark.usefixtures("optimised")

KEY = jax.random.key(5)
STEPS, WAIT, RUNS = 90, 40, 150


def build(rate, discount=0.9):
    """Fading epsilon-greedy Q-learning against SARSA, in a prisoner's dilemma with memory."""
    explore = ex.EpsilonGreedy(ex.schedules.exponential(1.0, rate=rate))
    game = ex.games.prisoners_dilemma(1.5)
    learners = [ex.QLearning(0.3, discount, explore), ex.Sarsa(0.2, 0.8, explore)]
    return ex.WrappedGame(game, learners)


class States(ex.AbstractRecorder):
    """The state of the game after the last step."""

    def init(self, wrapped, params):
        return jnp.zeros((), jnp.int32)

    def update(self, state, event, before, after):
        return event.next_state

    def report(self, state):
        return state, state


class Gained(ex.AbstractRecorder):
    """Stops where the sum of agent 0's rewards reaches a level."""

    level: jax.Array

    def init(self, wrapped, params):
        return jnp.zeros(())

    def update(self, state, event, before, after):
        return state + event.rewards[0]

    def done(self, state):
        return state >= self.level

    def report(self, state):
        return {"gained": state}, state


def simulate_until(wrapped, until, **options):
    options = dict(max_steps=STEPS, runs=RUNS, key=KEY, batch_size=64) | options
    return ex.simulate_until(wrapped, wrapped.init(), until, **options)


@pytest.fixture(scope="module")
def wrapped():
    return build(0.02)


@pytest.fixture(scope="module")
def every_step(wrapped):
    """What `simulate` reports after each step, all runs: parameters, states."""
    ts = np.arange(STEPS + 1.0)
    options = dict(runs=RUNS, key=KEY, recorder=States(), keep_runs=True, batch_size=256)
    sim = ex.simulate(wrapped, wrapped.init(), ts, **options)
    return jax.tree.leaves(sim.values), sim.recorded.values


@pytest.fixture(scope="module")
def found(wrapped):
    with pytest.warns(UserWarning, match="of 150 runs did not meet the criterion within"):
        return simulate_until(wrapped, ex.until.greedy_unchanged(WAIT))


def tables(wrapped, leaves):
    """The two agents' action values after every step, `[R, K, S, A]`."""
    return [leaf for leaf in leaves if leaf.ndim == 4]


def first_after(fits):
    """The first step at which something holds, of every run; -1 where it never does."""
    return np.where(fits.any(axis=1), fits.argmax(axis=1), -1)


def held_for(same, count):
    """Where something has been so in each of the last steps, `[R, K]`; `same[:, 0]` is no step."""
    run = np.zeros(same.shape, int)
    for k in range(1, same.shape[1]):
        run[:, k] = np.where(same[:, k], run[:, k - 1] + 1, 0)
    return run >= count


def assert_same(one, other):
    for a, b in zip(
        jax.tree.leaves((one.steps, one.reached, one.lost, one.recorded, one.final)),
        jax.tree.leaves((other.steps, other.reached, other.lost, other.recorded, other.final)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_runs_stop_where_brute_force_says(wrapped, every_step, found):
    greedy = [t == t.max(axis=-1, keepdims=True) for t in tables(wrapped, every_step[0])]
    same = np.ones((RUNS, STEPS + 1), bool)
    for best in greedy:
        same[:, 1:] &= (best[:, 1:] == best[:, :-1]).all(axis=(2, 3))
    expected = first_after(held_for(same, WAIT))
    assert 5 < (expected < 0).sum() < 145  # some do, some do not
    np.testing.assert_array_equal(found.reached, expected > 0)
    np.testing.assert_array_equal(found.steps, np.where(expected > 0, expected, STEPS))
    excess = found.steps_to_convergence
    np.testing.assert_array_equal(excess[found.reached], expected[expected > 0] - WAIT)
    assert np.isnan(excess[~found.reached]).all()
    changes = [(~same[r, : n + 1]).sum() for r, n in enumerate(found.steps)]
    np.testing.assert_array_equal(found.recorded["changes"], changes)
    assert found.result == ex.RESULTS.unreached
    assert found.runs == RUNS


def test_runs_are_those_of_simulate(every_step, found):
    values, states = every_step
    run = np.arange(RUNS)
    for a, b in zip(jax.tree.leaves(found.params), values, strict=True):
        np.testing.assert_array_equal(a, b[run, found.steps])
    np.testing.assert_array_equal(found.state, states[run, found.steps])


@pytest.mark.slow
def test_numbers_do_not_depend_on_who_shares_the_batch(wrapped, found, monkeypatch):
    with pytest.warns(UserWarning, match="did not meet"):
        alone = simulate_until(wrapped, found.until, batch_size=512, runs=400)
    for a, b in zip(jax.tree.leaves(alone.final), jax.tree.leaves(found.final), strict=True):
        np.testing.assert_array_equal(a[:RUNS], b)
    np.testing.assert_array_equal(alone.steps[:RUNS], found.steps)
    short_blocks(monkeypatch)
    for batch_size in (64, 512):
        with pytest.warns(UserWarning, match="did not meet"):
            other = simulate_until(wrapped, found.until, batch_size=batch_size)
        assert_same(other, found)


def short_blocks(monkeypatch):
    """Blocks of 7 steps at most, and lanes looked at every second step."""
    limits = capacity.PROCESSOR._replace(block=64 * 7)
    monkeypatch.setattr(capacity, "PROCESSOR", limits)
    monkeypatch.setattr(pool, "_LOOK", 128)


def test_parameters_settle_where_brute_force_says(wrapped, every_step):
    tolerance, wait = 2.0, 15
    until = ex.until.settled(tolerance, wait)
    with pytest.warns(UserWarning, match="did not meet the criterion"):
        found = simulate_until(wrapped, until)
    series = np.concatenate(
        [t.reshape(*t.shape[:2], -1) for t in tables(wrapped, every_step[0])], axis=2
    )
    for run in range(RUNS):
        begun, steps, windows = 0, STEPS, 1
        for k in range(1, STEPS + 1):
            if np.abs(series[run, k] - series[run, begun]).max() >= tolerance:
                begun, windows = k, windows + 1
            elif k - begun == wait:
                steps = k
                break
        assert found.steps[run] == steps
        assert found.recorded["windows"][run] == windows
        assert found.reached[run] == (steps - begun == wait)
    assert 5 < found.reached.sum() < 145


@pytest.mark.slow
def test_a_users_criterion_stops_runs(wrapped, every_step):
    found = simulate_until(wrapped, Gained(jnp.asarray(-np.inf)))
    assert not found.steps.any()  # met before the first step
    for a, b in zip(jax.tree.leaves(found.params), every_step[0], strict=True):
        np.testing.assert_array_equal(a, b[:, 0])
    found = simulate_until(wrapped, Gained(jnp.asarray(60.0)), scale=2.0)
    assert found.reached.all()
    assert (found.recorded["gained"] >= 60).all()
    assert (found.recorded["gained"] < 65).all()
    np.testing.assert_array_equal(found.steps_to_convergence, found.steps)


@pytest.mark.slow
def test_every_run_has_its_own_game():
    rates = jnp.linspace(0.01, 0.3, 70)
    many = jax.vmap(build)(rates)
    starts = jax.vmap(lambda rate: build(rate).init())(rates)
    options = dict(max_steps=400, key=KEY)
    found = ex.simulate_until(many, starts, ex.until.greedy_unchanged(WAIT), **options)
    for run in (0, 33, 69):
        own = build(rates[run])
        alone = simulate_until(own, found.until, max_steps=400, runs=70)
        assert found.steps[run] == alone.steps[run]
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(a[run], b[run], rtol=1e-12)
    levels = Gained(jnp.linspace(1.0, 50.0, 70))
    found = ex.simulate_until(many, starts, levels, **options)
    assert (found.recorded["gained"] >= levels.level).all()
    assert (np.diff(found.steps).mean()) > 0


@pytest.mark.slow
def test_unfinished_work_goes_on(wrapped, found, tmp_path, monkeypatch):
    path = tmp_path / "unfinished"
    short_blocks(monkeypatch)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8, pool.Pool)
        with pytest.warns(UserWarning, match=r"interrupted: \d+ of 150 runs have stopped; '"):
            part = simulate_until(wrapped, found.until, checkpoint=path)
    assert part.result == ex.RESULTS.interrupted
    assert 0 < part.reached.sum() < found.reached.sum()
    assert (part.steps == 0).any()
    np.testing.assert_array_equal(part.steps[part.reached], found.steps[part.reached])
    for more, taken in (
        ({"checkpoint": path, "batch_size": 128}, True),
        ({"checkpoint": path}, False),  # all is done
        ({"start": part}, True),
    ):
        with pytest.warns(UserWarning, match="did not meet"):
            later = simulate_until(wrapped, found.until, **more)
        assert_same(later, found)
        assert (later.steps_taken > 0) == taken
    with pytest.raises(ValueError, match="differs in max_steps"):
        simulate_until(wrapped, found.until, checkpoint=path, max_steps=STEPS + 1)
    with pytest.raises(ValueError, match="start waited for another criterion"):
        simulate_until(wrapped, ex.until.greedy_unchanged(2), start=part)


def test_runs_that_did_not_stop_go_on(wrapped, found):
    longer = simulate_until(wrapped, found.until, max_steps=300)
    assert_same(simulate_until(wrapped, found.until, max_steps=300, start=found), longer)
    with pytest.raises(ValueError, match="start has taken 90 steps; max_steps must not be fewer"):
        simulate_until(wrapped, found.until, max_steps=89, start=found)


class Broken(ex.QLearning):
    """Its policy is none once a value is large."""

    def policy(self, params, state):
        return super().policy(params, state) * jnp.where(params.max() > 2.5, 2.0, 1.0)


@pytest.mark.slow
def test_lost_runs_stop_and_are_counted():
    game = ex.games.prisoners_dilemma(1.5)
    wrapped = ex.WrappedGame(game, [Broken(0.1), ex.QLearning(0.3)])
    until = ex.until.greedy_unchanged(STEPS)
    with pytest.warns(UserWarning, match="of 150 runs are lost: .* of agent 0"):
        found = simulate_until(wrapped, until)
    with pytest.warns(UserWarning, match="lost"):
        sim = ex.simulate(wrapped, wrapped.init(), [float(STEPS)], runs=RUNS, key=KEY)
    lost = np.isnan(sim.final.params[0]).all(axis=(1, 2))
    assert 0 < lost.sum() <= RUNS
    np.testing.assert_array_equal(found.lost, lost)
    assert found.result == ex.RESULTS.invalid_policy
    assert not found.reached[lost].any()
    assert (found.steps[lost] < STEPS).any()
    assert np.isnan(found.params[0][lost]).all()


def test_what_can_never_be_met_is_refused(wrapped):
    refusals = {
        "it waits for 91 steps without a change, and max_steps is 90": (
            ex.until.greedy_unchanged(91)
        ),
        "a recorder with a method done.state.*found States, which has none": States(),
        "found the class GreedyUnchanged": ex.until.GreedyUnchanged,
    }
    for message, until in refusals.items():
        with annotations_off(), pytest.raises(ValueError, match=message):
            simulate_until(wrapped, until)

    class Several(Gained):
        def done(self, state):
            return jnp.stack([state, state]) > 0

    with pytest.raises(ValueError, match=r"until\.done must return one truth value"):
        simulate_until(wrapped, Several(jnp.asarray(0.0)))
    no_table = ex.WrappedGame(wrapped.game, [Without()] * 2)
    with pytest.raises(ValueError, match=r"agent 0 \(Without\) has 0. Write a criterion"):
        simulate_until(no_table, ex.until.greedy_unchanged(2))


class Without(ex.AbstractLearner):
    """A learner without a table."""

    def init(self, game, agent, *, key):
        return jnp.zeros(())

    def policy(self, params, state):
        return jax.nn.softmax(jnp.stack([params, 0.0]))

    def update(self, params, transition, game, agent):
        return transition.reward


@pytest.mark.parametrize("kind", ["wolf", "falling", "observing", "actor_critic", "dense"])
def test_tables_are_found(kind):
    game = ex.games.prisoners_dilemma(1.5)
    learner, leaf, rows = {
        "wolf": (ex.WolfPHC(), 1, (0, 1, 2, 3)),
        "falling": (ex.FallingRate(ex.QLearning()), 0, (0, 1, 2, 3)),
        "observing": (ex.Observing(ex.QLearning(), [0, 1, 1, 0]), 0, (0, 1, 1, 0)),
        "actor_critic": (ex.ActorCritic(), 0, (0, 1, 2, 3)),
        "dense": (Dense(), 0, None),
    }[kind]
    wrapped = ex.WrappedGame(game, [learner, learner])
    fitted = ex.until.fitted(ex.until.greedy_unchanged(5), wrapped, wrapped.init())
    assert [tuple(one) for one in fitted.watched] == [(0, leaf, rows), (1, leaf, rows)]


class Dense(ex.QLearning):
    """Increments are tables."""

    def update(self, params, transition, game, agent):
        own = super().update(params, transition, game, agent)
        return jnp.zeros_like(params).at[own.index].add(own.value)


DEVICES = """
import os, sys
import jax
import numpy as np
import ergodax as ex
ex.use_all_cores(int(sys.argv[1]))
explore = ex.EpsilonGreedy(ex.schedules.exponential(1.0, rate=0.05))
wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [ex.QLearning(0.3, 0.9, explore)] * 2)
found = ex.simulate_until(
    wrapped, wrapped.init(), ex.until.greedy_unchanged(40), max_steps=2000, runs=300,
    key=jax.random.key(0), batch_size=64,
)
np.savez(sys.argv[2], found.steps, found.recorded["changes"], *jax.tree.leaves(found.final))
"""


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_number_of_devices(tmp_path):
    for count in (1, 2):
        command = [sys.executable, "-c", DEVICES, str(count), str(tmp_path / f"{count}.npz")]
        subprocess.run(command, check=True, env=os.environ)
    with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as several:
        for name in one.files:
            np.testing.assert_array_equal(several[name], one[name])
