import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import brentq

import ergodax as ex
from ergodax.averaged import rest_points, roots
from helpers import assert_close, central_difference, flatten, unflatten


def stateless(payoffs, tau, gamma, learning_rate=1.0):
    """Two Q-learners with softmax exploration in a repeated symmetric game without memory."""
    payoffs = np.asarray(payoffs, dtype=float)
    game = ex.games.repeated((payoffs, payoffs.T), memory=0)
    learner = ex.QLearning(learning_rate, gamma, ex.EpsilonSoftmax(tau))
    return ex.WrappedGame(game, [learner, learner])


DILEMMA = [[3.0, 0.0], [5.0, 1.0]]


def sorted_eigenvalues(values):
    values = np.asarray(values)
    return values[np.lexsort((values.imag, -values.real))]


class Share(ex.AbstractLearner):
    """Cross learning with two actions, by the share of the first alone: averaged, a replicator."""

    start: jax.Array = ex.hyper(0.5)

    def init(self, game, agent, *, key):
        return self.start

    def policy(self, params, state):
        return jnp.stack([params, 1 - params])

    def update(self, params, transition, game, agent):
        return transition.reward * (jnp.where(transition.action == 0, 1.0, 0.0) - params)


# Golden values


@pytest.mark.parametrize("case", ["pd", "random", pytest.param("mixed", marks=pytest.mark.slow)])
def test_rest_point_and_eigenvalues_equal_golden(golden, wrapped_games, case):
    wrapped, values = wrapped_games[case], golden[case]
    found = ex.rest_point(wrapped, unflatten(wrapped, values["x0"]))
    assert_close(flatten(found.params), values["fixed_point"], 1e-10)
    assert_close(found.eigenvalues, sorted_eigenvalues(values["eig_fixed_point"]), 1e-8)
    assert found.stability == ("unstable" if case == "pd" else "stable")
    assert found.result == ex.RESULTS.successful
    size = np.abs(found.jacobian).max() * np.abs(values["fixed_point"]).max()
    assert found.residual <= 1e-12 * size
    assert found.step <= 1e-10 * np.abs(values["fixed_point"]).max()
    if case == "pd":  # as published: an unstable focus
        for table in found.params:
            np.testing.assert_allclose(table, [[23.880709, 24.380709]] * 4, atol=5e-7)
        leading = found.eigenvalues[:2]
        np.testing.assert_allclose(leading.real, 4.24e-5, atol=5e-8)
        np.testing.assert_allclose(np.abs(leading.imag), 4.70e-4, atol=5e-7)


# Published results without memory


@pytest.mark.slow
@pytest.mark.parametrize(("tau", "share"), [(1.0, 0.226751), (10.0, 0.463478)])
def test_the_dilemmas_rest_point_does_not_depend_on_the_discount(tau, share):
    for gamma in (0.0, 0.5, 0.8, 0.9):
        wrapped = stateless(DILEMMA, tau, gamma)
        found = ex.rest_point(wrapped, wrapped.init())
        for policy in wrapped.policies(found.params):
            np.testing.assert_allclose(policy[0, 0], share, atol=5e-7)


