import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from helpers import annotations_off

PAYOFFS = np.random.default_rng(0).normal(size=(2, 3, 2))
TABLES = tuple(np.moveaxis(PAYOFFS, -1, 0))


def test_prisoners_dilemma_is_the_golden_game(golden):
    game = ex.games.prisoners_dilemma(1.5)
    np.testing.assert_array_equal(game.kernel, golden["pd"]["T"])
    np.testing.assert_allclose(game.rewards[..., 0, :], golden["pd"]["R"], rtol=1e-15)
    assert game.state_names == ("CC", "CD", "DC", "DD")
    assert game.action_names == (("C", "D"), ("C", "D"))


def test_prisoners_dilemma_has_the_gain_of_the_paper_by_default():
    default, given = ex.games.prisoners_dilemma(), ex.games.prisoners_dilemma(g=1.5)
    np.testing.assert_array_equal(default.rewards, given.rewards)


def test_prisoners_dilemma_is_differentiable_by_its_gain():
    slope = jax.jacobian(lambda g: ex.games.prisoners_dilemma(g).rewards[0, ..., 0, :])(1.2)
    np.testing.assert_allclose(slope, [[[2, 2], [1, 1]], [[1, 1], [0, 0]]])


def test_prisoners_dilemmas_stack():
    games = jax.vmap(ex.games.prisoners_dilemma)(jnp.array([1.1, 1.9]))
    assert games.rewards.shape == (2, 4, 2, 2, 1, 2)
    np.testing.assert_allclose(games.rewards[:, 0, 0, 0, 0], [[2.2, 2.2], [3.8, 3.8]])


@pytest.mark.parametrize("memory", [0, 1, 2, 3])
def test_the_state_is_the_memory_of_past_play(memory):
    game = ex.games.repeated(TABLES, memory=memory)
    joint_actions = list(itertools.product(range(2), range(3)))
    histories = list(itertools.product(joint_actions, repeat=memory))
    assert game.num_states == len(histories) == 6**memory
    assert game.num_actions == (2, 3)
    assert game.num_successors == 1
    for state, history in enumerate(histories):
        for action in joint_actions:
            following = (*history, action)[1:] if memory else ()
            successor = int(game.successors[(state, *action, 0)])
            assert histories[successor] == following
            np.testing.assert_array_equal(game.rewards[(state, *action, 0)], PAYOFFS[action])


def test_three_agents_with_unequal_actions():
    payoffs = np.random.default_rng(1).normal(size=(2, 1, 3, 3))
    game = ex.games.repeated(payoffs)
    assert (game.num_agents, game.num_states, game.num_actions) == (3, 6, (2, 1, 3))
    assert game.state_names[:4] == ("000", "001", "002", "100")
    np.testing.assert_array_equal(game.successors[2, 1, 0, 2, 0], 5)


@pytest.mark.parametrize(
    ("memory", "names", "expected"),
    [
        (0, [["C", "D"], ["L", "M", "R"]], ("-",)),
        (1, [["C", "D"], ["L", "M", "R"]], ("CL", "CM", "CR", "DL", "DM", "DR")),
        (
            1,
            [["low", "high"], ["L", "M", "R"]],
            ("low-L", "low-M", "low-R", "high-L", "high-M", "high-R"),
        ),
        (1, None, ("00", "01", "02", "10", "11", "12")),
    ],
)
def test_states_are_named_after_actions(memory, names, expected):
    game = ex.games.repeated(TABLES, memory=memory, action_names=names)
    assert game.state_names == expected


def test_longer_memories_are_named_oldest_first():
    names = ex.games.repeated(TABLES, memory=2).state_names
    assert names[:3] == ("00 00", "00 01", "00 02")
    assert names[-1] == "12 12"
    assert names[6] == "01 00"


def test_initial_law_is_passed_on():
    initial = np.array([0, 0, 0.5, 0, 0.5, 0])
    np.testing.assert_array_equal(ex.games.repeated(TABLES, initial=initial).initial, initial)
    np.testing.assert_allclose(ex.games.repeated(TABLES).initial, 1 / 6)


def test_integer_payoffs_are_allowed():
    game = ex.games.repeated([[(3, 3), (0, 5)], [(5, 0), (1, 1)]])
    assert game.rewards.dtype == jnp.float64
    np.testing.assert_array_equal(game.rewards[2, 0, 1, 0], [0, 5])


