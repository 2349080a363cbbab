import itertools
import math

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import ergodax as ex
import oracle
from ergodax.averaged.drift import average, expected_rewards
from ergodax.averaged.stationary import preserve_rows
from ergodax.model.game import padding
from helpers import (
    FORMS,
    KINDS,
    RothErev,
    assert_close,
    central_difference,
    flatten,
    make_learner,
    random_case,
    random_game,
    random_kernel,
    random_specs,
    unflatten,
)

# Golden values


@pytest.mark.parametrize("case", ["pd", "random", "mixed"])
def test_occupation_measure_equals_golden(golden, wrapped_games, case):
    wrapped, values = wrapped_games[case], golden[case]
    found = ex.occupation_measure(wrapped, unflatten(wrapped, values["x0"]))
    assert_close(found, values["mu0"], 1e-10)


@pytest.mark.parametrize(
    ("case", "point", "name"),
    [
        *itertools.product(["pd", "random", "mixed"], ["x0"], ["F0"]),
        *itertools.product(["pd", "random", "mixed"], ["x1"], ["F1"]),
        ("actor_critic", "x", "F"),
    ],
)
def test_drift_equals_golden(golden, wrapped_games, case, point, name):
    wrapped, values = wrapped_games[case], golden[case]
    found = ex.drift(wrapped, unflatten(wrapped, values[point]))
    assert_close(flatten(found), values[name], 1e-10)


@pytest.mark.parametrize(
    ("case", "point", "name"),
    [
        ("pd", "x0", "DF0_tie_mean"),
        ("random", "x0", "DF0_tie_mean"),
        ("mixed", "x0", "DF0"),
        *itertools.product(["pd", "random", "mixed"], ["x1"], ["DF1"]),
        ("actor_critic", "x", "DF"),
    ],
)
def test_jacobian_equals_golden(golden, wrapped_games, case, point, name):
    wrapped, values = wrapped_games[case], golden[case]
    found = ex.jacobian(wrapped, unflatten(wrapped, values[point]))
    assert_close(found, values[name], 1e-10)


@pytest.mark.parametrize("case", ["pd", "random", "mixed"])
def test_golden_fixed_points_are_at_rest(golden, wrapped_games, case):
    wrapped, values = wrapped_games[case], golden[case]
    params = unflatten(wrapped, values["fixed_point"])
    moved = ex.drift(wrapped, unflatten(wrapped, 1.01 * values["fixed_point"]))
    assert np.abs(flatten(ex.drift(wrapped, params))).max() < 1e-9 * np.abs(flatten(moved)).max()
    eigenvalues = np.linalg.eigvals(ex.jacobian(wrapped, params))
    expected = values["eig_fixed_point"]
    distance = np.abs(eigenvalues[:, None] - expected)
    rows, columns = scipy.optimize.linear_sum_assignment(distance)
    assert distance[rows, columns].max() < 1e-8 * np.abs(expected).max()


# Random games against the oracle

CASES = {
    "one agent": ((4,), 3, ("q",), "state_action", 1.0),
    "one state": ((2, 3), 1, ("q", "actor_critic"), "state_action", 1.0),
    "one action each": ((1, 1), 4, ("sarsa", "q"), "next_state", 1.0),
    "unequal actions": ((2, 4, 1), 3, ("q", "actor_critic", "q"), "next_state", 1.0),
    "four agents": ((2, 1, 3, 2), 2, KINDS, "next_state", 1.0),
    "sarsa alone": ((2, 3), 3, ("sarsa", "sarsa"), "duplicates", 1.0),
    "sarsa among others": ((2, 3), 3, ("q", "sarsa"), "next_state", 1.0),
    "counterfactual": ((3, 2), 4, ("counterfactual", "counterfactual"), "next_state", 0.5),
    "counterfactual, random rewards": ((2, 3), 3, ("counterfactual", "q"), "duplicates", 0.7),
    "actor-critic, random rewards": ((2, 3), 3, ("actor_critic", "q"), "duplicates", 0.7),
    "sparse": ((2, 2), 6, ("q", "actor_critic"), "state_action", 0.2),
    "deterministic": ((2, 3), 5, ("q", "counterfactual"), "deterministic", 1.0),
    "above the elimination limit": ((2, 2), 10, ("q", "actor_critic"), "next_state", 1.0),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    num_actions, num_states, kinds, form, density = CASES[request.param]
    seed = list(CASES).index(request.param)
    return random_case(seed, num_states, num_actions, kinds, form, density)


def test_occupation_measure_equals_the_oracle(case):
    found = ex.occupation_measure(case.wrapped, case.params)
    assert_close(found, oracle.occupation_measure(case.game, case.learners, case.flat), 1e-12)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-14)


