"""The simulator: its law, its numbers, its precision.

Three kinds of checks. *Replays*: NumPy follows the same random numbers through the oracle's
learners, and every number must agree. *Laws*: all paths of a small game are enumerated, and the
simulated ensemble must follow that law. *Frequencies*: long runs against the stationary law.

Statistical bounds: every comparison fails by chance with probability 4e-9 at most (a p-value below
P_VALUE, a normal variable beyond 5.9 standard deviations, divided by the number of comparisons
where many are made), and there are fewer than 200: false alarms stay below 1e-6. Seeds are fixed
besides.
"""

import importlib
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree
from scipy.spatial import cKDTree

import ergodax as ex
import oracle
from ergodax.simulation.streams import run_keys, uniforms
from helpers import (
    KINDS,
    Case,
    Spec,
    annotations_off,
    make_learner,
    make_oracle_learner,
    random_case,
    random_game,
    unflatten,
)

pytestmark = pytest.mark.usefixtures("optimised")

P_VALUE = 4e-9

KEY = jax.random.key(0)
# The module: the package has the function under this name.
job_module = importlib.import_module("ergodax.simulation.job")
block_module = importlib.import_module("ergodax.simulation.block")
kernel_module = importlib.import_module("ergodax.simulation.step")
recorders_module = importlib.import_module("ergodax.simulation.recorders")


def rows(values):
    """Values of all runs, leaves `[R, K, ...]`, as one array `[R, K, d]`."""
    return np.concatenate(
        [np.reshape(leaf, (*leaf.shape[:2], -1)) for leaf in jax.tree.leaves(values)], axis=2
    )


def assert_normal(found, expected, error):
    """Standard scores within bounds, Bonferroni over the entries."""
    found, expected, error = (np.ravel(x) for x in np.broadcast_arrays(found, expected, error))
    exact = error == 0
    np.testing.assert_allclose(found[exact], expected[exact], rtol=1e-12, atol=1e-12)
    z = np.abs(found - expected)[~exact] / error[~exact]
    bound = scipy.stats.norm.isf(P_VALUE / 2 / max(1, z.size))
    assert (z < bound).all(), f"largest standard score {z.max():.2f}, bound {bound:.2f}"


