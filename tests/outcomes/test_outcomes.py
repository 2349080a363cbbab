"""Outcomes against linear algebra, enumeration of all strategies, and play by hand."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
import oracle
from ergodax import outcomes
from helpers import annotations_off, central_difference, random_kernel


@pytest.fixture(scope="module")
def case():
    """A random game, its dense form, and policies of three runs."""
    rng = np.random.default_rng(0)
    kernel, rewards = random_kernel(rng, 3, (2, 3)), rng.normal(size=(3, 2, 3, 3, 2))
    policies = [rng.dirichlet(np.ones(count), size=(3, 3)) for count in (2, 3)]
    return ex.MarkovGame.from_dense(kernel, rewards), kernel, rewards, tuple(policies)


def by_hand(kernel, rewards, first, second):
    """Chain and mean rewards of two policies."""
    chain = np.einsum("sa,sb,sabt->st", first, second, kernel)
    return chain, np.einsum("sa,sb,sabt,sabtn->sn", first, second, kernel, rewards)


@pytest.mark.parametrize("discount", [0.0, 0.95, (0.5, 0.9999)])
def test_values_solve_bellman(case, discount):
    game, kernel, rewards, policies = case
    found = outcomes.values(game, policies, discount)
    assert found.shape == (3, 3, 2)
    for run in range(3):
        chain, mean = by_hand(kernel, rewards, policies[0][run], policies[1][run])
        for agent, gamma in enumerate(np.broadcast_to(discount, 2)):
            expected = np.linalg.solve(np.eye(3) - gamma * chain, mean[:, agent])
            np.testing.assert_allclose(found[run, :, agent], expected, rtol=1e-10)
    single = outcomes.values(game, tuple(table[1] for table in policies), discount)
    np.testing.assert_allclose(single, found[1], rtol=1e-12)


@pytest.mark.slow
def test_values_are_differentiable(case):
    game, _, _, policies = case
    first, second = (jnp.asarray(table[0]) for table in policies)
    direction = jnp.array([[1.0, -1.0], [0.5, -0.5], [0.0, 0.0]])

    def worth(step):
        return outcomes.values(game, (first + step[0] * direction, second), 0.9 + step[1])[0, 0]

    slope = jax.grad(worth)(jnp.zeros(2))
    for axis in range(2):
        unit = np.eye(2)[axis]
        expected = central_difference(worth, np.zeros(2), unit)
        np.testing.assert_allclose(slope[axis], expected, rtol=1e-8)


@pytest.mark.parametrize("agent", [0, 1])
def test_best_responses_beat_every_strategy(case, agent):
    game, kernel, rewards, policies = case
    found = outcomes.best_response(game, policies, 0.9, agent)
    count = game.num_actions[agent]
    for run in range(3):
        other = policies[1 - agent][run]
        best = -np.inf
        for strategy in itertools.product(range(count), repeat=3):
            own = np.eye(count)[list(strategy)]
            pair = (own, other) if agent == 0 else (other, own)
            chain, mean = by_hand(kernel, rewards, *pair)
            worth = np.linalg.solve(np.eye(3) - 0.9 * chain, mean[:, agent])
            best = np.maximum(best, worth)
            if list(strategy) == found.strategy[run].tolist():
                np.testing.assert_allclose(found.values[run], worth, rtol=1e-10)
        np.testing.assert_allclose(found.values[run], best, rtol=1e-10)
        np.testing.assert_allclose(found.action_values[run].max(axis=-1), best, rtol=1e-10)
    gains = outcomes.exploitability(game, policies, 0.9)[..., agent]
    expected = found.values - outcomes.values(game, policies, 0.9)[..., agent]
    np.testing.assert_allclose(gains, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_best_values_are_differentiable_by_the_game(case):
    _, kernel, rewards, policies = case
    tables = tuple(table[0] for table in policies)

    def worth(shift):
        changed = jnp.asarray(rewards).at[0, 1, 2, :, 0].add(shift[0])
        other = ex.MarkovGame.from_dense(kernel, changed)
        return outcomes.best_response(other, tables, 0.9, 0).values.sum()

    slope = jax.grad(worth)(jnp.zeros(1))
    expected = central_difference(worth, np.zeros(1), np.ones(1))
    np.testing.assert_allclose(slope[0], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("against", ["best response", "one deviation"])
def test_equilibria_are_found_where_one_looks(against):
    """Grim trigger with explorers: an equilibrium in all states, on the cycle, or not at all."""
    game = ex.games.two_prices()
    grim, naive = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 1])
    # Tit for tat is a best reply to itself along collusion, not after a deviation.
    tit, mirrored = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    runs = (np.stack([grim, naive, tit]), np.stack([grim, naive, mirrored]))
    policies = tuple(np.eye(2)[own] for own in runs)
    everywhere = outcomes.is_equilibrium(game, policies, 0.95, against=against)
    np.testing.assert_array_equal(everywhere, [True, False, False])
    cycle = outcomes.play(game, runs, np.array([3, 3, 3]))
    on_path = outcomes.is_equilibrium(game, policies, 0.95, states=cycle.on_cycle, against=against)
    np.testing.assert_array_equal(on_path, [True, False, True])
    one = tuple(table[0] for table in policies)
    assert outcomes.is_equilibrium(game, one, 0.95, states=cycle.on_cycle[0], against=against)
    assert not outcomes.is_equilibrium(game, one, 0.2, against=against)
    assert outcomes.is_equilibrium(game, one, 0.2, against=against, tolerance=0.9)


@pytest.mark.slow
def test_losses_of_one_deviation_and_of_best_responses(case):
    game, kernel, rewards, policies = case
    game = ex.MarkovGame.from_dense(kernel, rewards + 10)
    full = outcomes.q_loss(game, policies, 0.9)
    once = outcomes.q_loss(game, policies, 0.9, against="one deviation")
    assert (np.asarray(full) >= -1e-12).all()
    for agent in range(2):
        table = outcomes.action_values(game, policies, 0.9, agent)
        played = np.einsum("rsa,rsa->rs", policies[agent], table)
        worth = outcomes.values(game, policies, 0.9)[..., agent]
        np.testing.assert_allclose(played, worth, rtol=1e-10)
        expected = 1 - played / np.asarray(table).max(axis=-1)
        np.testing.assert_allclose(once[..., agent], expected, atol=1e-12)


def test_mean_rewards_are_those_of_the_stationary_law(case):
    game, kernel, rewards, policies = case
    found = outcomes.mean_rewards(game, policies)
    for run in range(3):
        chain, mean = by_hand(kernel, rewards, policies[0][run], policies[1][run])
        np.testing.assert_allclose(found[run], oracle.stationary_distribution(chain) @ mean)


def test_grim_trigger_is_an_equilibrium_and_always_cooperating_is_not():
    game = ex.games.two_prices()
    collude = np.array([1, 1, 1, 1])
    grim = np.array([0, 0, 0, 1])
    tables = np.eye(2)[np.stack([collude, grim])]
    loss = outcomes.exploitability(game, (tables, tables), 0.95)
    assert (np.asarray(loss[0]) > 0.1).all()
    np.testing.assert_allclose(loss[1], 0, atol=1e-12)


PRICES = ex.games.repeated(
    tuple(np.random.default_rng(1).normal(size=(2, 3, 3))), action_names=[["l", "m", "h"]] * 2
)


def walk(strategies, state):
    """States from a first one until they repeat, and the length of the cycle."""
    seen = []
    while state not in seen:
        seen.append(state)
        state = 3 * int(strategies[0][state]) + int(strategies[1][state])
    return seen, len(seen) - seen.index(state)


@pytest.mark.slow
def test_play_ends_on_the_cycle():
    rng = np.random.default_rng(2)
    strategies = tuple(rng.integers(3, size=(2, 40, 9)))
    starts = rng.integers(9, size=40)
    found = outcomes.play(PRICES, strategies, starts)
    table = np.asarray(PRICES.rewards[0, :, :, 0])
    lengths = set()
    for run in range(40):
        seen, length = walk([own[run] for own in strategies], starts[run])
        lengths.add(length)
        assert (found.length[run], found.transient[run]) == (length, len(seen) - length)
        assert found.states[run].tolist() == seen + [-1] * (9 - len(seen))
        cycle = seen[-length:]
        assert np.flatnonzero(found.on_cycle[run]).tolist() == sorted(cycle)
        actions = [(strategies[0][run][s], strategies[1][run][s]) for s in cycle]
        mean = np.mean([table[pair] for pair in actions], axis=0)
        np.testing.assert_allclose(found.rewards[run], mean, rtol=1e-12, atol=1e-14)
        assert found.symmetric[run] == all(first == second for first, second in actions)
    assert lengths > {1, 2, 3}
    assert 0 < found.symmetric.sum() < 40
    one = outcomes.play(PRICES, tuple(own[5] for own in strategies), int(starts[5]))
    chex.assert_trees_all_equal(one, jax.tree.map(lambda leaf: leaf[5], found))


def test_play_starts_at_a_name_and_needs_a_deterministic_game(case):
    strategies = (np.zeros(9, int), np.full(9, 2))
    assert outcomes.play(PRICES, strategies, "mh").states[0] == 5
    with pytest.raises(ValueError, match="next states are random"):
        outcomes.play(case[0], (np.zeros(3, int), np.zeros(3, int)))


def test_greedy_names_ties():
    values = (np.array([[1.0, 2.0], [3.0, 3.0]]), np.array([[0.0, -1.0], [2.0, 5.0]]))
    game = ex.MarkovGame.deterministic(np.zeros((2, 2, 2), int), np.zeros((2, 2, 2, 2)))
    best, tied = outcomes.greedy(game, values)
    np.testing.assert_array_equal(best[0], [1, 0])
    np.testing.assert_array_equal(best[1], [0, 1])
    np.testing.assert_array_equal(tied, [[False, False], [True, False]])


def test_deviations_are_punished_and_forgiven():
    """Win-stay-lose-shift: one step of defection, one of punishment, and back."""
    game = ex.games.symmetric()
    shift = np.array([0, 1, 1, 0])
    found = outcomes.deviation_response(game, (shift, shift), 0, 1, 0, before=1, after=4)
    assert found.time.tolist() == [-1, 0, 1, 2, 3]
    assert found.actions.tolist() == [[0, 0], [1, 0], [1, 1], [0, 0], [0, 0]]
    np.testing.assert_array_equal(found.rewards[:, 0], [3, 5, 1, 3, 3])
    longer = outcomes.deviation_response(
        game, (shift, shift), 1, 1, 0, periods=2, before=0, after=4
    )
    assert longer.actions.tolist() == [[0, 1], [1, 1], [0, 0], [0, 0]]


def test_deviations_run_by_run_and_by_state():
    game = ex.games.symmetric()
    defect, tit = np.ones(4, int), np.array([0, 1, 0, 1])
    strategies = (np.stack([tit, tit, defect]), np.stack([[0, 0, 1, 1]] * 3))
    start = np.array([0, 0, 3])
    found = outcomes.deviation_response(game, strategies, 0, np.array([1, 0, 0]), start, before=0)
    assert found.actions.shape == (3, 15, 2)
    assert found.actions[:, 0, 0].tolist() == [1, 0, 0]
    assert found.actions[0, :4].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]  # echoes for ever
    best = outcomes.best_response(game, tuple(np.eye(2)[own] for own in strategies), 0.5, 0)
    again = outcomes.deviation_response(
        game, strategies, 0, best.strategy, start, periods=15, before=0
    )
    assert again.actions[0, 0, 0] == best.strategy[0, 0]
    with pytest.raises(ValueError, match=r"0 to 1; found 2\. Their names serve as well: C, D\."):
        outcomes.deviation_response(game, strategies, 0, 2, start)
    with pytest.raises(ValueError, match="state must be 0 to 3"):
        outcomes.deviation_response(game, strategies, 0, 1, 7)
    named = outcomes.deviation_response(game, strategies, 0, "D", start, before=0)
    assert named.actions[:, 0, 0].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="one of C, D; found 'd'; did you mean"):
        outcomes.deviation_response(game, strategies, 0, "d", start)


def test_cross_pairs_take_the_others_from_another_run():
    first, second = outcomes.cross_pair((np.arange(4), 10 + np.arange(4)))
    np.testing.assert_array_equal(first, [0, 1, 2, 3])
    np.testing.assert_array_equal(second, [11, 12, 13, 10])


def test_strategies_have_names():
    game = ex.games.prisoners_dilemma()
    tit = np.array([0, 1, 0, 1])  # agent 0 after CC, CD, DC, DD
    mirrored = np.array([0, 0, 1, 1])
    assert outcomes.strategy_class(game, (tit, mirrored)) == ("tit for tat", "tit for tat")
    several = (np.array([[1, 1, 1, 1], [0, 1, 1, 0]]), np.array([[0, 1, 1, 1], [0, 0, 1, 0]]))
    first, second = outcomes.strategy_class(game, several)
    assert first.tolist() == ["always defect", "win-stay-lose-shift"]
    assert second.tolist() == ["grim trigger", "CDCC"]
    with pytest.raises(ValueError, match="two agents, two actions"):
        outcomes.strategy_class(PRICES, (np.zeros(9, int),) * 2)


def test_profit_gain():
    np.testing.assert_allclose(
        outcomes.profit_gain(np.array([0.2, 0.3, 0.25]), 0.2, 0.3), [0, 1, 0.5]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, p: outcomes.values(g, p, 1.0), "discount must be in"),
        (lambda g, p: outcomes.values(g, p, [0.9] * 3), "one for each of 2 agents"),
        (lambda g, p: outcomes.values(g, p[:1], 0.9), "one table for each of 2 agents"),
        (lambda g, p: outcomes.values(g, (p[1], p[0]), 0.9), "policies must be tables"),
        (lambda g, p: outcomes.values(g, (p[0] * 2, p[1]), 0.9), "sum to 1"),
        (lambda g, p: outcomes.best_response(g, p, 0.9, 2), "agent"),
        (lambda g, p: outcomes.q_loss(g, p, 0.9, against="all"), "against must be"),
        (lambda g, p: outcomes.is_equilibrium(g, p, 0.9, states=[0, 1]), "states must be truth"),
        (lambda g, p: outcomes.is_equilibrium(g, p, 0.9, tolerance=2), "tolerance must be"),
        (lambda g, p: outcomes.play(g, (np.full(3, 5), np.zeros(3, int))), "0 to 1"),
        (lambda g, p: outcomes.play(g, (np.zeros(3), np.zeros(3, int))), "whole numbers"),
        (lambda g, p: outcomes.profit_gain("a", 1, 2), "profits must be"),
    ],
)
def test_bad_input(case, call, message):
    with annotations_off(), pytest.raises(ValueError, match=message):
        call(case[0], case[3])
