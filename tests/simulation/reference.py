"""What the simulator is compared with: replays, exact laws, statistical bounds.

Statistical bounds: every comparison fails by chance with probability 4e-9 at most (a p-value below
P_VALUE, a normal variable beyond 5.9 standard deviations, divided by the number of comparisons
where many are made), and there are fewer than 200: false alarms stay below 1e-6. Seeds are fixed
besides.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from scipy.spatial import cKDTree

import ergodax as ex
import oracle
from ergodax.simulation.streams import run_keys, uniforms

P_VALUE = 4e-9
KEY = jax.random.key(0)


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


def assert_law(case, steps, scale, *, runs, initial=None, tolerance=1e-9, **options):
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
        key=KEY,
        keep_runs=True,
        batch_size=4096,
        **options,
    )
    assert sim.steps.tolist() == [steps]
    found = np.column_stack([rows(sim.values)[:, 0], sim.final.state])
    distances, cell = cKDTree(points).query(found)
    assert distances.max() < tolerance, "a run is where no path leads"
    assert_counts(np.bincount(cell, minlength=len(weights)), weights)