def assert_counts(counts, probabilities):
    """Chi-square of counts, rows given their totals; cells expected below 20 times are pooled."""
    counts, probabilities = np.atleast_2d(counts), np.atleast_2d(probabilities)
    assert (counts[probabilities == 0] == 0).all()
    statistic, freedom = 0.0, 0
    for row, law in zip(counts, probabilities, strict=True):
        expected = law * row.sum()
        small = expected < 20
        found = np.append(row[~small], row[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
        found, expected = found[expected > 0], expected[expected > 0]
        statistic += np.sum((found - expected) ** 2 / expected)
        freedom += len(found) - 1
    if freedom:  # otherwise every row is certain, and its zeros were checked above
        assert scipy.stats.chi2.sf(statistic, freedom) > P_VALUE


# --- Replays: the same random numbers, followed by NumPy ------------------------------------------


def inverse(probabilities, uniform):
    return int(np.sum(uniform >= np.cumsum(probabilities)[:-1]))


class Replay:
    """One run, step by step, from the simulator's random streams and the oracle's learners.

    At step k >= 1, number i chooses agent i's action and the last number the outcome; step 0 holds
    the initial state and, if a learner needs its next action, the first actions. `offset` is added
    to all step numbers.
    """

    def __init__(self, case, key, run, steps, scale, initial, offset=0):
        game, learners = case.game, case.learners
        sarsa = any(learner.needs_next_action for learner in learners)
        words = run_keys(key, jnp.arange(run, run + 1, dtype=jnp.uint32))[0]
        numbered = np.arange(offset, offset + steps + 1)
        numbers = jax.vmap(
            lambda low, high: jnp.stack(
                uniforms(words, (low, high), game.num_agents + 1, jnp.float64)
            )
        )((numbered % 2**32).astype(np.uint32), (numbered // 2**32).astype(np.uint32))
        numbers = np.asarray(numbers)
        xs = [np.array(x) for x in case.flat]

        def act(state, u):
            return tuple(
                inverse(learner.policy(xs[i], game, i, state), u[i])
                for i, learner in enumerate(learners)
            )

        state = inverse(initial, numbers[0, -1])
        action = act(state, numbers[0]) if sarsa else None
        self.params, self.states, self.rewards = [np.concatenate(xs)], [state], []
        for u in numbers[1:]:
            action = action if sarsa else act(state, u)
            outcomes = game.outcomes[state, action]
            _, next_state, rewards = outcomes[inverse([p for p, _, _ in outcomes], u[-1])]
            following = act(next_state, u) if sarsa else None
            f = oracle.joint_increment(
                game, learners, xs, state, action, rewards, next_state, following
            )
            moved = np.concatenate(xs) + f / scale
            xs = oracle.split(game, learners, moved)
            state, action = next_state, following
            self.params.append(moved)
            self.states.append(state)
            self.rewards.append(rewards)
        self.joint_action = action


REPLAYS = [
    ((2,), ("q",), "deterministic", 1.0),
    ((2, 3), ("q", "q"), "state_action", 1.0),
    ((2, 2), ("sarsa", "q"), "next_state", 0.6),
    ((3, 2), ("counterfactual", "actor_critic"), "duplicates", 1.0),
    ((2, 3, 2), ("actor_critic", "counterfactual", "q"), "next_state", 0.6),
    ((2, 1, 3), ("q", "actor_critic", "sarsa"), "duplicates", 1.0),
]


@pytest.mark.parametrize(("num_actions", "kinds", "form", "density"), REPLAYS)
def test_every_run_follows_the_definition(num_actions, kinds, form, density):
    case = random_case(10, 3, num_actions, kinds, form, density)
    initial = np.array([0.2, 0.5, 0.3])
    wrapped = eqx.tree_at(lambda w: w.game.initial, case.wrapped, jnp.asarray(initial))
    # Unequal intervals, one of them without a step: .9 and 1 are both step 2 at this scale.
    ts, scale, runs = np.array([0.0, 0.9, 1.0, 1.3, 5.0, 13.9]), 2.5, 5
    sim = ex.simulate(wrapped, case.params, ts, scale=scale, runs=runs, key=KEY, keep_runs=True)

    steps = np.array([0, 2, 2, 3, 12, 34])
    np.testing.assert_array_equal(sim.steps, steps)
    np.testing.assert_array_equal(sim.ts, steps / 2.5)
    replays = [Replay(case, KEY, run, 34, scale, initial) for run in range(runs)]
    expected = np.array([[replay.params[k] for k in steps] for replay in replays])
    np.testing.assert_allclose(rows(sim.values), expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(sim.final.state, [replay.states[-1] for replay in replays])
    if "sarsa" in kinds:
        expected = [replay.joint_action for replay in replays]
        np.testing.assert_array_equal(sim.final.joint_action, expected)
    else:
        assert sim.final.joint_action is None

    for k, (start, end) in enumerate(itertools.pairwise([0, *steps])):
        if start == end:
            assert np.isnan(sim.state_frequency[k]).all()
            assert np.isnan(sim.rewards[k]).all()
            continue
        acted_in = np.array([replay.states[start:end] for replay in replays])
        frequency = [np.mean(acted_in == s) for s in range(3)]
        np.testing.assert_allclose(sim.state_frequency[k], frequency, rtol=1e-13)
        rewards = np.array([replay.rewards[start:end] for replay in replays])
        np.testing.assert_allclose(sim.rewards[k], rewards.mean(axis=(0, 1)), rtol=1e-12)


def test_steps_beyond_the_first_word_of_the_counter(monkeypatch):
    """The step number carries into its second word, and from block to block of report times."""
    offset, original = 2**33 - 20, job_module.words_of
    for module in (job_module, block_module):
        monkeypatch.setattr(module, "words_of", lambda step: original(step + offset))
    # Five states: no other test has compiled a program of these shapes.
    case = random_case(12, 5, (2, 3), ("q", "sarsa"), "next_state")
    ts = np.arange(61.0)
    sim = ex.simulate(case.wrapped, case.params, ts, runs=2, key=KEY, keep_runs=True)
    for run in range(2):
        replay = Replay(case, KEY, run, 60, 1.0, np.full(5, 0.2), offset)
        np.testing.assert_allclose(rows(sim.values)[run], replay.params, rtol=1e-11, atol=1e-12)
        assert sim.final.state[run] == replay.states[-1]


def test_float32_follows_the_same_paths():
    case = random_case(10, 3, (2, 2), ("q", "sarsa"), "duplicates")
    options = dict(scale=3.0, runs=40, key=KEY, keep_runs=True, initial_state=1)
    ts = np.arange(0.0, 20.0, 4.0)
    double = ex.simulate(case.wrapped, case.params, ts, **options)
    single = ex.simulate(case.wrapped, case.params, ts, dtype=jnp.float32, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(single.values)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(double.values)} == {np.dtype(np.float64)}
    np.testing.assert_allclose(rows(single.values), rows(double.values), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(single.final.state, double.final.state)
    np.testing.assert_array_equal(single.final.joint_action, double.final.joint_action)
    # One program in float32 counts and sums in float32.
    np.testing.assert_allclose(single.state_frequency, double.state_frequency, rtol=1e-6)
    np.testing.assert_allclose(single.rewards, double.rewards, rtol=0, atol=1e-5)
    assert double.final.compensation is None
    assert jax.tree.structure(single.final.compensation) == jax.tree.structure(case.params)


# --- Laws: all paths of a small game --------------------------------------------------------------


def enumerate_law(case, steps, scale, initial, redraw=None):
    """Law of (X_k, s_k) by enumeration of all paths: probabilities and rows (X, s).

    `redraw` says whether the action that is executed is drawn after the update, from the new
    parameters; if not, it is the one drawn before it. SARSA does the latter, all others the former.
    """
    game, learners = case.game, case.learners
    sarsa = any(learner.needs_next_action for learner in learners)
    redraw = not sarsa if redraw is None else redraw

    def act(xs, state):
        policies = [learner.policy(xs[i], game, i, state) for i, learner in enumerate(learners)]
        for a in game.joint_actions():
            yield math.prod(policies[i][a[i]] for i in range(game.num_agents)), a

    paths = [(p, case.flat, s, None) for s, p in enumerate(initial) if p > 0]
    for _ in range(steps):
        grown = []
        for weight, xs, s, drawn in paths:
            for p, a in act(xs, s) if drawn is None else [(1.0, drawn)]:
                for q, t, rewards in game.outcomes[s, a]:
                    for r, b in act(xs, t) if sarsa or not redraw else [(1.0, None)]:
                        f = oracle.joint_increment(game, learners, xs, s, a, rewards, t, b)
                        moved = oracle.split(game, learners, np.concatenate(xs) + f / scale)
                        grown.append((weight * p * q * r, moved, t, None if redraw else b))
        paths = grown
    points = np.array([np.append(np.concatenate(xs), s) for _, xs, s, _ in paths])
    # Paths that meet are one cell. Cells must be well apart for the comparison to make sense.
    _, first, cell = np.unique(points.round(9), axis=0, return_index=True, return_inverse=True)
    points = points[first]
    distances, _ = cKDTree(points).query(points, k=2)
    assert distances[:, 1].min() > 1e-6
    weights = np.bincount(cell.ravel(), [weight for weight, *_ in paths])
    assert abs(weights.sum() - 1) < 1e-12
    return weights, points


def assert_law(case, steps, scale, *, runs, initial=None, key=KEY, tolerance=1e-9, **options):
    """Simulates `runs` runs and compares their law after `steps` steps with the exact one."""
    size = case.game.num_states
    initial = np.full(size, 1 / size) if initial is None else initial
    weights, points = enumerate_law(case, steps, scale, initial)
    sim = ex.simulate(
        case.wrapped,
        case.params,
        np.array([steps / scale]),
        scale=scale,
        runs=runs,
        key=key,
        keep_runs=True,
        batch_size=4096,
        **options,
    )
    assert sim.steps.tolist() == [steps]
    found = np.column_stack([rows(sim.values)[:, 0], sim.final.state])
    distances, cell = cKDTree(points).query(found)
    assert distances.max() < tolerance, "a run is where no path leads"
    assert_counts(np.bincount(cell, minlength=len(weights)), weights)


LAWS = [
    ((2, 2), ("q", "q"), "state_action", 1.0, 2),
    ((2, 2), ("sarsa", "sarsa"), "state_action", 1.0, 2),
    ((2, 3), ("counterfactual", "counterfactual"), "deterministic", 1.0, 3),
    ((2, 2), ("actor_critic", "actor_critic"), "next_state", 0.6, 2),
    ((2, 2, 2), ("q", "actor_critic", "counterfactual"), "deterministic", 1.0, 3),
    ((2, 2), ("sarsa", "q"), "duplicates", 1.0, 2),
    ((3,), ("q",), "duplicates", 1.0, 3),
]


@pytest.mark.parametrize(("num_actions", "kinds", "form", "density", "steps"), LAWS)
def test_ensembles_follow_the_exact_law(num_actions, kinds, form, density, steps):
    case = random_case(21, 3, num_actions, kinds, form, density)
    # A scale below 1 magnifies the updates, so that the second action depends much on the first.
    assert_law(case, steps, 0.4, runs=100_000)


@pytest.mark.parametrize("kinds", [("q", "q"), ("sarsa", "sarsa")])
def test_these_comparisons_tell_the_order_within_a_step(kinds):
    """The other convention (action before or after the update) would be refused for certain."""
    case = random_case(21, 3, (2, 2), kinds, "state_action")
    initial = np.full(3, 1 / 3)
    weights, points = enumerate_law(case, 2, 0.4, initial)
    others, places = enumerate_law(case, 2, 0.4, initial, redraw="sarsa" in kinds)
    _, cell = cKDTree(points).query(places)
    others = np.bincount(cell, others, minlength=len(weights))
    # Expected excess of the chi-square statistic over its degrees of freedom, in its own spread.
    excess = 100_000 * np.sum((others - weights) ** 2 / weights)
    assert excess > 20 * np.sqrt(2 * len(weights))


def test_float32_ensembles_follow_the_exact_law():
    case = random_case(21, 3, (2, 2), ("q", "actor_critic"), "state_action")
    assert_law(case, 2, 0.4, runs=100_000, dtype=jnp.float32, tolerance=2e-5)


def test_ensembles_start_from_the_initial_law():
    case = random_case(22, 3, (2, 2), ("q", "q"), "deterministic")
    initial = np.array([0.1, 0.0, 0.9])
    wrapped = eqx.tree_at(lambda w: w.game.initial, case.wrapped, jnp.asarray(initial))
    case = case._replace(wrapped=wrapped)
    assert_law(case, 2, 0.4, runs=100_000, initial=initial)


@pytest.mark.slow
def test_moments_agree_with_a_plain_simulation():
    """Mean and variance after 30 steps, against one trajectory at a time."""
    case = random_case(23, 3, (2, 2, 2), ("q", "actor_critic", "counterfactual"), "duplicates")
    rng = np.random.default_rng(0)
    plain, steps, scale = [], 30, 2.0
    for _ in range(600):
        xs, _ = oracle.simulate_scalar(case.game, case.learners, case.flat, steps, scale, rng, 2)
        plain.append(np.concatenate(xs))
    plain = np.array(plain)
    sim = ex.simulate(
        case.wrapped,
        case.params,
        np.array([steps / scale]),
        scale=scale,
        runs=100_000,
        key=KEY,
        initial_state=2,
        batch_size=4096,
    )
    mean, variance = (ravel_pytree(tree)[0] for tree in (sim.mean, sim.variance))
    error = plain.std(axis=0, ddof=1) / np.sqrt(len(plain))
    assert_normal(plain.mean(axis=0), mean, error)
    squares = (plain - np.asarray(mean)) ** 2
    assert_normal(squares.mean(axis=0), variance, squares.std(axis=0, ddof=1) / np.sqrt(len(plain)))


# --- Frequencies: frozen policies against their stationary law ------------------------------------


class Ledger(ex.AbstractLearner):
    """Plays fixed policies and counts what happens: at scale 1 its parameters are the counts."""

    table: jax.Array = ex.hyper(scalar=False)

    def init(self, game, agent, *, key):
        shape = (game.num_states, *game.num_actions, game.num_states)
        return {"events": jnp.zeros(shape), "rewards": jnp.zeros(shape)}

    def policy(self, params, state):
        return self.table[state]

    def update(self, params, transition, game, agent):
        t = transition
        event = (t.state, *(t.joint_action[i] for i in range(game.num_agents)), t.next_state)
        return {"events": ex.At(event, jnp.ones(())), "rewards": ex.At(event, t.reward)}


class Frozen(oracle.TableLearner):
    """The oracle's form of a learner that does not learn."""

    def increment(self, params, game, agent, *transition):
        return np.zeros(self.num_params(game, agent))


class FrozenLedger:
    """The oracle's form of a `Ledger`."""

    needs_next_action = False

    def __init__(self, table):
        self.table = table

    def policy(self, params, game, agent, state):
        return self.table[state]


FROZEN = [
    ((2, 3, 2), ("q", "sarsa"), "state_action", 1.0),
    ((3, 2), ("actor_critic",), "duplicates", 1.0),
    ((2, 2), ("counterfactual",), "next_state", 0.5),
    ((2, 2), ("q",), "deterministic", 1.0),
]


@pytest.mark.parametrize(
    ("num_actions", "kinds", "form", "density"),
    [*FROZEN[:2], *(pytest.param(*one, marks=pytest.mark.slow) for one in FROZEN[2:])],
)
def test_frozen_learners_reach_their_stationary_law(num_actions, kinds, form, density):
    """Learners of rate 0 and a ledger, started from the stationary law, which then stays."""
    rng = np.random.default_rng(30)
    game, dense = random_game(rng, 3, num_actions, form, density)
    specs = [Spec(kind, 0.0, 0.9, 0.7, 0.1, 0.0) for kind in kinds]
    table = rng.dirichlet(np.ones(num_actions[-1]), size=3)
    learners = [*(make_oracle_learner(spec) for spec in specs), FrozenLedger(table)]
    wrapped = ex.WrappedGame(game, [*map(make_learner, specs), Ledger(table)])
    start = wrapped.init()
    values = [rng.normal(size=ravel_pytree(own)[0].size) for own in start[:-1]]
    params = tuple(
        ravel_pytree(own)[1](jnp.asarray(x)) for own, x in zip(start, values, strict=False)
    )
    params += start[-1:]
    flat = [*values, np.zeros(0)]

    joint = oracle.joint_policy(dense, learners, flat)
    chain = oracle.state_chain(dense, joint)
    nu = oracle.stationary_distribution(chain)
    wrapped = eqx.tree_at(lambda w: w.game.initial, wrapped, jnp.asarray(nu))

    def observe(params):
        events, rewards = params[-1]["events"], params[-1]["rewards"]
        return {
            "learned": params[:-1],
            "events": events,
            "event_rewards": rewards,
            "states": events.reshape(3, -1).sum(axis=1),
            "reward": rewards.sum(),
        }

    ts, runs = np.array([7.0, 50.0]), 4000
    sim = ex.simulate(wrapped, params, ts, runs=runs, key=KEY, observe=observe)
    mean, error = sim.mean, sim.standard_error

    # Learners of rate 0 stay where they are.
    for found, expected in zip(
        jax.tree.leaves(sim.final.params[:-1]), jax.tree.leaves(params[:-1]), strict=True
    ):
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))

    # Frequencies and rewards are those that the ledger saw, interval by interval ...
    steps = np.diff(ts, prepend=0)[:, None]
    visited = np.diff(mean["states"], axis=0, prepend=0)
    np.testing.assert_allclose(sim.state_frequency * steps, visited, rtol=1e-11)
    earned = np.diff(mean["reward"], prepend=0)
    np.testing.assert_allclose(sim.rewards[:, -1:] * steps, earned[:, None], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sim.state_frequency.sum(axis=1), 1, rtol=1e-13)

    # ... and on average those of the stationary law.
    assert_normal(sim.state_frequency[0], nu, error["states"][0] / 7)
    assert_normal(mean["states"][1] / 50, nu, error["states"][1] / 50)
    expected = oracle.expected_rewards(dense, learners, flat)
    assert_normal(mean["reward"] / ts, expected[-1], error["reward"] / ts)
    np.testing.assert_allclose(ex.stationary_distribution(wrapped, params), nu, rtol=1e-10)

    # Actions follow the joint policy given the state, successors the kernel given both.
    events = np.rint(mean["events"][-1] * runs)
    shape = (3, math.prod(num_actions))
    assert_counts(events.sum(axis=-1).reshape(shape), joint.reshape(shape))
    assert_counts(events.reshape(-1, 3), dense.transition_kernel().reshape(-1, 3))

    # Rewards of the agents without a ledger, where the event determines them.
    if form in ("state_action", "next_state", "deterministic"):
        totals = np.zeros(len(num_actions))
        for (s, a), outcomes in dense.outcomes.items():
            for _, t, rewards in outcomes:
                totals += mean["events"][(-1, s, *a, t)] * np.array(rewards)
        found = (sim.rewards * steps).sum(axis=0)
        np.testing.assert_allclose(found, totals, rtol=1e-9, atol=1e-9)
    else:
        # The same successor stands twice, with different rewards: how often was it the first?
        counts, laws = [], []
        for (s, a), outcomes in dense.outcomes.items():
            for t in range(3):
                (p, _, r), (q, _, u) = (outcome for outcome in outcomes if outcome[1] == t)
                times = events[(s, *a, t)]
                total = mean["event_rewards"][(-1, s, *a, t)] * runs
                first = (total - times * u[-1]) / (r[-1] - u[-1])
                assert abs(first - np.rint(first)) < 1e-5
                counts.append([np.rint(first), times - np.rint(first)])
                laws.append([p / (p + q), q / (p + q)])
        assert_counts(np.array(counts), np.array(laws))


class Tally(ex.AbstractLearner):
    """Plays the same mixed action everywhere and counts actions and states."""

    law: jax.Array = ex.hyper(scalar=False)

    def init(self, game, agent, *, key):
        return jnp.zeros(game.num_actions[agent]), jnp.zeros(game.num_states)

    def policy(self, params, state):
        return self.law

    def update(self, params, transition, game, agent):
        one = jnp.ones(())
        return ex.At((transition.action,), one), ex.At((transition.state,), one)


@pytest.mark.parametrize(("num_states", "num_actions"), [(64, 32), (65, 33), (80, 40)])
def test_many_states_and_many_actions(num_states, num_actions):
    """On both sides of the sizes where the simulator changes its method."""
    assert recorders_module._ONE_HOT_STATES == 64
    assert kernel_module._UNROLLED == 32
    rng = np.random.default_rng(31)
    next_state = (5 * np.arange(num_states)[:, None] + np.arange(num_actions)) % num_states
    game = ex.MarkovGame.deterministic(next_state, np.zeros((num_states, num_actions, 1)))
    law = rng.dirichlet(np.ones(num_actions))
    law[[0, 7, -1]] = 0
    law /= law.sum()
    wrapped = ex.WrappedGame(game, [Tally(law)])
    ts, runs = np.array([3.0, 40.0]), 2000
    sim = ex.simulate(wrapped, wrapped.init(), ts, runs=runs, key=KEY)
    (actions, states) = sim.mean[0]
    assert_counts(np.rint(actions[-1] * runs), law)
    visited = np.diff(states, axis=0, prepend=0) / np.array([[3], [37]])
    np.testing.assert_allclose(sim.state_frequency, visited, rtol=1e-11)
    assert (np.rint(states[-1] * runs) > 0).all()


# Games of different sizes, because a program compiled with other numbers would be used again.
@pytest.mark.parametrize(
    ("size", "uniform", "dtype"),
    [
        (50, 2**-24, jnp.float32),
        (51, 1 - 2**-24, jnp.float32),
        (52, 2**-24, jnp.float64),
        (53, 1 - 2**-24, jnp.float64),
    ],
)
def test_impossible_outcomes_never_happen(monkeypatch, size, uniform, dtype):
    """Even at the ends of the uniform numbers, where rounded sums of probabilities matter."""

    def extreme(key, step, count, dtype):
        return [jnp.asarray(uniform, dtype) for _ in range(count)]

    for module in (kernel_module, block_module):
        monkeypatch.setattr(module, "uniforms", extreme)
    rng = np.random.default_rng(32)
    kernel = np.zeros((size, 1, size))
    kernel[:, 0, 5:-5] = rng.dirichlet(np.ones(size - 10), size=size)
    every = np.broadcast_to(np.arange(size), kernel.shape)
    game = ex.MarkovGame.from_dense(kernel, np.zeros((size, 1, 1)), support=every)
    wrapped = ex.WrappedGame(game, [ex.QLearning()])
    params, ts = wrapped.init(), np.ones(1)
    reached = []
    for state in range(size):
        sim = ex.simulate(wrapped, params, ts, key=KEY, initial_state=state, dtype=dtype)
        reached.append(int(sim.final.state[0]))
    # The first or the last possible state, from everywhere.
    assert set(reached) == {5 if uniform < 0.5 else size - 6}


# --- The order within a step ----------------------------------------------------------------------


class Alternating(ex.AbstractLearner):
    """Plays the action that its parameter names, and changes the name at every update.

    At scale 1 it counts how often the action executed, or drawn next, is the one named now.
    """

    needs_next_action: ClassVar[bool] = False

    def init(self, game, agent, *, key):
        return {"name": jnp.zeros(()), "executed": jnp.zeros(()), "drawn_next": jnp.zeros(())}

    def policy(self, params, state):
        return jnp.stack([1 - params["name"], params["name"]])

    def update(self, params, transition, game, agent):
        named, t = params["name"], transition
        following = jnp.zeros(()) if t.next_action is None else 1.0 * (t.next_action == named)
        return {
            "name": 1 - 2 * named,
            "executed": 1.0 * (t.action == named),
            "drawn_next": following,
        }


class AlternatingSarsa(Alternating):
    """The same, drawing its next action before the update."""

    needs_next_action: ClassVar[bool] = True


def test_policies_read_the_updated_parameters():
    """The policy that draws a_{k+1} reads X_{k+1}."""
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [Alternating(), Alternating()])
    sim = ex.simulate(wrapped, wrapped.init(), np.array([1.0, 50.0]), runs=3, key=KEY)
    for own in sim.mean:
        np.testing.assert_array_equal(own["executed"], [1, 50])


def test_next_actions_are_drawn_before_the_update_by_all_agents():
    """With one SARSA learner among them, a_{k+1} is drawn from X_k, for all agents alike."""
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [AlternatingSarsa(), Alternating()])
    sim = ex.simulate(wrapped, wrapped.init(), np.array([1.0, 50.0]), runs=3, key=KEY)
    np.testing.assert_array_equal(sim.mean[0]["drawn_next"], [1, 50])
    for own in sim.mean:
        # a_0 is drawn from X_0, and every later action from the parameters before.
        np.testing.assert_array_equal(own["executed"], [1, 1])


class Promise(ex.AbstractLearner):
    """Draws at random and remembers what was announced: the next state and its next action."""

    needs_next_action: ClassVar[bool] = True

    def init(self, game, agent, *, key):
        return {"state": -jnp.ones(()), "action": -jnp.ones(()), "kept": jnp.zeros(())}

    def policy(self, params, state):
        return jnp.array([0.2, 0.3, 0.5])

    def update(self, params, transition, game, agent):
        t = transition
        return {
            "state": t.next_state - params["state"],
            "action": t.next_action - params["action"],
            "kept": 1.0 * ((t.state == params["state"]) & (t.action == params["action"])),
        }


def test_the_next_action_of_an_update_is_the_one_executed():
    game, _ = random_game(np.random.default_rng(33), 4, (3, 3, 2), "state_action")
    wrapped = ex.WrappedGame(game, [Promise(), Promise(), ex.QLearning()])
    sim = ex.simulate(wrapped, wrapped.init(), np.array([1.0, 200.0]), runs=20, key=KEY)
    for own in sim.mean[:2]:
        np.testing.assert_array_equal(own["kept"], [0, 199])
    for agent in range(2):
        found = sim.final.params[agent]
        np.testing.assert_array_equal(found["state"], sim.final.state)
        np.testing.assert_array_equal(found["action"], sim.final.joint_action[:, agent])


# --- Learners of users ----------------------------------------------------------------------------


class RothErev(ex.AbstractLearner):
    """Roth and Erev (1995): propensities decay at rate phi and grow by the reward received."""

    phi: jax.Array = ex.hyper(0.01)

    def init(self, game, agent, *, key):
        return jnp.ones((game.num_states, game.num_actions[agent]))

    def policy(self, params, state):
        return params[state] / params[state].sum()

    def update(self, params, transition, game, agent):
        t = transition
        gain = t.reward * jax.nn.one_hot(t.action, params.shape[1])
        return ex.At((t.state,), self.phi * (gain - params[t.state]))


class OracleRothErev:
    needs_next_action = False

    def __init__(self, phi):
        self.phi = phi

    def num_params(self, game, agent):
        return game.num_states * game.num_actions[agent]

    def policy(self, params, game, agent, state):
        row = np.reshape(params, (game.num_states, -1))[state]
        return row / row.sum()

    def increment(self, params, game, agent, s, a, reward, t, following):
        x = np.reshape(params, (game.num_states, -1))
        f = np.zeros_like(x)
        f[s] = -self.phi * x[s]
        f[s, a[agent]] += self.phi * reward
        return f.ravel()


class LinearQ(ex.AbstractLearner):
    """Q-learning on linear features, against a running mean reward: dense increments in a dict."""

    features: jax.Array = ex.hyper(scalar=False)
    rate: jax.Array = ex.hyper(0.1)
    activation: Callable = jnp.tanh

    def init(self, game, agent, *, key):
        return {"baseline": jnp.zeros(()), "weights": jnp.zeros(self.features.shape[-1])}

    def policy(self, params, state):
        return jax.nn.softmax(self.activation(self.features[state] @ params["weights"]))

    def update(self, params, transition, game, agent):
        t, w = transition, params["weights"]
        value = self.features[t.state, t.action] @ w
        excess = t.reward - params["baseline"]
        delta = excess + 0.9 * (self.features[t.next_state] @ w).max() - value
        return {
            "baseline": self.rate * excess,
            "weights": self.rate * delta * self.features[t.state, t.action],
        }


class OracleLinearQ:
    needs_next_action = False

    def __init__(self, features, rate):
        self.features, self.rate = features, rate

    def num_params(self, game, agent):
        return 1 + self.features.shape[-1]

    def policy(self, params, game, agent, state):
        return oracle.softmax(np.tanh(self.features[state] @ params[1:]))

    def increment(self, params, game, agent, s, a, reward, t, following):
        baseline, w = params[0], params[1:]
        feature = self.features[s, a[agent]]
        delta = reward - baseline + 0.9 * (self.features[t] @ w).max() - feature @ w
        return self.rate * np.append(reward - baseline, delta * feature)


def user_case(activation):
    """Roth-Erev against linear Q-learning on a game of positive rewards."""
    rng = np.random.default_rng(40)
    kernel = rng.dirichlet(np.ones(3), size=(3, 2, 3))
    rewards = rng.uniform(0.5, 2, size=(3, 2, 3, 2))
    features = rng.normal(size=(3, 3, 4))
    learners = [RothErev(0.2), LinearQ(features, 0.3, activation)]
    wrapped = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), learners)
    return Case(
        wrapped,
        wrapped.init(),
        oracle.DenseGame.from_dense(kernel, rewards),
        [OracleRothErev(0.2), OracleLinearQ(features, 0.3)],
    )


