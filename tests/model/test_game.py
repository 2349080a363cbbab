import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ergodax import MarkovGame
from ergodax.model.game import padding
from helpers import annotations_off

SPARSE = np.zeros((3, 2, 2, 3))
SPARSE[..., 0] = 1.0
SPARSE[0, 1, 0] = [0.2, 0.0, 0.8]
SPARSE[1, 0, 1] = [0.0, 1.0, 0.0]
SPARSE[2, 1, 1] = [0.25, 0.5, 0.25]
REWARDS = np.arange(24.0).reshape(3, 2, 2, 2)
OUTCOMES = {
    "successors": np.zeros((3, 2, 1), dtype=int),
    "probabilities": np.ones((3, 2, 1)),
    "rewards": np.zeros((3, 2, 1, 1)),
}


@pytest.fixture
def dense():
    """Two agents, 3 states, 2 x 3 actions."""
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(3), size=(3, 2, 3)), rng.normal(size=(3, 2, 3, 2))


def test_sizes_come_from_the_kernel(dense):
    game = MarkovGame.from_dense(*dense)
    assert (game.num_states, game.num_actions) == (3, (2, 3))
    assert (game.num_agents, game.num_successors) == (2, 3)
    assert repr(game) == "MarkovGame(2 agents, 3 states, 2 x 3 actions, 3 successors)"


def test_dense_kernel_comes_back(dense):
    np.testing.assert_array_equal(MarkovGame.from_dense(*dense).kernel, dense[0])
    np.testing.assert_array_equal(MarkovGame.from_dense(SPARSE, REWARDS).kernel, SPARSE)


def test_only_possible_outcomes_are_stored():
    game = MarkovGame.from_dense(SPARSE, REWARDS)
    assert game.num_successors == 3
    narrow = SPARSE.copy()
    narrow[2, 1, 1] = [0.5, 0.5, 0.0]
    game = MarkovGame.from_dense(narrow, REWARDS)
    assert game.num_successors == 2
    np.testing.assert_array_equal(game.successors[0, 1, 0], [0, 2])
    np.testing.assert_array_equal(game.probabilities[0, 1, 0], [0.2, 0.8])


def test_short_rows_repeat_their_last_outcome_with_probability_zero():
    game = MarkovGame.from_dense(SPARSE, REWARDS)
    np.testing.assert_array_equal(game.successors[1, 0, 1], [1, 1, 1])
    np.testing.assert_array_equal(game.probabilities[1, 0, 1], [1, 0, 0])
    np.testing.assert_array_equal(padding(game)[1, 0, 1], [False, True, True])
    assert not padding(game)[2, 1, 1].any()


def test_rewards_without_next_state_repeat_over_outcomes():
    game = MarkovGame.from_dense(SPARSE, REWARDS)
    np.testing.assert_array_equal(game.rewards, np.repeat(REWARDS[..., None, :], 3, axis=-2))


def test_rewards_by_next_state_are_picked_at_the_successor():
    by_next = np.random.default_rng(1).normal(size=(3, 2, 2, 3, 2))
    game = MarkovGame.from_dense(SPARSE, by_next)
    for index in np.ndindex(game.successors.shape):
        expected = by_next[(*index[:-1], int(game.successors[index]))]
        np.testing.assert_array_equal(game.rewards[index], expected)


def test_deterministic_equals_the_dense_form():
    next_state = np.random.default_rng(2).integers(3, size=(3, 2, 2))
    game = MarkovGame.deterministic(next_state, REWARDS)
    same = MarkovGame.from_dense(np.eye(3)[next_state], REWARDS)
    assert game.num_successors == 1
    assert eqx.tree_equal(game, same)


def test_given_support_fixes_the_number_of_outcomes():
    support = np.broadcast_to(np.arange(3), (3, 2, 2, 3))
    narrow = SPARSE.copy()
    narrow[2, 1, 1] = [0.5, 0.5, 0.0]
    game = MarkovGame.from_dense(narrow, REWARDS, support=support)
    assert game.num_successors == 3
    np.testing.assert_array_equal(game.kernel, narrow)


