import itertools
import os
import subprocess
import sys
import textwrap

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
import oracle
from helpers import (
    Spec,
    annotations_off,
    assert_close,
    central_difference,
    flatten,
    flatten_times,
    make_learner,
    random_case,
    unflatten,
)

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def matching_pennies(**spec):
    """A small wrapped game: one state, two agents, two actions."""
    payoffs = [[(1.0, -1.0), (-1.0, 1.0)], [(-1.0, 1.0), (1.0, -1.0)]]
    learner = make_learner(Spec(**({"kind": "q", "gamma": 0.5, "eps": 0.1} | spec)))
    wrapped = ex.WrappedGame(ex.games.repeated(payoffs, memory=0), [learner, learner])
    return wrapped, (jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.5]]))


# Solutions


@pytest.mark.parametrize("case", ["pd", "random", "mixed"])
def test_solution_equals_golden(golden, wrapped_games, case):
    wrapped, values = wrapped_games[case], golden[case]
    params0 = unflatten(wrapped, values["x0"])
    solution = ex.solve(wrapped, params0, values["times"], **TIGHT)
    assert_close(flatten_times(solution.params), values["x_t"], 1e-7)
    np.testing.assert_array_equal(solution.ts, values["times"])
    assert solution.result == ex.RESULTS.successful
    assert solution.end_time == values["times"][-1]


@pytest.mark.parametrize("case", ["pd", "random", "mixed"])
def test_the_default_tolerance_gives_five_digits(golden, wrapped_games, case):
    wrapped, values = wrapped_games[case], golden[case]
    solution = ex.solve(wrapped, unflatten(wrapped, values["x0"]), values["times"])
    assert_close(flatten_times(solution.params), values["x_t"], 1e-5)


def test_one_entry_decays_as_its_exponential():
    game = ex.MarkovGame.deterministic(np.zeros((1, 1), int), np.full((1, 1, 1), 3.0))
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.2, 0.5)])
    ts = np.array([0.5, 4.0, 20.0])
    solution = ex.solve(wrapped, (jnp.array([[-1.0]]),), ts, **TIGHT)
    # dQ/dt = alpha (3 + gamma Q - Q), at rest at Q = 6.
    np.testing.assert_allclose(solution.params[0].ravel(), 6 - 7 * np.exp(-0.1 * ts), rtol=1e-8)


def test_a_constant_drift_is_followed_exactly():
    class Clock(ex.AbstractLearner):
        rate: jax.Array = ex.hyper(0.25)

        def init(self, game, agent, *, key):
            return {"time": jnp.zeros(())}

        def policy(self, params, state):
            return jnp.array([0.5, 0.5])

        def update(self, params, transition, game, agent):
            return {"time": self.rate}

    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [Clock(), Clock(-2.0)])
    solution = ex.solve(wrapped, wrapped.init(), jnp.array([0.0, 1.0, 1000.0]))
    np.testing.assert_allclose(solution.params[0]["time"], [0, 0.25, 250], rtol=1e-12)
    np.testing.assert_allclose(solution.params[1]["time"], [0, -2, -2000], rtol=1e-12)


def test_solution_reports_what_its_params_imply():
    case = random_case(1, 3, (2, 3), ("actor_critic", "sarsa"), "next_state")
    solution = ex.solve(case.wrapped, case.params, jnp.array([0.0, 1.0, 5.0]))
    assert jax.tree.structure(solution.params) == jax.tree.structure(case.params)
    for leaf, like in zip(
        jax.tree.leaves(solution.params), jax.tree.leaves(case.params), strict=True
    ):
        assert leaf.shape == (3, *like.shape)
    for k in range(3):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], solution.params)
        flat = [np.asarray(ravel_pytree(p)[0]) for p in params]
        joint = oracle.joint_policy(case.game, case.learners, flat)
        law = oracle.stationary_distribution(oracle.state_chain(case.game, joint))
        assert_close(solution.state_distribution[k], law, 1e-12)
        rewards = oracle.expected_rewards(case.game, case.learners, flat)
        assert_close(solution.rewards[k], rewards, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("actor_critic", "sarsa"), ("counterfactual", "q")])