class Tanh(eqx.Module):
    def __call__(self, x):
        return jnp.tanh(x)


def test_learners_with_dense_increments_and_pytrees():
    case = user_case(Tanh())
    assert_law(case, 2, 0.6, runs=100_000)
    ts = np.array([3.0, 10.0])
    sim = ex.simulate(case.wrapped, case.params, ts, scale=4.0, runs=3, key=KEY, keep_runs=True)
    replays = [Replay(case, KEY, run, 40, 4.0, np.full(3, 1 / 3)) for run in range(3)]
    expected = np.array([[replay.params[k] for k in (12, 40)] for replay in replays])
    np.testing.assert_allclose(rows(sim.values), expected, rtol=1e-11, atol=1e-12)
    assert set(sim.mean[1]) == {"baseline", "weights"}


def test_learners_may_hold_functions():
    """Any callable field, such as a network's activation, not only arrays and modules."""
    options = dict(ts=np.array([5.0]), runs=3, key=KEY)
    plain = ex.simulate(user_case(jnp.tanh).wrapped, user_case(jnp.tanh).params, **options)
    module = ex.simulate(user_case(Tanh()).wrapped, user_case(Tanh()).params, **options)
    np.testing.assert_array_equal(plain.mean[0], module.mean[0])


class Greedy(ex.AbstractExploration):
    """The best action: not continuous in the values."""

    @property
    def continuous(self):
        return False

    def __call__(self, values):
        return jax.nn.one_hot(values.argmax(), values.shape[0])