def test_bad_repeated_games_are_refused():
    with pytest.raises(ValueError, match="memory must be 0 or a positive integer; found -1"):
        ex.games.repeated(TABLES, memory=-1)
    wrong = PAYOFFS.copy()
    wrong[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"nan of agent 0 at state 0, joint action \(1, 2\)"):
        ex.games.repeated(tuple(np.moveaxis(wrong, -1, 0)))
    for shape in [(2, 3, 3), (2,), ()]:
        with (
            annotations_off(),
            pytest.raises(ValueError, match="payoffs must be a tuple with one table"),
        ):
            ex.games.repeated(np.zeros(shape))


@pytest.mark.parametrize("memory", [0, 1, 2])
@pytest.mark.parametrize("names", [[["C", "D"]], [["C", "D"], ["L", "R"]]])
def test_missing_action_names_are_refused_by_their_own_name(memory, names):
    with pytest.raises(ValueError, match=r"^action_names"):
        ex.games.repeated(TABLES, memory=memory, action_names=names)


ROWS = np.array([[3.0, 0.0, 2.0], [5.0, 1.0, 4.0]])
COLUMNS = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ex.games.bimatrix(ROWS, COLUMNS.tolist()),
        lambda: ex.games.repeated((ROWS, COLUMNS)),
        lambda: ex.games.repeated([ROWS, COLUMNS]),
        lambda: ex.games.repeated((ROWS.tolist(), COLUMNS.tolist())),
        lambda: ex.games.repeated(
            [[tuple(cell) for cell in row] for row in np.stack([ROWS, COLUMNS], axis=-1).tolist()]
        ),
    ],
)
def test_every_form_of_a_bimatrix_is_the_same_game(make):
    rewards = make().rewards
    for row, column in np.ndindex(2, 3):
        expected = [ROWS[row, column], COLUMNS[row, column]]
        np.testing.assert_array_equal(rewards[0, row, column, 0], expected)


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 3, 2), (3, 3, 3, 3), (3, 1, 2, 3)])
def test_payoffs_that_may_have_the_agents_first_are_refused(shape):
    for payoffs in (np.zeros(shape), jnp.zeros(shape), np.zeros(shape).tolist()):
        with pytest.raises(ValueError, match=r"payoffs of shape .* agents first or last"):
            ex.games.repeated(payoffs)


def test_a_single_agent_has_no_two_readings():
    assert ex.games.repeated(np.zeros((1, 1))).num_actions == (1,)


def test_payoffs_are_differentiable_in_either_form():
    def total(make):
        return jax.grad(lambda x: ex.games.repeated(make(x)).rewards.sum())(2.0)

    assert total(lambda x: (x * ROWS, COLUMNS)) == 6 * ROWS.sum()
    assert total(lambda x: [[(x, 1.0), (2.0, x)], [(x, 0.0), (0.0, 0.0)]]) == 4 * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ex.games.bimatrix(ROWS, COLUMNS.T), r"second must be a matrix .*\(3, 2\)"),
        (lambda: ex.games.bimatrix(ROWS[0], ROWS[0]), r"first must be a matrix .*\(3,\)"),
        (lambda: ex.games.repeated((ROWS, COLUMNS, ROWS)), "one table .* for each of 3 agents"),
        (lambda: ex.games.repeated((ROWS, COLUMNS.T)), "for each of 2 agents; found shapes"),
        (lambda: ex.games.repeated(np.zeros((2, 3, 3))), "np.moveaxis"),
    ],
)
def test_tables_that_do_not_fit_are_refused(make, message):
    with annotations_off(), pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: ex.games.stag_hunt(memory=40), "4^40 states"),
        (lambda: ex.games.public_goods(60, memory=0), f"{2**60} joint actions"),
        (lambda: ex.games.travellers_dilemma(0, 10**7), f"{(10**7 + 1) ** 2} joint actions"),
        (lambda: ex.games.unit_demand(12), f"{20**12} joint actions"),
        (lambda: ex.games.cournot(9), f"{15**9}^1 states"),
        (lambda: ex.games.bertrand(ex.games.LogitMarket(6), num_prices=10), f"{10**6}^1 states"),
        (lambda: ex.games.sequential(10**5), f"{2 * 10**5 + 2} states"),
        (lambda: ex.games.first_price_auction(9), f"{19**9} joint actions"),
        (lambda: ex.games.random_ergodic(jax.random.key(0), 10**7), f"{10**7} states"),
    ],
)
def test_games_that_memory_cannot_hold_say_their_size_at_once(make, size):
    with pytest.raises(ValueError, match=re.escape(size) + ".* of memory are available"):
        make()