def test_solution_equals_small_steps_of_the_oracle(kinds):
    case = random_case(2, 2, (2, 2), kinds)
    solution = ex.solve(case.wrapped, case.params, jnp.array([1.0]), **TIGHT)
    x, h = np.concatenate(case.flat), 1 / 40

    def drift(x):
        return oracle.drift(case.game, case.learners, oracle.split(case.game, case.learners, x))

    for _ in range(40):  # the classical Runge-Kutta method
        k1 = drift(x)
        k2 = drift(x + h / 2 * k1)
        k3 = drift(x + h / 2 * k2)
        k4 = drift(x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert_close(flatten_times(solution.params)[-1], x, 1e-7)


def test_report_times_do_not_change_the_solution(mixed, golden):
    values = golden["mixed"]
    ts = np.sort([*values["times"][[1, 5, 6, 10]], 0.01, 0.3, 0.31, 4.1, 5.5, 7.9, 7.99])
    solution = ex.solve(mixed, unflatten(mixed, values["x0"]), ts, **TIGHT)
    found, expected = np.isin(ts, values["times"]), np.isin(values["times"], ts)
    assert found.sum() == expected.sum() == 4
    assert_close(flatten_times(solution.params)[found], values["x_t"][expected], 1e-7)


def test_the_start_alone_can_be_reported():
    wrapped, params0 = matching_pennies()
    solution = ex.solve(wrapped, params0, jnp.array([0.0]))
    np.testing.assert_array_equal(flatten_times(solution.params)[0], flatten(params0))
    assert solution.result == ex.RESULTS.successful


@pytest.mark.parametrize("ts", [[0, 1, 2], [0.0, 1.0, 2.0], np.arange(3), jnp.arange(3.0)])
def test_times_may_be_any_numbers(ts):
    wrapped, params0 = matching_pennies()
    solution = ex.solve(wrapped, params0, ts)
    np.testing.assert_array_equal(solution.ts, [0, 1, 2])
    assert solution.ts.dtype == jnp.float64


def test_a_rest_point_stays(golden, wrapped_games):
    values, wrapped = golden["random"], wrapped_games["random"]
    params0 = unflatten(wrapped, values["fixed_point"])
    solution = ex.solve(wrapped, params0, jnp.array([50.0]))
    assert_close(flatten_times(solution.params)[0], values["fixed_point"], 1e-7)


def test_another_solver_gives_the_same(golden, mixed):
    params0, ts = unflatten(mixed, golden["mixed"]["x0"]), golden["mixed"]["times"]
    solution = ex.solve(mixed, params0, ts, solver=diffrax.Dopri5(), **TIGHT)
    assert_close(flatten_times(solution.params), golden["mixed"]["x_t"], 1e-7)


# Derivatives of smooth learners against differences


@pytest.fixture(scope="module")
def smooth():
    """A smooth wrapped game, its parameters, a loss of both, and the loss's gradient."""
    case = random_case(3, 3, (2, 2), ("actor_critic", "sarsa"), "next_state")
    weights = np.random.default_rng(0).normal(size=(2, flatten(case.params).size))

    @eqx.filter_jit
    def loss(wrapped, params0):
        solution = ex.solve(wrapped, params0, jnp.array([1.0, 4.0]), rtol=1e-11, atol=1e-11)
        flat = jax.vmap(lambda p: ravel_pytree(p)[0])(solution.params)
        return jnp.sum(weights * flat) + solution.rewards.sum() + solution.state_distribution[1, 0]

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))
    return case, loss, gradient(case.wrapped, case.params)


def assert_slope(smooth, where, direction):
    """Compares the gradient along a direction of one part with a central difference."""
    case, loss, gradient = smooth
    point = (case.wrapped, case.params)

    def moved(step):
        leaf = where(point)
        return loss(*eqx.tree_at(where, point, leaf + step * direction))

    assert_close(
        np.sum(np.asarray(where(gradient)) * direction),
        central_difference(moved, 0.0, 1.0, step=1e-3),
        1e-6,
    )