def test_states_repeated_in_the_support_count_once():
    support = np.broadcast_to([2, 0, 1, 0, 2], (3, 2, 2, 5))
    game = MarkovGame.from_dense(SPARSE, REWARDS, support=support)
    np.testing.assert_array_equal(game.kernel, SPARSE)
    np.testing.assert_array_equal(game.probabilities[..., 3:], 0)


def test_support_need_not_be_numpy():
    support = jnp.broadcast_to(jnp.arange(3), (3, 2, 2, 3))
    game = MarkovGame.from_dense(jnp.asarray(SPARSE), jnp.asarray(REWARDS), support=support)
    np.testing.assert_array_equal(game.kernel, SPARSE)


def test_kernel_outside_the_support_is_refused():
    support = np.zeros((3, 2, 2, 1), dtype=int)
    with pytest.raises(ValueError, match=r"state 0, joint action \(1, 0\).*sum to 0\.2"):
        MarkovGame.from_dense(SPARSE, REWARDS, support=support)


def test_traced_kernel_keeps_all_states(dense):
    game = jax.jit(MarkovGame.from_dense)(SPARSE, REWARDS)
    assert game.num_successors == 3
    np.testing.assert_array_equal(game.kernel, SPARSE)


def test_traced_rewards_keep_the_sparse_support():
    next_state = np.zeros((3, 2, 2), dtype=int)
    game = jax.jit(lambda r: MarkovGame.deterministic(next_state, r))(REWARDS)
    same = jax.jit(lambda r: MarkovGame.from_dense(np.eye(3)[next_state], r))(REWARDS)
    assert game.num_successors == same.num_successors == 1
    np.testing.assert_array_equal(game.rewards[..., 0, :], REWARDS)


def test_games_stack_under_vmap():
    support = np.broadcast_to(np.arange(3), (3, 2, 2, 3))
    rewards = np.stack([REWARDS, -REWARDS])
    kernels = np.stack([SPARSE, SPARSE[::-1]])
    games = jax.vmap(lambda T, R: MarkovGame.from_dense(T, R, support=support))(kernels, rewards)
    assert games.successors.shape == (2, 3, 2, 2, 3)
    assert (games.num_states, games.num_actions, games.num_agents) == (3, (2, 2), 2)
    np.testing.assert_array_equal(jax.vmap(lambda game: game.kernel)(games), kernels)


def test_integers_become_floats():
    game = MarkovGame.deterministic(np.zeros((1, 2), dtype=int), np.ones((1, 2, 1), dtype=int))
    assert game.rewards.dtype == game.probabilities.dtype == jnp.float64
    assert game.successors.dtype == jnp.int32


def test_initial_law_is_uniform_by_default(dense):
    np.testing.assert_allclose(MarkovGame.from_dense(*dense).initial, 1 / 3)
    game = MarkovGame.from_dense(*dense, initial=np.array([0, 0.25, 0.75]))
    np.testing.assert_array_equal(game.initial, [0, 0.25, 0.75])


def test_names_are_numbers_by_default(dense):
    game = MarkovGame.from_dense(*dense)
    assert game.state_names == ("0", "1", "2")
    assert game.action_names == (("0", "1"), ("0", "1", "2"))
    game = MarkovGame.from_dense(
        *dense, state_names=["a", "b", "c"], action_names=[["L", "R"], ["x", "y", "z"]]
    )
    assert game.state_names == ("a", "b", "c")
    assert game.action_names == (("L", "R"), ("x", "y", "z"))