def test_the_dilemmas_rest_point_loses_stability_at_a_hopf_bifurcation():
    def leading(gamma):
        wrapped = stateless(DILEMMA, 1.0, gamma)
        return ex.rest_point(wrapped, wrapped.init())

    critical = brentq(lambda gamma: leading(gamma).eigenvalues[0].real, 0.7, 0.8, xtol=1e-13)
    np.testing.assert_allclose(critical, 0.746152, atol=5e-7)
    there = leading(critical)
    np.testing.assert_allclose(np.abs(there.eigenvalues[:2].imag), 0.19158, atol=5e-6)
    assert there.stability == "centre"
    assert leading(critical - 1e-4).stability == "stable"
    assert leading(critical + 1e-4).stability == "unstable"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tau", "outer", "middle"),
    [(0.49, [0.378509, 0.621491], "unstable"), (0.5, [], "singular"), (0.51, [], "stable")],
)
def test_coordination_has_a_pitchfork_at_one_half(tau, outer, middle):
    wrapped = stateless(np.eye(2), tau, 0.0)
    tables = np.random.default_rng(0).uniform(0, 1, size=(2, 40, 1, 2))
    # Newton's method needs many steps at the bifurcation, where the root is threefold.
    found = ex.rest_points(wrapped, (tables[0], tables[1]), max_steps=200)
    shares = {}
    for point in found:
        shares.setdefault(point.stability, []).append(wrapped.policies(point.params)[0][0, 0])
    if middle == "singular":  # where distance goes with the cube root of the tolerance
        assert set(shares) <= {"singular", "stable", "unstable", "centre"}
        np.testing.assert_allclose(np.concatenate(list(shares.values())), 0.5, atol=1e-2)
        exact = ex.rest_point(wrapped, (jnp.full((1, 2), 0.5), jnp.full((1, 2), 0.5)))
        assert exact.stability == "singular"
        return
    np.testing.assert_allclose(shares.pop(middle), [0.5], atol=1e-9)
    np.testing.assert_allclose(sorted(shares.pop("stable", [])), outer, atol=5e-7)
    assert not shares


# Labels


def test_matching_pennies_rests_in_a_centre():
    payoffs = [[(2.0, 1.0), (1.0, 2.0)], [(1.0, 2.0), (2.0, 1.0)]]
    wrapped = ex.WrappedGame(ex.games.repeated(payoffs, memory=0), [Share(0.4), Share(0.7)])
    found = ex.rest_point(wrapped, wrapped.init())
    np.testing.assert_allclose(flatten(found.params), 0.5, atol=1e-9)
    np.testing.assert_allclose(np.abs(found.eigenvalues.imag), 0.5, atol=1e-9)
    assert found.stability == "centre"


def transient_game():
    """State 2 is left for ever; states 0 and 1 lead to each other."""
    kernel = np.zeros((3, 2, 2, 3))
    kernel[:2, ..., :2] = np.random.default_rng(1).dirichlet([1, 1], size=(2, 2, 2))
    kernel[2, ..., 0], kernel[2, ..., 2] = 0.7, 0.3
    rewards = np.random.default_rng(2).normal(size=(3, 2, 2, 2))
    learner = ex.QLearning(0.1, 0.7, ex.EpsilonSoftmax(0.5, 0.1))
    full = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), [learner, learner])
    core = ex.MarkovGame.from_dense(kernel[:2, ..., :2], rewards[:2])
    return full, ex.WrappedGame(core, [learner, learner])


@pytest.mark.slow
def test_transient_states_are_reported_and_keep_the_guess():
    full, core = transient_game()
    with pytest.warns(UserWarning, match="states 2 are transient"):
        found = ex.rest_point(full, (jnp.full((3, 2), 0.3), jnp.full((3, 2), -0.4)))
    assert found.stability == "singular"
    assert found.result == ex.RESULTS.successful
    assert np.sum(found.eigenvalues == 0) == 4
    expected = ex.rest_point(core, core.init())
    for table, like, kept in zip(found.params, expected.params, (0.3, -0.4), strict=True):
        np.testing.assert_allclose(table[:2], like, rtol=1e-9)
        np.testing.assert_allclose(table[2], kept, rtol=1e-12)

    def value(gamma):
        learners = [ex.QLearning(0.1, gamma, lr.exploration) for lr in full.learners]
        return ex.rest_point(ex.WrappedGame(full.game, learners), full.init()).params[0].sum()

    gamma = jnp.asarray(0.7)
    slope = jax.grad(value)(gamma)
    with pytest.warns(UserWarning, match="states 2 are transient"):
        difference = central_difference(value, gamma, 1.0, 1e-4)
    np.testing.assert_allclose(slope, difference, rtol=1e-8)


def test_a_small_chance_is_not_rest():
    # From here Newton's method for the bare drift ends where one action has probability 1e-17.
    wrapped = stateless(DILEMMA, 1.0, 0.0)
    start = (jnp.array([[40.0, 0.0]]), jnp.array([[40.0, 0.0]]))
    drift = ex.drift(wrapped, (jnp.array([[3.0, -40.0]]), jnp.array([[3.0, -40.0]])))
    assert np.abs(flatten(drift)).max() < 1e-16
    found = ex.rest_point(wrapped, start)
    np.testing.assert_allclose(wrapped.policies(found.params)[0][0, 0], 0.226751, atol=5e-7)