def test_drift_equals_the_oracle(case):
    found = ex.drift(case.wrapped, case.params)
    assert_close(flatten(found), oracle.drift(case.game, case.learners, case.flat), 1e-11)
    assert jax.tree.structure(found) == jax.tree.structure(case.params)


def test_expected_rewards_equal_the_oracle(case):
    found = jax.jit(lambda w, p: expected_rewards(w, average(w, p).events))(
        case.wrapped, case.params
    )
    assert_close(found, oracle.expected_rewards(case.game, case.learners, case.flat), 1e-11)


@pytest.mark.parametrize(
    "name",
    ["one agent", "sarsa among others", "counterfactual", "actor-critic, random rewards", "sparse"],
)
def test_jacobian_equals_the_complex_step(name):
    num_actions, num_states, kinds, form, density = CASES[name]
    case = random_case(1, num_states, num_actions, kinds, form, density)
    expected = oracle.jacobian(case.game, case.learners, case.flat)
    assert_close(ex.jacobian(case.wrapped, case.params), expected, 1e-11)


@pytest.mark.parametrize("kinds", [("q", "counterfactual"), ("sarsa", "actor_critic")])
def test_drift_equals_the_chain_over_whole_events(kinds):
    case = random_case(3, 2, (2, 2), kinds, "next_state")
    expected = oracle.drift_full_chain(case.game, case.learners, case.flat)
    assert_close(flatten(ex.drift(case.wrapped, case.params)), expected, 1e-11)


@st.composite
def descriptions(draw, states, joint_actions):
    """Arguments of `random_case`: 1 to 4 agents, 1 to 4 actions, every learner and reward."""
    num_actions = []
    for _ in range(draw(st.integers(1, 4))):
        largest = min(4, joint_actions // math.prod(num_actions))
        num_actions.append(draw(st.integers(1, largest)))
    num_states = draw(st.integers(1, states))
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "num_states": num_states,
        "num_actions": tuple(num_actions),
        "kinds": tuple(draw(st.sampled_from(KINDS)) for _ in num_actions),
        "form": draw(st.sampled_from(FORMS)),
        "density": draw(st.sampled_from([0.2, 0.5, 1.0])),
        "recurrent": draw(st.none() | st.integers(1, num_states)),
    }


def transient(form):
    """A description in which two of five states are transient."""
    kinds = ("sarsa", "actor_critic")
    sizes = {"num_states": 5, "num_actions": (2, 3), "recurrent": 3}
    return {"seed": 0, **sizes, "kinds": kinds, "form": form, "density": 0.5}


@pytest.mark.slow
@hypothesis.settings(max_examples=12)
@hypothesis.example(transient("deterministic"))
@hypothesis.example(transient("next_state"))
@hypothesis.given(descriptions(states=6, joint_actions=16))
def test_averages_of_any_game_equal_the_oracle(description):
    case = random_case(**description)

    def averages(wrapped, params):
        found = average(wrapped, params)
        return found, expected_rewards(wrapped, found.events)

    found, rewards = jax.jit(averages)(case.wrapped, case.params)
    joint = oracle.joint_policy(case.game, case.learners, case.flat)
    law = oracle.stationary_distribution(oracle.state_chain(case.game, joint))
    np.testing.assert_allclose(found.state_distribution, law, atol=1e-12)
    if description["recurrent"] is not None:
        assert (found.state_distribution[description["recurrent"] :] == 0).all()
    drift = oracle.drift(case.game, case.learners, case.flat)
    np.testing.assert_allclose(flatten(found.drift), drift, atol=1e-11)
    expected = oracle.expected_rewards(case.game, case.learners, case.flat)
    np.testing.assert_allclose(rewards, expected, atol=1e-11)
    measure = np.zeros(case.game.transition_kernel().shape)
    successors = np.asarray(case.wrapped.game.successors)
    for index in np.ndindex(successors.shape):
        measure[(*index[:-1], successors[index])] += found.events[index]
    expected = oracle.occupation_measure(case.game, case.learners, case.flat)
    np.testing.assert_allclose(measure, expected, atol=1e-12)


