import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
import oracle
from helpers import KINDS, annotations_off, random_case

CASES = {
    "one agent": random_case(0, 3, (4,), ("q",)),
    "unequal actions": random_case(1, 4, (2, 3), ("q", "actor_critic"), "next_state"),
    "three agents": random_case(2, 3, (3, 1, 2), ("sarsa", "q", "counterfactual"), density=0.4),
    "duplicates": random_case(3, 3, (2, 3), ("q", "sarsa"), "duplicates"),
    "deterministic": random_case(4, 5, (2, 2), ("q", "q"), "deterministic"),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_policies_equal_the_oracle(case):
    for agent, policy in enumerate(case.wrapped.policies(case.params)):
        expected = [
            case.learners[agent].policy(case.flat[agent], case.game, agent, state)
            for state in case.game.states()
        ]
        np.testing.assert_allclose(policy, expected, rtol=1e-12)


def test_joint_policy_equals_the_oracle(case):
    joint = case.wrapped.joint_policy(case.wrapped.policies(case.params))
    expected = oracle.joint_policy(case.game, case.learners, case.flat)
    np.testing.assert_allclose(joint, expected, rtol=1e-12)
    np.testing.assert_allclose(joint.sum(axis=tuple(range(1, joint.ndim))), 1)


def test_frozen_chain_equals_the_oracle(case):
    chain = case.wrapped.frozen_chain(case.params)
    joint = oracle.joint_policy(case.game, case.learners, case.flat)
    np.testing.assert_allclose(chain, oracle.state_chain(case.game, joint), rtol=1e-12, atol=1e-15)


def test_event_probabilities_are_policy_times_kernel(case):
    joint = case.wrapped.joint_policy(case.wrapped.policies(case.params))
    events = case.wrapped.event_probabilities(joint)
    assert events.shape == case.wrapped.game.successors.shape
    for index in np.ndindex(events.shape):
        expected = joint[index[:-1]] * case.wrapped.game.probabilities[index]
        np.testing.assert_allclose(events[index], expected, rtol=1e-15)


def test_transitions_are_all_events_in_order(case):
    game = case.wrapped.game
    for agent, learner in enumerate(case.wrapped.learners):
        shape = game.successors.shape
        if learner.needs_next_action:
            shape = (*shape, game.num_actions[agent])
        seen = jax.tree.map(np.asarray, case.wrapped.transitions(agent))
        assert len(seen.state) == np.prod(shape)
        for e, index in enumerate(np.ndindex(shape)):
            event = index[: game.num_agents + 2]
            assert seen.state[e] == event[0]
            assert tuple(seen.joint_action[e]) == event[1:-1]
            assert seen.action[e] == event[1 + agent]
            assert seen.next_state[e] == game.successors[event]
            assert seen.reward[e] == game.rewards[event][agent]
            if learner.needs_next_action:
                assert seen.next_action[e] == index[-1]
        assert (seen.next_action is None) == (not learner.needs_next_action)


def test_many_events_are_in_the_order_of_few(monkeypatch):
    wrapped = CASES["duplicates"].wrapped
    few = [wrapped.transitions(agent) for agent in (0, 1)]
    monkeypatch.setattr("ergodax.model.wrapped._FEW_EVENTS", 0)
    many = [wrapped.transitions(agent) for agent in (0, 1)]
    jax.tree.map(np.testing.assert_array_equal, few, many)


@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, repeat=2)))
def test_a_game_needs_next_actions_if_one_learner_does(kinds):
    assert random_case(5, 2, (2, 2), kinds).wrapped.needs_next_action == ("sarsa" in kinds)


def test_init_gives_one_pytree_per_agent(actor_critic, mixed):
    assert [table.shape for table in mixed.init()] == [(3, 2), (3, 3), (3, 2)]
    params = actor_critic.init()
    assert isinstance(params, tuple)
    assert params[1].theta.shape == (3, 3)
    assert params[1].V.shape == (3,)


def test_agents_start_from_different_keys():
    class Random(ex.QLearning):
        def init(self, game, agent, *, key):
            return jax.random.normal(key, (game.num_states, game.num_actions[agent]))

    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [Random(), Random()])
    first, second = wrapped.init(jax.random.key(0))
    assert not np.array_equal(first, second)
    assert eqx.tree_equal(wrapped.init(jax.random.key(0)), (first, second))
    assert not np.array_equal(wrapped.init(jax.random.key(1))[0], first)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_learners_is_refused(count):
    message = f"the game has 2 agents but {count} learners were given"
    with pytest.raises(ValueError, match=message):
        ex.WrappedGame(ex.games.prisoners_dilemma(), [ex.QLearning()] * count)


def test_what_is_not_a_learner_is_refused():
    with pytest.raises(
        ValueError,
        match=r"learners must be instances of AbstractLearner; found .* as that of agent 1",
    ):
        ex.WrappedGame(ex.games.prisoners_dilemma(), [ex.QLearning(), ex.QLearning])


TABLE = jnp.zeros((4, 2))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([TABLE, TABLE], r"params0? must be a tuple .* for each of 2 agents; found list"),
        ((TABLE,), r"params0? must be a tuple .* for each of 2 agents; found tuple of length 1"),
        ((TABLE, TABLE, TABLE), "found tuple of length 3"),
        ((TABLE, {"Q": TABLE}), r"params0? of agent 1 must have the structure PyTreeDef\(\*\)"),
        (
            (TABLE, jnp.zeros((4, 3))),
            r"params0? of agent 1 must have shape \(4, 2\); found \(4, 3\)",
        ),
        ((jnp.zeros(8), TABLE), r"params0? of agent 0 must have shape \(4, 2\); found \(8,\)"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        ex.stationary_distribution,
        ex.occupation_measure,
        ex.drift,
        ex.jacobian,
        lambda wrapped, params: ex.solve(wrapped, params, jnp.array([1.0])),
        lambda wrapped, params: wrapped.policies(params),
    ],
)
def test_wrong_params_are_refused(pd, function, params, message):
    with annotations_off(), pytest.raises(ValueError, match=message):
        function(pd, params)


def test_wrong_params_of_an_actor_critic_name_the_table(actor_critic):
    first, second = actor_critic.init()
    wrong = second._replace(V=jnp.zeros(4))
    with pytest.raises(ValueError, match=r"agent 1\.V must have shape \(3,\); found \(4,\)"):
        ex.drift(actor_critic, (first, wrong))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_params_that_are_not_finite_are_refused(pd, value):
    wrong = TABLE.at[2, 1].set(value)
    with pytest.raises(ValueError, match=r"params of agent 1 .*finite"):
        ex.drift(pd, (TABLE, wrong))


def test_a_policy_of_the_wrong_length_is_refused():
    class Short(ex.QLearning):
        def policy(self, params, state):
            return jnp.ones(1)

    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [ex.QLearning(), Short()])
    message = r"agent 1: Short.policy must return 2 probabilities; found shape \(1,\)"
    with pytest.raises(ValueError, match=message):
        ex.drift(wrapped, wrapped.init())