# Derivatives


@pytest.mark.slow
def test_derivatives_equal_finite_differences():
    weights = np.random.default_rng(3).normal(size=8)
    theta0 = jnp.array([0.6, 0.4, 1.3, 0.9, 0.05, 0.1, 0.3, 0.2, 2.5, 1.5])

    def value(theta):
        tau, eps, gamma = theta[2:4], theta[4:6], theta[6:8]
        kernel = jnp.stack([theta[:2], 1 - theta[:2]], axis=-1)[None, :, None, :]
        kernel = jnp.broadcast_to(kernel, (2, 2, 2, 2))
        rewards = jnp.stack([jnp.array(DILEMMA), jnp.array(DILEMMA).T], axis=-1)
        rewards = jnp.stack([rewards, rewards.at[0, 0, 0].set(theta[8]).at[1, 1, 1].set(theta[9])])
        game = ex.MarkovGame.from_dense(kernel, rewards)
        learners = [ex.Sarsa(0.5, gamma[i], ex.EpsilonSoftmax(tau[i], eps[i])) for i in range(2)]
        wrapped = ex.WrappedGame(game, learners)
        return weights @ ravel_pytree(ex.rest_point(wrapped, wrapped.init()).params)[0]

    compiled = jax.jit(value)
    reverse, forward = jax.jit(jax.grad(value))(theta0), jax.jit(jax.jacfwd(value))(theta0)
    differences = [
        central_difference(compiled, theta0, direction, 1e-3) for direction in np.eye(10)
    ]
    assert_close(forward, reverse, 1e-9)
    assert_close(reverse, np.array(differences), 1e-7)
    assert np.all(np.abs(reverse) > 1e-4)


@pytest.mark.slow
def test_the_guess_has_no_derivative():
    wrapped = stateless(DILEMMA, 1.0, 0.5)
    slope = jax.grad(lambda guess: ex.rest_point(wrapped, guess).params[0].sum())(wrapped.init())
    np.testing.assert_array_equal(flatten(slope), 0)


# Large games, without their Jacobian


def both(monkeypatch, function):
    """What a function finds with the Jacobian as a matrix, and by products with it."""
    by_matrix = function()
    monkeypatch.setattr(rest_points, "MOST_BY_MATRIX", 1)
    return by_matrix, function()


@pytest.mark.slow
def test_without_the_jacobian_the_rest_point_is_the_same(monkeypatch):
    def value(gamma):
        wrapped = stateless(DILEMMA, 1.0, gamma)
        found = ex.rest_point(wrapped, wrapped.init())
        return found.params[0].sum(), found

    (slope, full), (product, free) = both(monkeypatch, lambda: jax.grad(value, has_aux=True)(0.8))
    np.testing.assert_allclose(flatten(free.params), flatten(full.params), rtol=1e-12)
    np.testing.assert_allclose(product, slope, rtol=1e-9)
    assert free.jacobian is None
    assert repr(free) == f"RestPoint(4 parameters, residual {float(free.residual):.2g}: successful)"
    np.testing.assert_allclose(free.eigenvalues, full.eigenvalues[:2], rtol=1e-9)
    assert free.stability == full.stability == "unstable"
    assert "eigenvalues_real" not in free.to_xarray()


@pytest.mark.slow
def test_without_the_jacobian_a_pricing_game_is_the_same(monkeypatch):
    learner = ex.QLearning(0.15, 0.95, ex.EpsilonSoftmax(0.1, 0.05), initial=5.0)
    wrapped = ex.WrappedGame(ex.games.bertrand(num_prices=4), [learner, learner])
    full, free = both(monkeypatch, lambda: ex.rest_point(wrapped, wrapped.init()))
    np.testing.assert_allclose(flatten(free.params), flatten(full.params), rtol=1e-12)
    np.testing.assert_allclose(free.eigenvalues, full.eigenvalues[:2], rtol=1e-4)
    assert free.stability == full.stability == "stable"