@pytest.mark.slow
@hypothesis.settings(max_examples=12)
@hypothesis.given(descriptions(states=3, joint_actions=6))
def test_jacobian_of_any_game_equals_the_complex_step(description):
    case = random_case(**description)
    flat, unravel = ravel_pytree(case.params)

    def drift(x, wrapped):
        return ravel_pytree(average(wrapped, unravel(x)).drift)[0]

    found = jax.jit(jax.jacfwd(drift))(flat, case.wrapped)
    expected = oracle.jacobian(case.game, case.learners, case.flat)
    np.testing.assert_allclose(found, expected, atol=1e-11)


# What the drift is


def test_sarsa_averages_to_expected_sarsa():
    case = random_case(5, 3, (2, 3), ("sarsa", "sarsa"), "next_state")
    specs = [oracle.ExpectedSarsa(x.alpha, x.gamma, x.tau, x.eps) for x in case.learners]
    expected = oracle.drift(case.game, specs, case.flat)
    assert_close(flatten(ex.drift(case.wrapped, case.params)), expected, 1e-11)


def test_transient_states_do_not_learn():
    kernel = np.zeros((3, 2, 3))
    kernel[0, :, 1] = kernel[1, :, 2] = kernel[2, :, 1] = 1
    game = ex.MarkovGame.from_dense(kernel, np.ones((3, 2, 1)))
    wrapped = ex.WrappedGame(game, [ex.QLearning()])
    with pytest.warns(UserWarning, match="states 0 are transient"):
        (drift,) = ex.drift(wrapped, wrapped.init())
    assert (drift[0] == 0).all()
    assert (drift[1:] > 0).all()


def test_rare_actions_learn_slowly():
    payoffs = np.ones((2, 1))
    wrapped = ex.WrappedGame(
        ex.games.repeated(payoffs, memory=0), [ex.QLearning(0.5, 0, ex.EpsilonSoftmax(0.5, 0.2))]
    )
    (drift,) = ex.drift(wrapped, (jnp.array([[0.0, 1.0]]),))
    rare = 0.8 / (1 + np.exp(2)) + 0.1
    np.testing.assert_allclose(drift, [[0.5 * rare, 0.0]], rtol=1e-14)


def test_occupation_measure_sums_repeated_successors():
    case = random_case(6, 3, (2,), ("q",), "duplicates")
    assert case.wrapped.game.num_successors == 6
    measure = ex.occupation_measure(case.wrapped, case.params)
    assert measure.shape == (3, 2, 3)
    law = ex.stationary_distribution(case.wrapped, case.params)
    np.testing.assert_allclose(measure.sum(axis=(1, 2)), law, rtol=1e-14)
    np.testing.assert_allclose(measure.sum(axis=(0, 1)), law, rtol=1e-13)


# Derivatives


@pytest.fixture(scope="module")
def everything():
    """A game with all learners, sparse rows, and random weights on its drift."""
    case = random_case(21, 3, (2, 2, 1, 2), KINDS, "next_state", density=0.6)
    size = flatten(case.params).size
    return case, jnp.asarray(np.random.default_rng(0).normal(size=size))


