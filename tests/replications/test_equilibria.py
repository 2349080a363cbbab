"""Which learnt sessions are equilibria, against policy iteration in plain NumPy."""

import jax
import numpy as np
import pytest

import ergodax as ex
from ergodax.replications import calvano2020

DISCOUNT = 0.95


def following(own, other, firm, count):
    """The state after two prices; the first firm's stands first."""
    return own * count + other if firm == 0 else other * count + own


def value_of(policy, other, profit, firm):
    """What a firm's strategy is worth in every state, by one linear system."""
    states, count = len(policy), len(profit)
    chain = np.zeros((states, states))
    chain[np.arange(states), following(policy, other, firm, count)] = 1
    return np.linalg.solve(np.eye(states) - DISCOUNT * chain, profit[policy, other])


def best_reply(other, profit, firm):
    """The best strategy against another, and its values."""
    count, policy = len(profit), np.zeros(len(other), int)
    while True:
        values = value_of(policy, other, profit, firm)
        worth = np.stack(
            [
                profit[price, other] + DISCOUNT * values[following(price, other, firm, count)]
                for price in range(count)
            ],
            axis=1,
        )
        better = worth.max(axis=1) > values + 1e-12
        if not better.any():
            return values
        policy = np.where(better, worth.argmax(axis=1), policy)


def cycle_of(strategies, state, count):
    for _ in range(len(strategies[0])):
        state = strategies[0][state] * count + strategies[1][state]
    first, found = state, []
    while not found or state != first:
        found.append(state)
        state = strategies[0][state] * count + strategies[1][state]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_prices", "decay", "wait", "sessions"),
    [(3, 1e-3, 2000, 24), (15, 2e-5, 20_000, 4)],
)
def test_equilibria_of_learnt_sessions(num_prices, decay, wait, sessions):
    market = ex.games.LogitMarket()
    game = ex.games.bertrand(market, num_prices=num_prices)
    wrapped = calvano2020.learners(game, decay=decay)
    runs = ex.simulate_until(
        wrapped,
        wrapped.init(),
        ex.until.greedy_unchanged(wait),
        max_steps=10**7,
        runs=sessions,
        key=jax.random.key(4),
    )
    assert runs.reached.all()
    tables = tuple(np.asarray(own.params) for own in runs.final.params)
    data = calvano2020.measure(market, game, tables, runs.state)
    profit = np.asarray(game.rewards[0, :, :, 0])
    expected, gains = [], []
    for session in range(sessions):
        strategies = [table[session].argmax(axis=1) for table in tables]
        cycle = cycle_of(strategies, int(runs.state[session]), num_prices)
        holds = True
        for firm in (0, 1):
            own_profit = np.moveaxis(profit[..., firm], firm, 0)
            other = strategies[1 - firm]
            own = value_of(strategies[firm], other, own_profit, firm)
            gain = (best_reply(other, own_profit, firm) - own)[cycle].max() / own.max()
            gains.append(gain)
            holds &= gain <= 1e-6
        expected.append(holds)
    assert min(gains) > -1e-9
    assert max(gains) > 1e-4
    np.testing.assert_array_equal(data.equilibrium, expected)
    if num_prices == 3:
        assert 0 < np.mean(expected) < 1
