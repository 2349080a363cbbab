import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
from helpers import KINDS, random_case

ACTION_VALUE_LEARNERS = [ex.QLearning, ex.Sarsa, ex.CounterfactualQLearning]


def dense(increment, params):
    """An increment as one flat vector, its `At`s written out."""

    def leaf(value, like):
        if not isinstance(value, ex.At):
            return value
        chex.assert_shape(value.value, like.shape[len(value.index) :])
        return jnp.zeros_like(like).at[value.index].add(value.value)

    return np.asarray(ravel_pytree(jax.tree.map(lambda p, f: leaf(f, p), params, increment))[0])


def random_event(rng, game, agent):
    """One event as the package and as the oracle see it."""
    index = tuple(int(rng.integers(size)) for size in game.successors.shape)
    state, action, next_state = index[0], index[1:-1], int(game.successors[index])
    reward, next_action = game.rewards[index][agent], int(rng.integers(game.num_actions[agent]))
    transition = ex.Transition(
        jnp.asarray(state),
        jnp.asarray(action[agent]),
        jnp.asarray(action),
        reward,
        jnp.asarray(next_state),
        jnp.asarray(next_action),
    )
    return transition, (state, action, float(reward), next_state, next_action)


@pytest.mark.parametrize("form", ["next_state", "duplicates"])
@pytest.mark.parametrize("kind", KINDS)
def test_increments_equal_the_oracle(kind, form):
    case = random_case(7, 4, (2, 3, 2), (kind,) * 3, form)
    game, rng = case.wrapped.game, np.random.default_rng(0)
    for agent, learner in enumerate(case.wrapped.learners):
        update = jax.jit(
            lambda p, t, learner=learner, agent=agent: learner.update(p, t, game, agent)
        )
        for _ in range(20):
            transition, event = random_event(rng, game, agent)
            found = dense(update(case.params[agent], transition), case.params[agent])
            expected = case.learners[agent].increment(case.flat[agent], case.game, agent, *event)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_policies_equal_the_oracle(kind):
    case = random_case(8, 3, (2, 4), (kind,) * 2)
    for agent, learner in enumerate(case.wrapped.learners):
        for state in range(3):
            found = learner.policy(case.params[agent], jnp.asarray(state))
            expected = case.learners[agent].policy(case.flat[agent], case.game, agent, state)
            np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_learners_need_a_next_action_only_for_sarsa(kind):
    case = random_case(9, 2, (2,), (kind,))
    assert case.wrapped.learners[0].needs_next_action == (kind == "sarsa")
    assert case.wrapped.needs_next_action == (kind == "sarsa")


@pytest.mark.parametrize("learner", [*ACTION_VALUE_LEARNERS, ex.ActorCritic])
def test_learners_are_as_continuous_as_their_exploration(learner):
    class Jumps(ex.EpsilonSoftmax):
        @property
        def continuous(self):
            return False

    assert learner().continuous
    assert not learner(exploration=Jumps()).continuous


@pytest.mark.parametrize("learner", [*ACTION_VALUE_LEARNERS, ex.ActorCritic])
def test_learners_without_a_maximum_are_as_smooth_as_their_exploration(learner):
    assert learner().smooth == (learner in (ex.Sarsa, ex.ActorCritic))
    assert not learner(exploration=ex.EpsilonGreedy(0.1)).smooth


@pytest.mark.parametrize("learner", ACTION_VALUE_LEARNERS)
@pytest.mark.parametrize(
    "initial", [3.0, np.arange(3.0), np.arange(4.0)[:, None], np.arange(12.0).reshape(4, 3)]
)
def test_tables_start_at_their_initial_values(learner, initial):
    game = ex.MarkovGame.deterministic(np.zeros((4, 2, 3), int), np.zeros((4, 2, 3, 2)))
    table = learner(initial=initial).init(game, 1, key=None)
    np.testing.assert_array_equal(table, np.broadcast_to(initial, (4, 3)))


def test_actor_critic_starts_at_its_initial_values():
    game = ex.MarkovGame.deterministic(np.zeros((4, 2, 3), int), np.zeros((4, 2, 3, 2)))
    preferences, values = np.arange(3.0), np.arange(4.0)
    params = ex.ActorCritic(initial_preferences=preferences, initial_values=values).init(
        game, 1, key=None
    )
    expected = ex.learners.ActorCriticParams(np.broadcast_to(preferences, (4, 3)), values)
    chex.assert_trees_all_equal(params, expected)
    np.testing.assert_array_equal(ravel_pytree(params)[0][-4:], values)