@pytest.mark.slow
def test_drift_is_differentiable_by_everything_but_probabilities(everything):
    case, weights = everything
    game = case.wrapped.game
    leaves, treedef = jax.tree.flatten((case.wrapped.learners, game.rewards, case.params))
    rng = np.random.default_rng(1)
    directions = [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves]

    @jax.jit
    def loss(step):
        moved = [leaf + step * d for leaf, d in zip(leaves, directions, strict=True)]
        learners, rewards, params = jax.tree.unflatten(treedef, moved)
        paying = eqx.tree_at(lambda g: g.rewards, game, rewards)
        return weights @ ravel_pytree(ex.drift(ex.WrappedGame(paying, learners), params))[0]

    reverse = jax.jit(jax.grad(loss))(0.0)
    assert_close(reverse, central_difference(loss, 0.0, 1.0, step=1e-3), 1e-8)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(loss))(0.0), reverse, rtol=1e-11)


@pytest.mark.slow
def test_jacobian_is_the_same_in_reverse(everything):
    case, _ = everything
    flat, unravel = ravel_pytree(case.params)
    reverse = jax.jacrev(lambda x: ravel_pytree(ex.drift(case.wrapped, unravel(x)))[0])
    assert_close(jax.jit(reverse)(flat), ex.jacobian(case.wrapped, case.params), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("counterfactual", "q"), ("sarsa", "actor_critic")])
def test_derivative_by_the_kernel_equals_differences_that_keep_rows(kinds):
    rng = np.random.default_rng(2)
    kernel = random_kernel(rng, 4, (2, 2))
    rewards = rng.normal(size=(4, 2, 2, 4, 2))
    learners = [make_learner(spec) for spec in random_specs(rng, kinds)]
    wrapped = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), learners)
    flat, unravel = ravel_pytree(wrapped.init())
    params = unravel(rng.normal(size=flat.size))
    weights = rng.normal(size=flat.size)

    @jax.jit
    def loss(kernel):
        wrapped = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), learners)
        return weights @ ravel_pytree(ex.drift(wrapped, params))[0]

    gradient = jax.jit(jax.grad(loss))(kernel)
    noise = rng.normal(size=kernel.shape)
    direction = kernel * (noise - np.sum(kernel * noise, axis=-1, keepdims=True))
    difference = central_difference(loss, kernel, direction, step=1e-3)
    assert_close(np.sum(gradient * direction), difference, 1e-8)


@pytest.mark.slow
def test_derivative_by_padding_is_exactly_zero(everything):
    case, weights = everything

    def loss(game):
        drift = ex.drift(ex.WrappedGame(game, case.wrapped.learners), case.params)
        return weights @ ravel_pytree(drift)[0]

    game = case.wrapped.game
    gradient = eqx.filter_grad(loss)(game)
    assert padding(game).any()
    assert (gradient.probabilities[padding(game)] == 0).all()
    assert (gradient.rewards[padding(game)] == 0).all()
    np.testing.assert_allclose(gradient.probabilities.sum(axis=-1), 0, atol=1e-13)


# Compilation, batches and memory


@pytest.mark.slow
def test_batches_of_games_and_learners_equal_single_ones():
    rng = np.random.default_rng(3)
    kernels = np.stack([random_kernel(rng, 3, (2, 2)) for _ in range(4)])
    rewards = rng.normal(size=(4, 3, 2, 2, 2))
    rates, taus = rng.uniform(0.1, 1, size=(4, 2)), rng.uniform(0.5, 2, size=(4, 2))
    params = tuple(jnp.asarray(rng.normal(size=(4, 3, 2))) for _ in range(2))

    def build(kernel, rewards, rate, tau):
        learners = [ex.QLearning(rate[i], 0.9, ex.EpsilonSoftmax(tau[i], 0.1)) for i in range(2)]
        return ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), learners)

    batch = jax.vmap(build)(kernels, rewards, rates, taus)
    found = jax.vmap(ex.drift)(batch, params)
    jacobians = jax.vmap(ex.jacobian)(batch, params)
    for k in range(4):
        single = build(kernels[k], rewards[k], rates[k], taus[k])
        at = tuple(table[k] for table in params)
        assert_close(flatten(tuple(f[k] for f in found)), flatten(ex.drift(single, at)), 1e-13)
        assert_close(jacobians[k], ex.jacobian(single, at), 1e-13)