RATES = ("learning_rate", "discount", "temperature", "epsilon")


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "name"), [(0, "critic_rate"), *itertools.product([0, 1], RATES)])
def test_derivative_by_a_hyper_parameter_equals_differences(smooth, agent, name):
    def where(point):
        learner = point[0].learners[agent]
        return getattr(learner if hasattr(learner, name) else learner.exploration, name)

    assert_slope(smooth, where, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewards", "probabilities", "initial values"])
def test_derivative_by_an_array_equals_differences(smooth, name):
    rng = np.random.default_rng(4)
    places = {
        "rewards": lambda point: point[0].game.rewards,
        "probabilities": lambda point: point[0].game.probabilities,
        "initial values": lambda point: point[1][0].theta,
    }
    leaf = np.asarray(places[name]((smooth[0].wrapped, smooth[0].params)))
    direction = rng.normal(size=leaf.shape)
    if name == "probabilities":
        direction = leaf * (direction - np.sum(leaf * direction, axis=-1, keepdims=True))
    assert_slope(smooth, places[name], direction)


@pytest.mark.slow
def test_derivative_through_a_dense_kernel_equals_differences():
    rng = np.random.default_rng(5)
    kernel, rewards = rng.dirichlet(np.ones(3), size=(3, 2)), rng.normal(size=(3, 2, 1))
    learner = make_learner(Spec("sarsa", alpha=0.5, gamma=0.8, tau=0.7, eps=0.1))

    @jax.jit
    def loss(kernel):
        wrapped = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), [learner])
        solution = ex.solve(wrapped, wrapped.init(), jnp.array([5.0]), rtol=1e-11, atol=1e-11)
        return solution.params[0][0, 1, 0] + solution.rewards[0, 0]

    noise = rng.normal(size=kernel.shape)
    direction = kernel * (noise - np.sum(kernel * noise, axis=-1, keepdims=True))
    gradient = jax.jit(jax.grad(loss))(kernel)
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-12)
    slope = np.sum(gradient * direction)
    assert_close(slope, central_difference(loss, kernel, direction, step=1e-3), 1e-6)


# Batches and compilation


@pytest.mark.slow
def test_batches_equal_single_solves():
    rng = np.random.default_rng(6)
    thetas = {
        "alpha": rng.uniform(0.2, 1, size=(5, 2)),
        "gamma": rng.uniform(0, 0.9, size=(5, 2)),
        "tau": rng.uniform(0.5, 2, size=(5, 2)),
        "g": rng.uniform(1, 2, size=5),
    }
    params0 = tuple(jnp.asarray(rng.normal(size=(5, 4, 2))) for _ in range(2))
    ts = jnp.array([0.0, 1.0, 7.0])

    def build(theta):
        learners = [
            ex.QLearning(theta["alpha"][i], theta["gamma"][i], ex.EpsilonSoftmax(theta["tau"][i]))
            for i in range(2)
        ]
        return ex.WrappedGame(ex.games.prisoners_dilemma(theta["g"]), learners)

    batch = jax.vmap(build)(thetas)
    found = jax.vmap(lambda wrapped, x: ex.solve(wrapped, x, ts, **TIGHT))(batch, params0)
    assert found.rewards.shape == (5, 3, 2)
    assert (found.result == ex.RESULTS.successful).all()
    for k in range(5):
        wrapped, at = jax.tree.map(lambda leaf, k=k: leaf[k], (batch, params0))
        single = ex.solve(wrapped, at, ts, **TIGHT)
        for i in range(2):
            assert_close(found.params[i][k], single.params[i], 1e-8)
        assert_close(found.rewards[k], single.rewards, 1e-8)
        assert_close(found.state_distribution[k], single.state_distribution, 1e-8)


# Failures


def test_too_few_steps_are_an_error_that_names_the_time(random, golden):
    values = golden["random"]
    params0 = unflatten(random, values["x0"])
    with pytest.raises(RuntimeError, match=r"solved only up to t = \d of 10: .*steps"):
        ex.solve(random, params0, values["times"], max_steps=32)


class Moving(ex.AbstractLearner):
    """One number that moves on its own; with `growing` by its square, else evenly."""

    growing: bool = eqx.field(static=True)

    def init(self, game, agent, *, key):
        return jnp.full((), 0.5)

    def policy(self, params, state):
        share = 0.5 + 0 * params if self.growing else params
        return jnp.stack([share, 1 - share])

    def update(self, params, transition, game, agent):
        return params**2 if self.growing else 0.1 + 0 * params


@pytest.mark.parametrize(
    ("growing", "ts", "end", "reason"),
    [
        (True, [0.5, 20.0], "0.5 of 20", "grew without bound"),
        (False, [0.5, 20.0], "0.5 of 20", "policy became negative, did not sum to one"),
    ],
)
def test_what_has_no_solution_is_told_from_too_few_steps(growing, ts, end, reason):
    game = ex.games.repeated((np.eye(2), np.eye(2)), memory=0)
    wrapped = ex.WrappedGame(game, [Moving(growing)] * 2)
    # dx/dt = x^2 from 1/2 is infinite at t = 2; from 1/2 at speed 0.1 the share is 1 at t = 5.
    with pytest.raises(RuntimeError, match=f"solved only up to t = {end}: .*{reason}"):
        ex.solve(wrapped, wrapped.init(), ts)


def test_a_failed_solve_can_be_returned(random, golden):
    values = golden["random"]
    params0 = unflatten(random, values["x0"])
    solution = ex.solve(random, params0, values["times"], max_steps=32, throw=False)
    assert solution.result == ex.RESULTS.max_steps_reached
    assert 0 < solution.end_time < 10
    found = flatten_times(solution.params)
    reached = values["times"] <= float(solution.end_time)
    assert_close(found[reached], values["x_t"][reached], 1e-5)
    assert not np.isfinite(found[~reached]).any()