class OracleGreedyQ(oracle.QLearning):
    def policy(self, params, game, agent, state):
        row = self.table(params, game, agent)[state]
        return np.eye(len(row))[row.argmax()]


def test_argmax_policies_can_be_simulated():
    rng = np.random.default_rng(41)
    game, dense = random_game(rng, 4, (3, 3), "deterministic")
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.5, 0.8, Greedy()) for _ in range(2)])
    assert not wrapped.learners[0].continuous
    flat = [rng.normal(size=12) for _ in range(2)]
    params = tuple(jnp.asarray(x.reshape(4, 3)) for x in flat)
    sim = ex.simulate(wrapped, params, np.array([100.0]), scale=2.0, key=KEY, initial_state=3)
    learners = [OracleGreedyQ(0.5, 0.8, 1.0, 0.0) for _ in range(2)]
    xs, visits = oracle.simulate_scalar(dense, learners, flat, 200, 2.0, rng, 3)
    for found, expected in zip(sim.mean, xs, strict=True):
        np.testing.assert_allclose(found[0].ravel(), expected, rtol=1e-12)
    np.testing.assert_allclose(sim.state_frequency[0], visits / 200, rtol=1e-13)
    assert (np.abs(xs[0] - flat[0]) > 0.1).any()


# --- A run's numbers depend on its key, its number and the step alone -----------------------------