def largest_intermediate(jaxpr):
    """Number of entries of the largest array in a program, its inner programs included."""
    largest = max((math.prod(v.aval.shape) for v in [*jaxpr.constvars, *jaxpr.invars]), default=0)
    for equation in jaxpr.eqns:
        sizes = [math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars]
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        )
        for value in inner:
            if hasattr(value, "eqns"):
                sizes.append(largest_intermediate(getattr(value, "jaxpr", value)))
        largest = max(largest, *sizes)
    return largest


def test_largest_intermediate_looks_inside():
    jaxpr = jax.make_jaxpr(jax.jit(lambda x: jax.lax.map(lambda y: jnp.outer(y, y).sum(), x)))
    assert largest_intermediate(jaxpr(jnp.ones((3, 50))).jaxpr) == 2500


@pytest.mark.slow
def test_a_pricing_game_stays_small():
    prices, rng = 15, np.random.default_rng(4)
    payoffs = rng.uniform(size=(prices, prices, 2))
    game = ex.games.repeated(payoffs)
    assert (game.num_states, game.num_actions) == (225, (15, 15))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(game)) < 10e6

    wrapped = ex.WrappedGame(
        game,
        [
            ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(0.5, 0.1)),
            ex.QLearning(0.2, 0.8, ex.EpsilonSoftmax(0.3, 0.2)),
        ],
    )
    params = tuple(jnp.asarray(rng.uniform(size=(225, 15))) for _ in range(2))
    jaxpr = jax.make_jaxpr(lambda w, p: average(preserve_rows(w), p).drift)(wrapped, params)
    assert largest_intermediate(jaxpr.jaxpr) < 4e6

    found = ex.drift(wrapped, params)
    pi = [np.asarray(policy) for policy in wrapped.policies(params)]
    joint = np.einsum("sa,sb->sab", *pi)
    law = oracle.stationary_distribution(joint.reshape(225, 225))
    for agent, (alpha, gamma) in enumerate([(0.1, 0.9), (0.2, 0.8)]):
        # The state that follows is the joint action.
        best = np.asarray(params[agent]).max(axis=1).reshape(prices, prices)
        target = joint * (payoffs[..., agent] + gamma * best)
        drift = target.sum(axis=2 - agent) - pi[agent] * params[agent]
        assert_close(found[agent], alpha * law[:, None] * drift, 1e-10)


# Learners of a user


class LinearQ(ex.AbstractLearner):
    """Q-learning with values linear in features `[S, A, d]`; increments are dense."""

    features: jax.Array
    alpha: jax.Array = ex.hyper(0.1)

    def init(self, game, agent, *, key):
        return jnp.zeros(self.features.shape[-1])

    def policy(self, w, state):
        return jax.nn.softmax(self.features[state] @ w)

    def update(self, w, t, game, agent):
        target = t.reward + 0.9 * (self.features[t.next_state] @ w).max()
        feature = self.features[t.state, t.action]
        return self.alpha * (target - feature @ w) * feature


class LinearSarsa(LinearQ):
    """The same on policy."""

    needs_next_action = True

    def update(self, w, t, game, agent):
        target = t.reward + 0.9 * self.features[t.next_state, t.next_action] @ w
        feature = self.features[t.state, t.action]
        return self.alpha * (target - feature @ w) * feature


class Network(ex.AbstractLearner):
    """REINFORCE on a policy network with one hidden layer; parameters are a dictionary."""

    alpha: jax.Array = ex.hyper(0.1)

    def init(self, game, agent, *, key):
        first, second = jax.random.split(key)
        return {
            "W1": jax.random.normal(first, (game.num_states, 3)),
            "b1": jnp.zeros(3),
            "W2": jax.random.normal(second, (3, game.num_actions[agent])),
        }

    def policy(self, p, state):
        return jax.nn.softmax(jnp.tanh(p["W1"][state] + p["b1"]) @ p["W2"])

    def update(self, p, t, game, agent):
        score = jax.grad(lambda q: jnp.log(self.policy(q, t.state)[t.action]))(p)
        return jax.tree.map(lambda leaf: self.alpha * t.reward * leaf, score)


