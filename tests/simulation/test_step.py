"""A step: NumPy follows the same random numbers through the oracle's learners, draw by draw."""

import itertools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.simulation import block, recorders, step
from helpers import random_case, random_game
from reference import KEY, Replay, assert_counts, rows

pytestmark = pytest.mark.usefixtures("optimised")


REPLAYS = [
    ((2,), ("q",), "deterministic", 1.0),
    ((2, 3), ("q", "q"), "state_action", 1.0),
    ((2, 2), ("sarsa", "q"), "next_state", 0.6),
    ((3, 2), ("counterfactual", "actor_critic"), "duplicates", 1.0),
    ((2, 3, 2), ("actor_critic", "counterfactual", "q"), "next_state", 0.6),
    ((2, 1, 3), ("q", "actor_critic", "sarsa"), "duplicates", 1.0),
]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("num_states", "num_actions"), [(64, 32), (65, 33), (80, 40)])
def test_many_states_and_many_actions(num_states, num_actions):
    """On both sides of the sizes where the simulator changes its method."""
    assert recorders._ONE_HOT_STATES == 64
    assert step._UNROLLED == 32
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
@pytest.mark.slow
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

    for module in (step, block):
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


def is_that(number, name):
    """Whether an integer is the one that a parameter holds, as a number."""
    return (number.astype(name.dtype) == name).astype(name.dtype)


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
        following = t.next_action
        return {
            "name": 1 - 2 * named,
            "executed": is_that(t.action, named),
            "drawn_next": jnp.zeros(()) if following is None else is_that(following, named),
        }


class AlternatingSarsa(Alternating):
    """The same, drawing its next action before the update."""

    needs_next_action: ClassVar[bool] = True


@pytest.mark.slow
def test_policies_read_the_updated_parameters():
    """The policy that draws a_{k+1} reads X_{k+1}."""
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [Alternating(), Alternating()])
    sim = ex.simulate(wrapped, wrapped.init(), np.array([1.0, 50.0]), runs=3, key=KEY)
    for own in sim.mean:
        np.testing.assert_array_equal(own["executed"], [1, 50])


@pytest.mark.slow
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
            "state": t.next_state.astype(params["state"].dtype) - params["state"],
            "action": t.next_action.astype(params["action"].dtype) - params["action"],
            "kept": is_that(t.state, params["state"]) * is_that(t.action, params["action"]),
        }


@pytest.mark.slow
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