MIXTURES = [
    (("q", "q"), jnp.float32),
    (("sarsa", "sarsa"), jnp.float64),
    (("counterfactual", "counterfactual"), jnp.float64),
    (("actor_critic", "actor_critic"), jnp.float32),
    (("actor_critic", "counterfactual", "q"), jnp.float32),
    (("q", "sarsa", "counterfactual", "actor_critic"), jnp.float64),
]


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [*MIXTURES[-2:], *(pytest.param(*one, marks=pytest.mark.slow) for one in MIXTURES[:-2])],
)
def test_runs_do_not_depend_on_other_runs_on_report_times_or_on_batches(kinds, dtype):
    """Bitwise at one width of batches; to rounding at another, where XLA may order sums anew."""
    case = random_case(50, 3, (2, 3, 2, 2)[: len(kinds)], kinds, "next_state")
    ts = np.array([1.0, 4.0, 20.5])
    options = dict(scale=4.0, key=KEY, keep_runs=True, dtype=dtype)

    def simulate(ts, runs, batch_size=48):
        return ex.simulate(
            case.wrapped, case.params, ts, runs=runs, batch_size=batch_size, **options
        )

    reference = simulate(ts, 520)
    values = rows(reference.values)
    assert values.shape[:2] == (520, 3)
    assert len(np.unique(values[:, -1], axis=0)) == 520

    for runs in (40, 97):
        fewer = simulate(ts, runs)
        np.testing.assert_array_equal(rows(fewer.values), values[:runs])
        for found, expected in zip(
            jax.tree.leaves(fewer.final), jax.tree.leaves(reference.final), strict=True
        ):
            np.testing.assert_array_equal(found, expected[:runs])
    once = simulate(ts[2:], 97)
    np.testing.assert_array_equal(rows(once.values), values[:97, 2:])

    tolerance = 1e-11 if dtype == jnp.float64 else 1e-5
    wide = simulate(ts, 520, 512)
    np.testing.assert_allclose(rows(wide.values), values, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(wide.final.state, reference.final.state)
    for name in ("mean", "variance", "rewards", "state_frequency"):
        for found, expected in zip(
            *(jax.tree.leaves(getattr(sim, name)) for sim in (wide, reference)), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=3 * tolerance)


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_the_papers_example_is_the_same_bitwise_in_batches_of_any_size(kind):
    learner = make_learner(Spec(kind, 0.5, 0.9, 0.5, 0.1, 0.3))
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [learner, learner])
    options = dict(scale=4.0, key=KEY, keep_runs=True, runs=520, dtype=jnp.float32)
    values = [
        rows(
            ex.simulate(
                wrapped, wrapped.init(), np.array([20.5]), batch_size=batch_size, **options
            ).values
        )
        for batch_size in (16, 48, 512)
    ]
    np.testing.assert_array_equal(values[0], values[2])
    np.testing.assert_array_equal(values[1], values[2])


