"""Ensembles: their exact law in small games, and their stationary law in long runs."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.spatial import cKDTree

import ergodax as ex
import oracle
from helpers import Spec, make_learner, make_oracle_learner, random_case, random_game
from reference import KEY, assert_counts, assert_law, assert_normal, enumerate_law

pytestmark = pytest.mark.usefixtures("optimised")

LAWS = [
    ((2, 2), ("q", "q"), "state_action", 1.0, 2),
    ((2, 2), ("sarsa", "sarsa"), "state_action", 1.0, 2),
    ((2, 3), ("counterfactual", "counterfactual"), "deterministic", 1.0, 3),
    ((2, 2), ("actor_critic", "actor_critic"), "next_state", 0.6, 2),
    ((2, 2, 2), ("q", "actor_critic", "counterfactual"), "deterministic", 1.0, 3),
    ((2, 2), ("sarsa", "q"), "duplicates", 1.0, 2),
    ((3,), ("q",), "duplicates", 1.0, 3),
]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