def test_unilateral_outcomes_vary_one_action():
    rng = np.random.default_rng(3)
    kernel = rng.dirichlet(np.ones(2), size=(2, 2, 3, 2))
    rewards = rng.normal(size=(2, 2, 3, 2, 2, 3))
    game = MarkovGame.from_dense(kernel, rewards)
    action = (1, 2, 0)
    for agent, count in enumerate(game.num_actions):
        successors, probabilities, gains = game.unilateral(
            agent, jnp.asarray(1), jnp.asarray(action)
        )
        for own in range(count):
            index = (1, *action[:agent], own, *action[agent + 1 :])
            np.testing.assert_array_equal(successors[own], [0, 1])
            np.testing.assert_array_equal(probabilities[own], kernel[index])
            np.testing.assert_array_equal(gains[own], rewards[index][:, agent])


def changed(index, value, array=SPARSE):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (changed((0, 1, 0, 2), 0.7), r"of state 0, joint action \(1, 0\).* sum to 0\.9, not 1"),
        (changed((1, 0, 1), 0.0), r"of state 1, joint action \(0, 1\).* sum to 0, not 1"),
        (
            changed((2, 1, 1), [-0.25, 0.5, 0.75]),
            r"probability -0\.25 at state 2, joint action \(1, 1\), entry 0, is negative",
        ),
        (
            changed((2, 1, 1, 1), np.nan),
            r"probability nan at state 2, joint action \(1, 1\), entry 1, .*not finite",
        ),
        (changed((0, 0, 0, 0), np.inf), r"probability inf at state 0, joint action \(0, 0\)"),
    ],
)
def test_bad_kernels_are_refused(kernel, message):
    with pytest.raises(ValueError, match=message):
        MarkovGame.from_dense(kernel, REWARDS)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (changed((1, 0, 1, 1), np.nan, REWARDS), r"nan of agent 1 at state 1, joint action \(0, 1"),
        (changed((2, 1, 0, 0), -np.inf, REWARDS), r"-inf of agent 0 at state 2, joint action \(1"),
    ],
)
def test_bad_rewards_are_refused(rewards, message):
    with pytest.raises(ValueError, match=message):
        MarkovGame.from_dense(SPARSE, rewards)
    with pytest.raises(ValueError, match=message):
        MarkovGame.deterministic(np.zeros((3, 2, 2), dtype=int), rewards)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": np.array([0.5, 0.4, 0.0])}, r"initial probabilities sum to 0\.9"),
        ({"initial": np.array([1.5, -0.5, 0.0])}, r"initial probability -0\.5 of state 1"),
        ({"initial": np.array([0.5, 0.5, np.nan])}, r"initial probability nan of state 2"),
        ({"state_names": ["a", "b"]}, "state_names must hold 3 names; found 2"),
        ({"state_names": ["a", "b", "a"]}, "state_names must be distinct"),
        ({"action_names": [["L", "R"]]}, r"one sequence per agent \(2\); found 1"),
        ({"action_names": [["L", "R"], ["x"]]}, "action_names of agent 1 must hold 2 names"),
        ({"action_names": [["L", "L"], ["x", "y"]]}, "action_names of agent 0 must be distinct"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MarkovGame.from_dense(SPARSE, REWARDS, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"successors": np.array([[[0], [1]], [[0], [3]], [[0], [1]]])},
            r"successors at state 1, joint action \(1,\) must be states, 0 to 2; found 3",
        ),
        (
            {"successors": np.array([[[0], [1]], [[0], [2]], [[0], [-1]]])},
            r"successors at state 2, joint action \(1,\) must be states, 0 to 2; found -1",
        ),
        (
            {"probabilities": np.array([[[1.0], [1]], [[1], [0.5]], [[1], [1]]])},
            r"state 1, joint action \(1,\) \(1: 1\) sum to 0\.5",
        ),
    ],
)
def test_bad_outcomes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MarkovGame(**(OUTCOMES | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": np.ones((3, 2, 2, 2)) / 2}, r"kernel must have shape .*found \(3, 2, 2, 2\)"),
        ({"kernel": np.ones((3, 3)) / 3}, r"kernel must have shape \[S, A_1, .., A_n, S\]"),
        ({"rewards": REWARDS[..., :1]}, r"rewards must have shape .*found \(3, 2, 2, 1\)"),
        ({"rewards": np.moveaxis(REWARDS, -1, 0)}, r"agent axis last.*found \(2, 3, 2, 2\)"),
        ({"initial": np.array([0.5, 0.5])}, r"initial must have shape \(3,\); found \(2,\)"),
        ({"support": np.zeros((3, 2, 3), int)}, r"support must have shape .*found \(3, 2, 3\)"),
    ],
)
def test_wrong_shapes_of_dense_games_are_refused(change, message):
    with annotations_off(), pytest.raises(ValueError, match=message):
        MarkovGame.from_dense(**({"kernel": SPARSE, "rewards": REWARDS} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"successors": np.zeros((3, 2), dtype=int)}, "successors must have shape"),
        ({"successors": np.zeros((3, 2, 0), dtype=int)}, "at least one state, agent"),
        ({"successors": np.zeros((3, 2, 1))}, "successors must be integers; found dtype float64"),
        ({"probabilities": np.ones((3, 2, 2))}, r"must have shape \(3, 2, 1\), that of successors"),
        ({"rewards": np.zeros((3, 2, 1, 2))}, r"rewards must have shape \(3, 2, 1, 1\)"),
    ],
)
def test_wrong_shapes_of_outcomes_are_refused(change, message):
    with annotations_off(), pytest.raises(ValueError, match=message):
        MarkovGame(**(OUTCOMES | change))