def test_the_same_key_gives_the_same_numbers_and_another_key_others():
    case = random_case(51, 3, (2, 2), ("q", "actor_critic"), "state_action")
    options = dict(ts=np.array([5.0, 10.0]), runs=20, keep_runs=True)

    def values(key):
        return rows(ex.simulate(case.wrapped, case.params, key=key, **options).values)

    first = values(jax.random.key(4))
    np.testing.assert_array_equal(values(jax.random.key(4)), first)
    np.testing.assert_array_equal(values(jax.random.PRNGKey(4)), first)
    other = values(jax.random.key(5))
    assert not (other[:, :, None] == first[:, :, None]).all(axis=-1).any()


@pytest.mark.parametrize("batch_size", [16, 100])
def test_moments_are_those_of_the_kept_runs(batch_size):
    case = random_case(52, 3, (2, 3), ("q", "actor_critic"), "next_state")
    options = dict(scale=2.0, runs=90, key=KEY, batch_size=batch_size, keep_runs=True)
    sim = ex.simulate(case.wrapped, case.params, np.arange(1.0, 5.0), **options)
    for mean, variance, error, values in zip(
        *map(jax.tree.leaves, (sim.mean, sim.variance, sim.standard_error, sim.values)), strict=True
    ):
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(variance, values.var(axis=0, ddof=1), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(error, values.std(axis=0, ddof=1) / np.sqrt(90), rtol=1e-9)
        assert (values.std(axis=0) > 0).any()


TRACES = []


class Counting(ex.QLearning):
    """Q-learning that counts how often Python runs its update: once per compilation or so."""

    def update(self, params, transition, game, agent):
        TRACES.append(None)
        return super().update(params, transition, game, agent)


def test_compiled_once_for_all_values():
    game = ex.games.prisoners_dilemma(1.5)

    def simulate(ts, rate=0.1, start=0.0, runs=33, seed=0, **options):
        learners = [Counting(rate, 0.9, ex.EpsilonSoftmax(1.0, 0.1)) for _ in range(2)]
        wrapped = ex.WrappedGame(game, learners)
        params = jax.tree.map(lambda x: x + start, wrapped.init())
        return ex.simulate(wrapped, params, ts, runs=runs, key=jax.random.key(seed), **options)

    simulate(np.arange(1.0, 6.0))
    traces = len(TRACES)
    assert traces > 0
    simulate(np.array([0.0, 0.1, 0.2, 50.0, 51.5]))
    simulate(np.arange(1.0, 6.0), scale=3.7)
    simulate(np.arange(1.0, 6.0), rate=0.5, start=2.0, seed=3)
    simulate(np.arange(1.0, 6.0), runs=48, initial_state="CD")
    assert len(TRACES) == traces

    # From 32 report times on, all numbers of them share one program.
    simulate(np.arange(1.0, 33.0))
    traces = len(TRACES)
    simulate(np.arange(1.0, 101.0))
    simulate(np.geomspace(1.0, 300.0, 77))
    assert len(TRACES) == traces


# --- Times, states, observables -------------------------------------------------------------------


@pytest.fixture
def small():
    return random_case(60, 3, (2, 2), ("q", "q"), "state_action")


def test_reported_times_are_those_of_the_steps_taken(small):
    ts = np.array([0.0, 0.3, 1.0, 2.1])
    sim = ex.simulate(small.wrapped, small.params, ts, scale=3.7, runs=4, key=KEY, keep_runs=True)
    assert sim.steps.tolist() == [0, 1, 3, 7]
    np.testing.assert_array_equal(sim.ts, np.array([0, 1, 3, 7]) / 3.7)
    assert (sim.scale, sim.runs) == (3.7, 4)
    for values, mean, start in zip(
        *map(jax.tree.leaves, (sim.values, sim.mean, small.params)), strict=True
    ):
        np.testing.assert_array_equal(values[:, 0], np.broadcast_to(start, values[:, 0].shape))
        np.testing.assert_allclose(mean[0], start, rtol=1e-14)
    assert all((leaf[0] < 1e-28).all() for leaf in jax.tree.leaves(sim.variance))
    assert sim.compile_seconds > 0
    assert sim.run_seconds > 0
    np.testing.assert_allclose(sim.steps_per_second, 4 * 7 / sim.run_seconds)
    assert sim.result == ex.RESULTS.successful


def test_many_report_times(small):
    """More than fit into one block, with a last block that is not full."""
    few, many = np.array([0.0, 40.0, 75.0]), np.arange(76.0)
    options = dict(runs=20, key=KEY, keep_runs=True, scale=0.5)
    sparse = ex.simulate(small.wrapped, small.params, few, **options)
    dense = ex.simulate(small.wrapped, small.params, many, **options)
    np.testing.assert_array_equal(dense.steps, np.arange(76) // 2)
    np.testing.assert_array_equal(rows(dense.values)[:, [0, 40, 75]], rows(sparse.values))
    np.testing.assert_array_equal(dense.final.state, sparse.final.state)
    taken = np.diff(dense.steps, prepend=0)
    assert (np.isnan(dense.rewards).all(axis=1) == (taken == 0)).all()
    earned = np.nancumsum(dense.rewards * taken[:, None], axis=0)[[40, 75]]
    np.testing.assert_allclose(np.diff(earned, axis=0), sparse.rewards[2:] * 17, rtol=1e-12)


def test_the_first_state_by_number_by_name_or_from_the_initial_law():
    initial = np.array([0.5, 0.0, 0.1, 0.15, 0.25])
    names = ["calm", "never", "rain", "storm", "fog"]
    next_state = np.zeros((5, 2), dtype=int)
    game = ex.MarkovGame.deterministic(
        next_state, np.zeros((5, 2, 1)), initial=initial, state_names=names
    )
    wrapped = ex.WrappedGame(game, [ex.QLearning()])

    def first(**options):
        sim = ex.simulate(wrapped, wrapped.init(), np.zeros(1), key=KEY, **options)
        assert np.isnan(sim.state_frequency).all()
        return sim.final.state

    for number, name in enumerate(names):
        assert first(runs=20, initial_state=number).tolist() == [number] * 20
        assert first(runs=20, initial_state=name).tolist() == [number] * 20
    drawn = first(runs=50_000, batch_size=4096)
    assert_counts(np.bincount(drawn, minlength=5), initial)


def test_the_final_standing_is_the_last_one_reported(small):
    ts = np.array([3.0, 9.0])
    sim = ex.simulate(small.wrapped, small.params, ts, runs=37, key=KEY, keep_runs=True)
    for final, values in zip(*map(jax.tree.leaves, (sim.final.params, sim.values)), strict=True):
        np.testing.assert_array_equal(final, values[:, -1])
    assert sim.final.state.shape == (37,)
    # Where the last state was acted in shows in a run longer by one step.
    longer = ex.simulate(small.wrapped, small.params, np.array([9.0, 10.0]), runs=37, key=KEY)
    frequency = np.bincount(sim.final.state, minlength=3) / 37
    np.testing.assert_allclose(longer.state_frequency[1], frequency, rtol=1e-14)


def test_kept_runs_and_observables_have_run_and_time_axes(small):
    ts = np.array([0.0, 3.0, 9.0, 12.0, 13.0])
    options = dict(runs=21, key=KEY, keep_runs=True, batch_size=16)
    sim = ex.simulate(small.wrapped, small.params, ts, **options)
    for leaf, start in zip(*map(jax.tree.leaves, (sim.values, small.params)), strict=True):
        assert leaf.shape == (21, 5, *start.shape)
    observed = ex.simulate(
        small.wrapped, small.params, ts, observe=small.wrapped.policies, **options
    )
    expected = jax.vmap(jax.vmap(small.wrapped.policies))(jax.tree.map(jnp.asarray, sim.values))
    for found, mean, policy in zip(observed.values, observed.mean, expected, strict=True):
        assert found.shape == (21, 5, 3, 2)
        np.testing.assert_allclose(found, policy, rtol=1e-13)
        np.testing.assert_allclose(mean, np.mean(policy, axis=0), rtol=1e-13)
    # What is observed does not change the runs.
    for found, expected in zip(*map(jax.tree.leaves, (observed.final, sim.final)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_any_function_of_the_parameters_can_be_observed(small):
    def observe(params):
        return {"best": jnp.argmax(params[0][0]), "greedy": params[1][0, 0] > params[1][0, 1]}

    ts = np.array([1.0, 60.0])
    options = dict(runs=50, key=KEY, keep_runs=True, batch_size=16)
    sim = ex.simulate(small.wrapped, small.params, ts, **options)
    observed = ex.simulate(small.wrapped, small.params, ts, observe=observe, **options)
    best = np.argmax(sim.values[0][:, :, 0], axis=-1)
    greedy = sim.values[1][:, :, 0, 0] > sim.values[1][:, :, 0, 1]
    np.testing.assert_array_equal(observed.values["best"], best)
    np.testing.assert_array_equal(observed.values["greedy"], greedy)
    np.testing.assert_allclose(observed.mean["best"], best.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(observed.variance["greedy"], greedy.var(axis=0, ddof=1), rtol=1e-12)
    assert 0 < observed.mean["greedy"][1] < 1


def test_a_single_run_has_no_variance(small):
    sim = ex.simulate(small.wrapped, small.params, np.array([0.0, 5.0]), key=KEY)
    assert sim.runs == 1
    assert sim.values is None
    for leaf in jax.tree.leaves((sim.variance, sim.standard_error)):
        assert np.isnan(leaf).all()
    for leaf in jax.tree.leaves(sim.mean):
        assert np.isfinite(leaf).all()


def test_progress_is_shown_on_request(small, capsys):
    options = dict(scale=10.0, runs=20, key=KEY)
    ex.simulate(small.wrapped, small.params, np.arange(1.0, 4.0), **options)
    assert capsys.readouterr().err == ""
    ex.simulate(small.wrapped, small.params, np.arange(1.0, 4.0), progress=True, **options)
    assert "600/600" in capsys.readouterr().err


def test_numbers_may_be_integers_or_of_numpy(small):
    ts, expected = np.arange(3), None
    for scale, runs, state in [
        (10.0, 2, 1),
        (10, 2, 1),
        (np.int64(10), np.int64(2), np.int64(1)),
        (np.float32(10), np.int32(2), np.int32(1)),
    ]:
        sim = ex.simulate(
            small.wrapped, small.params, ts, scale=scale, runs=runs, initial_state=state, key=KEY
        )
        assert sim.steps.tolist() == [0, 10, 20]
        expected = sim.mean[0] if expected is None else expected
        np.testing.assert_array_equal(sim.mean[0], expected)


# --- Precision ------------------------------------------------------------------------------------


class Drifting(ex.AbstractLearner):
    """Moves at a constant rate, by a dense and by a sparse increment."""

    rate: jax.Array = ex.hyper(0.01)

    def init(self, game, agent, *, key):
        return {"dense": jnp.full(2, 30.0), "sparse": jnp.full((1, 1), 30.0)}

    def policy(self, params, state):
        return jnp.ones(1)

    def update(self, params, transition, game, agent):
        at = (transition.state, transition.action)
        return {"dense": jnp.stack([self.rate, -self.rate]), "sparse": ex.At(at, self.rate)}


@pytest.mark.slow
def test_small_float32_increments_are_not_lost():
    """At N = 1e5 an increment is 1e-7, and the spacing of float32 numbers around 30 is 1.9e-6."""
    scale, time, rate = 1e5, 10.0, 0.01
    game = ex.MarkovGame.deterministic(np.zeros((1, 1), dtype=int), np.full((1, 1, 1), 0.1))
    wrapped = ex.WrappedGame(game, [Drifting(rate)])
    sim = ex.simulate(
        wrapped, wrapped.init(), np.array([0.0, time]), scale=scale, key=KEY, dtype=jnp.float32
    )
    moved = sim.mean[0]
    # One spacing for the rounding of the result; the increment's own rounding is 1e-7 of the way.
    np.testing.assert_allclose(moved["dense"][1], [30.1, 29.9], rtol=0, atol=2e-6)
    np.testing.assert_allclose(moved["sparse"][1], 30.1, rtol=0, atol=2e-6)
    np.testing.assert_allclose(sim.rewards[1], 0.1, rtol=1e-6)

    # Plain float32 additions do not move at all, and lose a per cent of the rewards.
    steps = round(scale * time)
    terms = np.full(steps + 1, rate / scale, np.float32)
    terms[0] = 30.0
    assert np.add.accumulate(terms)[-1] == 30.0
    sum_of_rewards = np.add.accumulate(np.full(steps, 0.1, np.float32))[-1]
    assert abs(sum_of_rewards / steps - 0.1) > 1e-4


def test_float32_means_are_exact_to_the_last_place(pd, golden):
    """Sums over hundreds of runs round no more than one number does."""
    params = unflatten(pd, golden["pd"]["x0"])
    sim = ex.simulate(
        pd,
        params,
        np.arange(0.0, 200.0, 20.0),
        scale=10.0,
        runs=512,
        key=KEY,
        dtype=jnp.float32,
        keep_runs=True,
    )
    for mean, values in zip(sim.mean, sim.values, strict=True):
        exact = values.mean(axis=0, dtype=float)
        assert (np.abs(mean - exact) <= np.spacing(exact.astype(np.float32))).all()


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "time", "runs"), [(1e4, 20.0, 64), (1e5, 4.0, 16)])
def test_float32_ensembles_agree_with_float64_at_large_scale(pd, golden, scale, time, runs):
    """The same random numbers: only rounding differs, and rarely (2^-24 a draw) an action.

    Single parameters are known to half the spacing of float32 numbers around 30, 1e-6, and means
    of runs are float32 sums. An action that differs moves one run by about 30 alpha / N = 3e-5 at
    N = 1e4, hence the mean by less than 1e-6. The movement by learning is .019 and .0038, and its
    Monte Carlo error 3e-5 and 7e-6.
    """
    params = unflatten(pd, golden["pd"]["x0"])
    options = dict(scale=scale, runs=runs, key=KEY, initial_state=0)
    ts = np.array([0.0, time])
    single = ex.simulate(pd, params, ts, dtype=jnp.float32, **options)
    double = ex.simulate(pd, params, ts, dtype=jnp.float64, **options)
    found, expected = (
        np.concatenate([leaf[1].ravel() for leaf in sim.mean]) for sim in (single, double)
    )
    assert np.abs(expected - golden["pd"]["x0"]).max() > 0.003
    assert np.abs(found - expected).max() < 1e-5
    np.testing.assert_allclose(single.rewards[1], double.rewards[1], rtol=1e-4)
    np.testing.assert_allclose(single.state_frequency[1], double.state_frequency[1], atol=1e-4)


WITHOUT_X64 = """
import warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
import ergodax as ex
assert not jax.config.jax_enable_x64
learners = [ex.QLearning(0.3, 0.9, ex.EpsilonSoftmax(0.5, 0.1)), ex.Sarsa(0.3, 0.9)]
wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), learners)
ts = np.array([0.0, 2.5, 40.0])
sim = ex.simulate(
    wrapped, wrapped.init(), ts, scale=7.0, runs=20, key=jax.random.key(0), keep_runs=True
)
assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((sim.values, sim.final.params)))
assert sim.final.compensation is not None
try:
    ex.simulate(wrapped, wrapped.init(), ts, key=jax.random.key(0), dtype=jnp.float64)
except ValueError as error:
    assert "jax_enable_x64" in str(error)
else:
    raise AssertionError("float64 was not refused")
np.save("values.npy", np.stack(sim.values))
"""


@pytest.mark.slow
def test_simulation_without_x64(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_X64],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    learners = [ex.QLearning(0.3, 0.9, ex.EpsilonSoftmax(0.5, 0.1)), ex.Sarsa(0.3, 0.9)]
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), learners)
    sim = ex.simulate(
        wrapped,
        wrapped.init(),
        np.array([0.0, 2.5, 40.0]),
        scale=7.0,
        runs=20,
        key=KEY,
        keep_runs=True,
        dtype=jnp.float32,
    )
    found = np.load(tmp_path / "values.npy")
    np.testing.assert_allclose(found, np.stack(sim.values), rtol=0, atol=1e-5)


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [512, 16])
def test_diverging_runs_warn_and_leave_the_others_alone(batch_size):
    # Runs that start in state 0 stay there and are infinite at once; those in state 1 are not.
    rewards = np.array([[[1e300]], [[1.0]]])
    game = ex.MarkovGame.deterministic(np.array([[0], [1]]), rewards)
    wrapped = ex.WrappedGame(game, [ex.QLearning(1e10, 0.5)])
    ts, options = np.array([0.0, 1.0, 3.0]), dict(key=KEY, keep_runs=True, batch_size=batch_size)
    with pytest.warns(UserWarning, match="became infinite or NaN") as caught:
        sim = ex.simulate(wrapped, wrapped.init(), ts, runs=40, **options)
    lost = sim.final.state == 0
    assert 0 < lost.sum() < 40
    assert [str(warning.message) for warning in caught] == [
        f"{lost.sum()} of 40 runs became infinite or NaN, the first by t = 1: are the updates too "
        "large for their scale?"
    ]
    assert sim.result == ex.RESULTS.nonfinite

    values = sim.values[0][..., 0]
    assert not np.isfinite(values[lost, 1:, 0]).any()
    path = [0.0]
    for _ in range(3):
        path.append(path[-1] + 1e10 * (1 + 0.5 * path[-1] - path[-1]))
    expected = np.broadcast_to([path[0], path[1], path[3]], values[~lost, :, 1].shape)
    np.testing.assert_allclose(values[~lost, :, 1], expected, rtol=1e-14)
    assert (values[~lost, :, 0] == 0).all()
    # Moments say that they are not finite, entry by entry; frequencies stay.
    assert not np.isfinite(sim.mean[0][1:, 0]).any()
    np.testing.assert_allclose(sim.mean[0][:, 1, 0], values[..., 1].mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(sim.state_frequency[1:, 0], lost.mean(), rtol=1e-14)


def test_ensembles_that_stay_finite_do_not_warn(small):
    sim = ex.simulate(small.wrapped, small.params, np.array([0.0, 20.0]), runs=20, key=KEY)
    assert sim.result == ex.RESULTS.successful


INVALID = [
    (dict(runs=0), "runs must be a positive integer; found 0."),
    (dict(runs=-3), "runs must be a positive integer; found -3."),
    (dict(runs=2.0), "runs must be a positive integer; found 2.0."),
    (dict(runs=True), "runs must be a positive integer; found True."),
    (dict(batch_size=0), "batch_size must be a positive integer; found 0."),
    (dict(batch_size=1.5), "batch_size must be a positive integer; found 1.5."),
    (dict(scale=0.0), "scale must be a positive number; found 0.0."),
    (dict(scale=-1.0), "scale must be a positive number; found -1.0."),
    (dict(scale=float("nan")), "scale must be a positive number; found nan."),
    (dict(scale=float("inf")), "scale must be a positive number; found inf."),
    (dict(scale=np.ones(2)), "scale must be a positive number; found [1. 1.]."),
    (dict(dtype=jnp.float16), "dtype must be float32 or float64; found float16."),
    (dict(dtype=int), "dtype must be float32 or float64; found int64."),
    (dict(initial_state="XX"), "initial_state 'XX' is not a state; the states are CC, CD, DC, DD."),
    (dict(initial_state=4), "initial_state must be a state, 0 to 3; found 4."),
    (dict(initial_state=-1), "initial_state must be a state, 0 to 3; found -1."),
    (dict(ts=np.array([])), "ts must be a non-empty list of times; found shape (0,)."),
    (
        dict(ts=np.array([0.0, 2.0, 1.0])),
        "ts must be finite, not negative and increasing; found ts[2] = 1.0 after 2.0.",
    ),
    (dict(ts=np.array([-1.0])), "ts must be finite, not negative and increasing; found ts[0]"),
    (
        dict(ts=np.array([1.0, 3e9])),
        "2999999999 steps between two report times are too many (2^31 - 1 at most); add report "
        "times.",
    ),
    (dict(ts=np.array([2.2e9])), "2200000000 steps between two report times are too many"),
    (dict(ts=np.array([3.0]), scale=1e9), "3000000000 steps between two report times"),
]


@pytest.mark.parametrize(("options", "message"), INVALID)
def test_arguments_that_do_not_fit_are_refused(options, message):
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [ex.QLearning(), ex.QLearning()])
    arguments = dict(ts=np.arange(3.0), key=KEY) | options
    with annotations_off(), pytest.raises(ValueError, match=re.escape(message)):
        ex.simulate(wrapped, wrapped.init(), **arguments)


def test_parameters_that_do_not_fit_are_refused():
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [ex.QLearning(), ex.ActorCritic()])
    first, second = wrapped.init()

    def refuse(params, message):
        with annotations_off(), pytest.raises(ValueError, match=re.escape(message)):
            ex.simulate(wrapped, params, np.arange(3.0), key=KEY)

    refuse((first,), "params must be a tuple with one pytree for each of 2 agents; found tuple of")
    refuse([first, second], "one pytree for each of 2 agents; found list.")
    refuse((first, first), "params of agent 1 must have the structure")
    refuse((first.T[:, :3], second), "params of agent 0 must have shape (4, 2); found (2, 3).")
    wrong = second._replace(V=jnp.zeros(5))
    refuse((first, wrong), "params of agent 1.V must have shape (4,); found (5,).")
    lost = second._replace(theta=second.theta.at[1, 0].set(jnp.nan))
    refuse((first, lost), "params of agent 1.theta must be finite; found")
    refuse((first.at[0, 0].set(jnp.inf), second), "params of agent 0 must be finite; found")