def enumerated_drift(wrapped, params):
    """The averaged drift by loops over all events, calling the learners' own updates."""
    game, n = wrapped.game, wrapped.game.num_agents
    states = range(game.num_states)
    policies = [
        np.stack([learner.policy(params[i], jnp.asarray(s)) for s in states])
        for i, learner in enumerate(wrapped.learners)
    ]
    updates = [
        jax.jit(lambda p, t, f=learner.update, i=i: f(p, t, game, i))
        for i, learner in enumerate(wrapped.learners)
    ]
    events = []
    chain = np.zeros((game.num_states, game.num_states))
    for index in np.ndindex(game.successors.shape):
        s, a, t = index[0], index[1:-1], int(game.successors[index])
        weight = float(game.probabilities[index])
        weight *= math.prod(policies[i][s, a[i]] for i in range(n))
        chain[s, t] += weight
        events.append((s, a, t, weight, np.asarray(game.rewards[index])))
    law = oracle.stationary_distribution(chain)

    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    for s, a, t, weight, rewards in events:
        for i, learner in enumerate(wrapped.learners):
            followers = range(game.num_actions[i]) if learner.needs_next_action else [None]
            for b in followers:
                transition = ex.Transition(
                    jnp.asarray(s),
                    jnp.asarray(a[i]),
                    jnp.asarray(a),
                    jnp.asarray(rewards[i]),
                    jnp.asarray(t),
                    None if b is None else jnp.asarray(b),
                )
                share = law[s] * weight * (1 if b is None else policies[i][t, b])
                leaves = jax.tree.leaves(
                    updates[i](params[i], transition), is_leaf=lambda x: isinstance(x, ex.At)
                )
                for table, leaf in zip(jax.tree.leaves(total[i]), leaves, strict=True):
                    if isinstance(leaf, ex.At):
                        table[tuple(int(k) for k in leaf.index)] += share * np.asarray(leaf.value)
                    else:
                        table += share * np.asarray(leaf)
    return total


def user_game(learners):
    rng = np.random.default_rng(0)
    game, _ = random_game(rng, 3, (2, 3, 2)[: len(learners)], "next_state", density=0.7)
    wrapped = ex.WrappedGame(game, learners)
    flat, unravel = ravel_pytree(wrapped.init(jax.random.key(0)))
    return wrapped, unravel(jnp.abs(flat + rng.uniform(0.1, 1, size=flat.size)))


def features(num_actions):
    return jnp.asarray(np.random.default_rng(num_actions).normal(size=(3, num_actions, 4)))


USERS = {
    "Roth and Erev": [RothErev(0.1), RothErev(0.3)],
    "linear": [LinearQ(features(2)), LinearQ(features(3), 0.5)],
    "linear, on policy": [LinearSarsa(features(2)), LinearQ(features(3))],
    "network": [Network(0.3), Network(0.1)],
    "all": [Network(), LinearSarsa(features(3)), RothErev()],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", USERS)
def test_drift_of_a_users_learner_equals_enumeration(name):
    wrapped, params = user_game(USERS[name])
    found, expected = ex.drift(wrapped, params), enumerated_drift(wrapped, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert_close(flatten(found), flatten(expected), 1e-12)


@pytest.mark.parametrize("name", ["linear, on policy", "all"])
def test_jacobian_of_a_users_learner_equals_differences(name):
    wrapped, params = user_game(USERS[name])
    flat, unravel = ravel_pytree(params)
    direction = np.random.default_rng(5).normal(size=flat.size)
    difference = central_difference(
        lambda x: flatten(ex.drift(wrapped, unravel(x))), flat, direction, step=1e-4
    )
    assert_close(ex.jacobian(wrapped, params) @ direction, difference, 1e-8)


def test_the_enumeration_agrees_with_the_oracle():
    case = random_case(6, 3, (2, 3), ("sarsa", "actor_critic"), "next_state", density=0.7)
    expected = oracle.drift(case.game, case.learners, case.flat)
    assert_close(flatten(enumerated_drift(case.wrapped, case.params)), expected, 1e-12)