def test_wrong_shapes_of_deterministic_games_are_refused():
    next_state = np.zeros((3, 2, 2), dtype=int)
    with annotations_off(), pytest.raises(ValueError, match=r"agent axis last.*\(2, 3, 2, 2\)"):
        MarkovGame.deterministic(next_state, np.moveaxis(REWARDS, -1, 0))


def test_shapes_are_checked_under_a_trace():
    with annotations_off(), pytest.raises(ValueError, match="rewards must have shape"):
        jax.jit(MarkovGame.from_dense)(SPARSE, REWARDS[..., :1])


def test_messages_use_the_given_names():
    with pytest.raises(ValueError, match=r"nan of agent 0 .*\(b: stay, go\)"):
        MarkovGame.from_dense(
            SPARSE,
            changed((1, 0, 1, 0), np.nan, REWARDS),
            state_names=["a", "b", "c"],
            action_names=[["stay", "leave"], ["come", "go"]],
        )


@pytest.mark.parametrize(("dtype", "passes", "fails"), [("f8", 5e-9, 5e-8), ("f4", 5e-6, 5e-5)])
def test_row_sums_may_be_off_by_rounding(dtype, passes, fails):
    kernel = SPARSE.copy()
    kernel[2, 1, 1, 0] += passes
    MarkovGame.from_dense(kernel.astype(dtype), REWARDS)
    kernel[2, 1, 1, 0] += fails
    with pytest.raises(ValueError, match="sum to 1"):
        MarkovGame.from_dense(kernel.astype(dtype), REWARDS)


def test_values_are_not_checked_under_a_trace():
    game = jax.jit(MarkovGame.from_dense)(2 * SPARSE, REWARDS)
    np.testing.assert_array_equal(game.kernel, 2 * SPARSE)


@pytest.mark.parametrize(("shift", "warns"), [(1e5, True), (1e2, False), (0, False)])
def test_rewards_that_float32_cannot_tell_apart_are_said(shift, warns):
    rewards = np.array([[0.0, 1.0], [0.5, 0.2]])[None, ..., None] * np.ones(2)
    rewards[..., 1] += shift
    made = functools.partial(MarkovGame.deterministic, np.zeros((1, 2, 2), int), rewards)
    made()  # in float64 all is well
    with jax.enable_x64(False):
        context = pytest.warns(UserWarning, match="rewards of agent 1 lie between 1000")
        with context if warns else contextlib.nullcontext():
            made()