def test_an_eigenvalue_that_is_not_found_is_not_made_up(monkeypatch):
    wrapped = stateless(DILEMMA, 1.0, 0.5)
    found = ex.RestPoint(wrapped, wrapped.init(), *[jnp.zeros(())] * 2, None, ex.RESULTS.successful)
    monkeypatch.setattr(rest_points, "leading_eigenvalues", lambda *_: np.zeros(0, complex))
    assert found.stability == "not computed"


# Batches and transformations


def test_rest_points_follow_the_order_of_their_first_guesses():
    wrapped = stateless(np.eye(2), 0.3, 0.0)
    high, low = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]])
    batch = np.stack([high, low, high, low, high])
    found = ex.rest_points(wrapped, (batch, batch))
    assert len(found) == 2
    shares = [float(wrapped.policies(point.params)[0][0, 0]) for point in found]
    assert shares[0] > 0.9
    np.testing.assert_allclose(shares[0], 1 - shares[1], atol=1e-9)
    assert [point.stability for point in found] == ["stable", "stable"]
    assert found[0].eigenvalues.shape == (4,)


@pytest.mark.parametrize("steps", [2, 64])
def test_as_part_of_a_program_it_finds_the_same(random, steps, monkeypatch):
    """With two steps, Newton's method needs the flow's help."""
    followed, flow_end = [], roots._flow_end
    monkeypatch.setattr(roots, "_flow_end", lambda *given: followed.append(1) or flow_end(*given))
    guess = jax.tree.map(lambda x: jnp.linspace(0, 3, x.size).reshape(x.shape), random.init())
    alone = ex.rest_point(random, guess, max_steps=steps)
    assert len(followed) == (steps == 2)
    inside = jax.jit(lambda: ex.rest_point(random, guess, max_steps=steps, throw=False))()
    for point in (alone, inside):
        assert point.result == ex.RESULTS.successful
        np.testing.assert_allclose(flatten(point.params), flatten(alone.params), rtol=1e-10)
        np.testing.assert_allclose(point.jacobian, alone.jacobian, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_batches_under_vmap_equal_single_ones(golden, random):
    guesses = np.stack([golden["random"]["fixed_point"], golden["random"]["x0"]])
    guesses = jax.vmap(lambda x: ravel_pytree(random.init())[1](x))(guesses)
    found = jax.vmap(lambda guess: ex.rest_point(random, guess))(guesses)
    assert np.all(found.result == ex.RESULTS.successful)
    for k in range(2):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], found.params)
        assert_close(flatten(params), golden["random"]["fixed_point"], 1e-10)


# All of them, and no others


def uniform(wrapped, low, high, count=400):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(low, high, size=(count, *leaf.shape))), wrapped.init()
    )


@pytest.mark.slow
@pytest.mark.parametrize("reach", [5.0, 1000.0])
def test_an_underflowed_policy_is_no_rest(reach):
    # Where the second action is never taken, the bare drift of its value is zero.
    game = ex.MarkovGame.deterministic(np.zeros((1, 2), int), np.array([[[1.0], [0.0]]]))
    wrapped = ex.WrappedGame(game, [ex.Sarsa(1.0, 0.0, ex.EpsilonSoftmax(0.3))])
    never = ex.drift(wrapped, (jnp.array([[1.0, -1060.0]]),))[0]
    np.testing.assert_array_equal(never, 0)
    (found,) = ex.rest_points(wrapped, uniform(wrapped, -reach, reach, 200))
    np.testing.assert_allclose(found.params[0], [[1.0, 0.0]], atol=1e-12)


@pytest.mark.slow
def test_coordination_on_three_actions_has_seven_rest_points():
    wrapped = stateless(np.eye(3), 0.2, 0.0)
    found = ex.rest_points(wrapped, uniform(wrapped, 0.0, 1.0))
    # Of a row in every one: one action, or one of two, or one of three alike.
    shares = sorted(tuple(np.sort(wrapped.policies(p.params)[0][0]).round(4)) for p in found)
    assert len(found) == 7
    assert len(set(shares)) == 3
    assert sum(point.stability == "stable" for point in found) == 3
    for point in found:  # a fixed point of the responses
        x, y = (np.asarray(own)[0] for own in point.params)
        for own, other in ((x, y), (y, x)):
            response = np.exp(other / 0.2) / np.exp(other / 0.2).sum()
            np.testing.assert_allclose(own, response, atol=1e-9)