@pytest.mark.parametrize(
    ("learner", "shape"),
    [
        (ex.QLearning(initial=np.zeros(4)), "(4, 3)"),
        (ex.ActorCritic(initial_preferences=np.zeros((3, 4))), "(4, 3)"),
        (ex.ActorCritic(initial_values=np.zeros(3)), "(4,)"),
    ],
)
def test_initial_values_of_another_shape_are_refused(learner, shape):
    game = ex.MarkovGame.deterministic(np.zeros((4, 2, 3), int), np.zeros((4, 2, 3, 2)))
    message = f"agent 1: initial values of shape .* do not broadcast to {re.escape(shape)}"
    with pytest.raises(ValueError, match=message):
        learner.init(game, 1, key=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate must be finite and in [0, inf); found -0.1"),
        ({"learning_rate": np.inf}, "learning_rate must be finite and in [0, inf); found inf"),
        ({"discount": 1.1}, "discount must be finite and in [0, 1]; found 1.1"),
        ({"discount": -0.5}, "discount must be finite and in [0, 1]; found -0.5"),
        ({"discount": np.nan}, "discount must be finite and in [0, 1]; found nan"),
    ],
)
@pytest.mark.parametrize("learner", [*ACTION_VALUE_LEARNERS, ex.ActorCritic])
def test_bad_hyper_parameters_are_refused(learner, options, message):
    with pytest.raises(ValueError, match=re.escape(f"{learner.__name__}.{message}")):
        learner(**options)


def test_bad_hyper_parameters_of_one_learner_are_refused():
    with pytest.raises(ValueError, match=re.escape("ActorCritic.critic_rate must be finite")):
        ex.ActorCritic(critic_rate=-1.0)
    with pytest.raises(ValueError, match="initial must be finite"):
        ex.QLearning(initial=np.array([0.0, np.nan]))


def test_borders_of_the_hyper_parameters_are_allowed():
    learner = ex.QLearning(0, 1, ex.EpsilonSoftmax(0.5, 1))
    assert (learner.learning_rate, learner.discount, learner.exploration.epsilon) == (0, 1, 1)


def test_actor_critic_follows_any_exploration_rule():
    class Linear(ex.AbstractExploration):
        def __call__(self, values):
            return values / values.sum()

    case = random_case(11, 3, (3,), ("actor_critic",))
    theta = jnp.array([[0.2, 0.3, 0.7], [1.0, 1.0, 2.0], [3.0, 1.0, 1.0]])
    params = ex.learners.ActorCriticParams(theta, jnp.array([0.5, -1.0, 2.0]))
    learner = ex.ActorCritic(0.1, 0.2, 0.9, Linear())
    transition = ex.Transition(
        jnp.asarray(1), jnp.asarray(2), jnp.asarray([2]), jnp.asarray(0.3), jnp.asarray(2)
    )
    increment = learner.update(params, transition, case.wrapped.game, 0)
    delta = 0.3 + 0.9 * 2.0 - -1.0
    # log(theta_2 / sum theta) has the gradient 1{b=2} / theta_2 - 1 / sum theta.
    score = np.array([0, 0, 1 / 2]) - 1 / 4
    expected = ex.learners.ActorCriticParams(
        ex.At((1,), 0.1 * delta * score), ex.At((1,), 0.2 * delta)
    )
    chex.assert_trees_all_close(increment, expected, rtol=1e-14)


def test_a_tied_maximum_has_the_mean_of_the_branches_as_its_derivative():
    case = random_case(12, 2, (3,), ("q",))
    learner, game = case.wrapped.learners[0], case.wrapped.game
    table = jnp.array([[0.0, 0.0, 0.0], [2.0, 1.0, 2.0]])
    transition = ex.Transition(
        jnp.asarray(0), jnp.asarray(0), jnp.asarray([0]), jnp.asarray(1.0), jnp.asarray(1)
    )
    slope = jax.grad(lambda q: learner.update(q, transition, game, 0).value)(table)
    scale = float(learner.learning_rate * learner.discount)
    np.testing.assert_allclose(slope[1], [scale / 2, 0, scale / 2])


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_score_is_finite_where_the_probability_underflows(epsilon):
    explore = ex.EpsilonSoftmax(0.01, epsilon)
    values = jnp.array([0.0, 8.0])
    share = 1.0 if epsilon == 0 else 0.0
    np.testing.assert_allclose(explore.score(values, 0), share * jnp.array([100.0, -100.0]))
    derivative = jax.jacrev(lambda v: explore.score(v, 0))(values)
    assert np.all(np.isfinite(derivative))


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_score_is_the_derivative_of_the_log_probability(epsilon):
    explore = ex.EpsilonSoftmax(0.7, epsilon)
    values = jnp.array([0.3, -0.2, 1.1])
    for action in range(3):
        expected = jax.grad(lambda v, a=action: jnp.log(explore(v)[a]))(values)
        np.testing.assert_allclose(explore.score(values, action), expected, rtol=1e-12)