@pytest.mark.slow
def test_a_failed_solve_does_not_raise_in_a_batch():
    wrapped, params0 = matching_pennies()
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), params0)
    ends = jnp.array([[1e-3], [1e6]])
    solution = jax.vmap(lambda x, ts: ex.solve(wrapped, x, ts, max_steps=4))(batch, ends)
    np.testing.assert_array_equal(solution.result == ex.RESULTS.max_steps_reached, [False, True])
    np.testing.assert_array_equal(solution.end_time, [1e-3, 0.0])
    compiled = eqx.filter_jit(lambda x: ex.solve(wrapped, x, ends[1], max_steps=4))(params0)
    assert compiled.result == ex.RESULTS.max_steps_reached


@pytest.fixture(scope="module")
def hardening():
    """A learner that chooses the next state, is paid to stay, and learns never to move."""
    next_state = np.array([[0, 1], [0, 1]])
    rewards = np.eye(2)[..., None]
    learner = ex.QLearning(0.5, 0.5, ex.EpsilonSoftmax(0.025))
    wrapped = ex.WrappedGame(ex.MarkovGame.deterministic(next_state, rewards), [learner])
    return wrapped, wrapped.init(), jnp.array([0.01, 0.1, 1.0, 50.0])


def test_a_chain_that_becomes_reducible_is_an_error(hardening):
    message = r"solved only up to t = [\d.]+ of 50: .*numerically reducible"
    with pytest.raises(RuntimeError, match=message):
        ex.solve(*hardening)


def test_a_chain_that_becomes_reducible_has_its_own_code(hardening):
    solution = ex.solve(*hardening, throw=False)
    assert solution.result == ex.RESULTS.reducible
    assert solution.end_time < 50


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        ([], r"ts must be a non-empty list of times; found shape \(0,\)"),
        (1.0, r"ts must be a non-empty list of times; found shape \(\)"),
        ([[0.0, 1.0]], r"ts must be a non-empty list of times; found shape \(1, 2\)"),
        ([-1.0, 1.0], r"found ts\[0\] = -1\.0\."),
        ([0.0, 2.0, 1.0], r"increasing; found ts\[2\] = 1\.0 after 2\.0"),
        ([0.0, 1.0, 1.0], r"found ts\[2\] = 1\.0 after 1\.0"),
        ([0.0, np.nan, 2.0], r"found ts\[1\] = nan"),
        ([0.0, np.inf], r"found ts\[1\] = inf"),
    ],
)
def test_bad_times_are_refused(ts, message):
    wrapped, params0 = matching_pennies()
    with annotations_off(), pytest.raises(ValueError, match=message):
        ex.solve(wrapped, params0, np.asarray(ts))


@pytest.mark.slow
def test_single_precision_works_and_is_said_once():
    script = """
        import warnings
        import jax.numpy as jnp
        import numpy as np
        import ergodax as ex

        game = ex.games.repeated(np.array([[1.0], [2.0]]), memory=0)
        wrapped = ex.WrappedGame(game, [ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(0.5, 0.1))])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(2):
                solution = ex.solve(wrapped, wrapped.init(), np.array([5.0]), rtol=1e-5, atol=1e-5)
        assert len(caught) == 1, [str(w.message) for w in caught]
        assert "float32" in str(caught[0].message)
        assert caught[0].filename == "<string>"
        assert solution.params[0].dtype == jnp.float32
        print(*solution.params[0].ravel().tolist())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    game = ex.games.repeated(np.array([[1.0], [2.0]]), memory=0)
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(0.5, 0.1))])
    expected = ex.solve(wrapped, wrapped.init(), np.array([5.0])).params[0]
    assert_close([float(value) for value in done.stdout.split()], np.ravel(expected), 1e-4)


@pytest.mark.slow
def test_concrete_values_may_be_closed_over_by_jit(pd):
    params, ts = pd.init(), jnp.array([0.0, 5.0])
    law = jax.jit(lambda scale: scale * ex.stationary_distribution(pd, params))(2.0)
    np.testing.assert_allclose(law, 2 * ex.stationary_distribution(pd, params), rtol=1e-14)
    end = jax.jit(lambda shift: ex.solve(pd, params, ts).params[0][-1] + shift)(0.0)
    np.testing.assert_allclose(end, ex.solve(pd, params, ts).params[0][-1], rtol=1e-13)