def two_states(gain, gamma):
    """A dilemma that is worth more after both have cooperated (Hilbe and others 2018)."""
    rewards = np.zeros((2, 2, 2, 2))
    for state, benefit in enumerate((gain, 1.2)):
        rewards[state] = [[[benefit - 1] * 2, [-1, benefit]], [[benefit, -1], [0, 0]]]
    follows = np.ones((2, 2, 2), int)
    follows[:, 0, 0] = 0
    learner = ex.Sarsa(1.0, gamma, ex.EpsilonSoftmax(0.2))
    return ex.WrappedGame(ex.MarkovGame.deterministic(follows, rewards), [learner, learner])


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "gamma"), [(4.0, 0.45), (2.0, 0.8)])
def test_a_dilemma_of_two_states_has_three_rest_points(gain, gamma):
    wrapped = two_states(gain, gamma)
    found = ex.rest_points(wrapped, uniform(wrapped, -1 / (1 - gamma), gain / (1 - gamma)))
    shares = sorted(float(wrapped.policies(point.params)[0][0, 0]) for point in found)
    assert len(found) == 3
    assert shares[0] < 0.01
    assert shares[2] > 0.98
    kinds = {float(wrapped.policies(p.params)[0][0, 0]): p.stability for p in found}
    assert [kinds[share] for share in shares] == ["stable", "unstable", "stable"]
    assert len(found.leads_to) == 400
    counts = np.bincount(found.leads_to + 1, minlength=4)
    assert counts[0] == sum(found.failures.values())
    assert counts[1:].min() > 0
    data = found.to_xarray()
    assert data.policy.dims == ("rest_point", "agent", "state", "action")
    np.testing.assert_array_equal(data.leads_to, found.leads_to)
    assert set(data.message.values) <= {"successful", *found.failures}


# What cannot be found, and bad input


def no_rest():
    """An actor-critic whose preferences grow for ever: with epsilon there is no rest point."""
    game = ex.MarkovGame.deterministic(np.zeros((1, 2), int), np.array([[[1.0], [0.0]]]))
    return ex.WrappedGame(game, [ex.ActorCritic(0.1, 0.1, 0.5, ex.EpsilonSoftmax(1.0, 0.1))])


@pytest.mark.slow
def test_a_missing_rest_point_says_residual_and_last_step():
    wrapped = no_rest()
    reason = r"residual \d.*, last Newton step \d.*vanishes.*agent 0 theta, 0, [01] drifts most, by"
    with pytest.raises(RuntimeError, match=reason + ".* per visit: `solve` further"):
        ex.rest_point(wrapped, wrapped.init())
    found = ex.rest_point(wrapped, wrapped.init(), throw=False)
    assert found.result != ex.RESULTS.successful
    assert found.step > 0.1
    guesses = jax.tree.map(lambda leaf: leaf[None], wrapped.init())
    none = ex.rest_points(wrapped, guesses)
    assert len(none) == 0
    assert list(none.failures.values()) == [1]
    assert none.leads_to.tolist() == [-1]


def test_discontinuous_learners_are_refused():
    learner = ex.QLearning(0.1, 0.9, ex.EpsilonGreedy(0.1))
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])
    with pytest.raises(ValueError, match="agent 0: the policy of QLearning is not continuous"):
        ex.rest_point(wrapped, wrapped.init())


def test_bad_guesses_are_refused(random):
    params = random.init()
    with pytest.raises(ValueError, match=r"guess of agent 0.* must be finite"):
        ex.rest_point(random, (params[0].at[0, 0].set(np.nan), params[1]))
    with pytest.raises(ValueError, match=r"guesses of agent 0 must have shape .*leading axis"):
        ex.rest_points(random, (params[0], jnp.zeros((2, 3, 3))))
    with pytest.raises(ValueError, match=r"guesses of agent 1.* must be finite"):
        ex.rest_points(random, (params[0][None], params[1][None] * np.nan))
