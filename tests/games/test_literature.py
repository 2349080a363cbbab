"""Games of the literature against payoffs and equilibria written down from their sources."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax import games


def payoffs(game):
    """Payoffs in the first state, `[A_1, .., A_n, n]`."""
    return np.asarray(jnp.sum(game.probabilities[..., None] * game.rewards, axis=-2))[0]


@pytest.mark.parametrize(
    ("game", "row", "column"),
    [
        (games.symmetric(), [[3, 0], [5, 1]], [[3, 5], [0, 1]]),
        (games.stag_hunt(), [[4, 0], [3, 2]], [[4, 3], [0, 2]]),
        (games.hawk_dove(2.0, 3.0), [[-0.5, 2], [0, 1]], [[-0.5, 0], [2, 1]]),
        (games.chicken(), [[0, -1], [1, -10]], [[0, 1], [-1, -10]]),
        (games.battle_of_the_sexes(), [[2, 0], [0, 1]], [[1, 0], [0, 2]]),
        (games.coordination(), [[1, 0], [0, 1]], [[1, 0], [0, 1]]),
        (games.matching_pennies(), [[1, -1], [-1, 1]], [[-1, 1], [1, -1]]),
        (
            games.rock_paper_scissors((0.5, -0.5)),
            [[0.5, -1, 1], [1, 0.5, -1], [-1, 1, 0.5]],
            [[-0.5, 1, -1], [-1, -0.5, 1], [1, -1, -0.5]],
        ),
        (games.travellers_dilemma(2, 4), [[2, 4, 4], [0, 3, 5], [0, 1, 4]], None),
    ],
)
def test_two_player_payoffs(game, row, column):
    np.testing.assert_allclose(payoffs(game)[..., 0], row)
    np.testing.assert_allclose(
        payoffs(game)[..., 1], np.transpose(row) if column is None else column
    )


def test_named_games_remember_and_are_differentiable():
    assert games.stag_hunt(memory=2).num_states == 16
    assert games.stag_hunt(memory=0).num_states == 1
    assert games.prisoners_dilemma(memory=0).num_states == 1
    slope = jax.grad(lambda cost: games.hawk_dove(2.0, cost).rewards.sum())(3.0)
    np.testing.assert_allclose(slope, 4 * -1.0)  # -1/2 of two hawks in each of four states


@pytest.mark.parametrize("num_agents", [2, 3, 5])
def test_many_player_payoffs(num_agents):
    goods = payoffs(games.public_goods(num_agents, 1.5, memory=0))
    volunteers = payoffs(games.volunteers_dilemma(num_agents, memory=0))
    for profile in itertools.product(range(2), repeat=num_agents):
        given = profile.count(0)
        for agent, action in enumerate(profile):
            expected = 1.5 * given / num_agents + (action == 1)
            np.testing.assert_allclose(goods[profile][agent], expected)
            expected = (given > 0) - 0.4 * (action == 0)
            np.testing.assert_allclose(volunteers[profile][agent], expected)
    if num_agents % 2:
        winners = payoffs(games.minority(num_agents, memory=0)).sum(axis=-1)
        assert winners.max() == (num_agents - 1) / 2


def test_a_minority_needs_an_odd_number():
    with pytest.raises(ValueError, match="num_agents must be odd"):
        games.minority(4)


def test_two_state_dilemma():
    game = games.two_state_dilemma(2.0, 1.2)
    np.testing.assert_allclose(payoffs(game)[..., 0], [[1, -1], [2, 0]])
    np.testing.assert_allclose(game.rewards[1, :, :, 0, 1], [[0.2, 1.2], [-1, 0]], atol=1e-15)
    rich = np.asarray(game.kernel)[..., 0]
    np.testing.assert_array_equal(rich, [[[1, 0], [0, 0]]] * 2)
    fading = games.two_state_dilemma(to_rich=[[0, 0.5, 1], [0, 0.1, 0.2]])
    np.testing.assert_allclose(fading.kernel[1, ..., 0], [[0.2, 0.1], [0.1, 0]])


def test_ecological_public_good():
    game = games.ecological_public_good(2, 1.2, 5.0, -5.0, collapse=0.2, recovery=0.01)
    kernel = np.asarray(game.kernel)
    np.testing.assert_allclose(kernel[0, ..., 1], [[0, 0.1], [0.1, 0.2]], atol=1e-15)
    np.testing.assert_allclose(kernel[1, ..., 0], 0.01)
    to = {(0, 0): (1, 1), (0, 1): (-2, 3), (1, 0): (3, -2), (1, 1): (0, 0)}
    for profile, expected in to.items():
        stays = np.asarray(game.successors[(0, *profile)]) == 0
        np.testing.assert_allclose(game.rewards[(0, *profile)][stays][0], expected, atol=1e-12)
        np.testing.assert_array_equal(game.rewards[(0, *profile)][~stays], -5.0)


def test_two_state_matching_pennies():
    game = games.two_state_matching_pennies(0.7)
    np.testing.assert_allclose(payoffs(game)[..., 0], np.eye(2))
    np.testing.assert_allclose(game.rewards[1, :, :, 0, 1], np.eye(2))
    np.testing.assert_allclose(game.kernel[0, :, 0, 1], [0.7, 0])
    np.testing.assert_allclose(game.kernel[1, :, 1, 0], [0.7, 0])


def test_random_games_are_ergodic_and_repeatable():
    first = games.random_ergodic(jax.random.key(3), 5, (2, 3, 2))
    again = games.random_ergodic(jax.random.key(3), 5, (2, 3, 2))
    assert first.rewards.shape == (5, 2, 3, 2, 5, 3)
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    assert np.all(np.asarray(first.kernel) > 0)


def test_lotteries_draw_a_table_at_every_step():
    tables = np.random.default_rng(0).normal(size=(3, 2, 2, 2))
    game = games.repeated_lottery(tables, [0.2, 0.3, 0.5])
    np.testing.assert_allclose(payoffs(game), np.tensordot([0.2, 0.3, 0.5], tables, 1))
    np.testing.assert_array_equal(
        game.kernel, games.repeated(tuple(np.moveaxis(tables[0], -1, 0))).kernel
    )
    with pytest.raises(ValueError, match="probabilities must have shape"):
        games.repeated_lottery(tables, [0.5, 0.5])


# Calvano et al. 2020, section II and online appendix: Nash and monopoly prices and profits.
@pytest.mark.parametrize(
    ("firms", "nash", "monopoly"),
    [(2, 1.472927, 1.924981), (3, 1.370163, 2.000000), (4, 1.331461, 2.054411)],
)
def test_logit_prices(firms, nash, monopoly):
    market = games.LogitMarket(firms)
    np.testing.assert_allclose(market.nash_prices(), nash, atol=5e-7)
    np.testing.assert_allclose(market.monopoly_prices(), monopoly, atol=5e-7)


@pytest.mark.slow
def test_logit_prices_are_best_replies():
    market = games.LogitMarket(
        3, quality=jnp.array([2.0, 2.5, 1.8]), cost=jnp.array([1.0, 1.3, 0.9]), outside=-0.2
    )
    nash, monopoly = market.nash_prices(), market.monopoly_prices()
    for firm in range(3):
        grid = jnp.linspace(0.5, 4, 4001)
        own = jax.vmap(lambda p, k=firm: market.profits(nash.at[k].set(p))[k])(grid)
        joint = jax.vmap(lambda p, k=firm: market.profits(monopoly.at[k].set(p)).sum())(grid)
        assert own.max() <= market.profits(nash)[firm] + 1e-12
        assert joint.max() <= market.profits(monopoly).sum() + 1e-12
    slope = jax.grad(lambda c: games.LogitMarket(cost=c).nash_prices()[0])(1.0)
    higher, lower = (games.LogitMarket(cost=c).nash_prices()[0] for c in (1 + 1e-5, 1 - 1e-5))
    np.testing.assert_allclose(slope, (higher - lower) / 2e-5, rtol=1e-7)


@pytest.mark.slow
def test_prices_are_found_for_every_set_of_a_sweep():
    def build(theta):
        market = games.LogitMarket(cost=theta["cost"])
        learner = ex.QLearning(0.1, 0.5, ex.EpsilonSoftmax(0.3))
        wrapped = ex.WrappedGame(games.bertrand(market, num_prices=2, memory=0), [learner, learner])
        return wrapped, wrapped.init()

    swept = ex.sweep(build, {"cost": [0.9, 1.1]}, [0.0, 5.0])
    for k, cost in enumerate((0.9, 1.1)):
        alone = ex.solve(*build({"cost": cost}), [0.0, 5.0])
        np.testing.assert_allclose(swept.rewards.values[k], alone.rewards, rtol=1e-10)


def test_prices_that_do_not_exist_are_refused():
    class Insatiable(games.AbstractMarket):
        num_firms: int = 1
        cost: float = 1.0

        def demand(self, prices):
            return 1 / prices  # profit rises with any price

    with pytest.raises(ValueError, match="no monopoly prices"):
        Insatiable().monopoly_prices()


def test_the_baseline_of_algorithmic_pricing():
    game = games.bertrand()
    assert (game.num_states, game.num_actions) == (225, (15, 15))
    grid = games.LogitMarket().price_grid()
    np.testing.assert_allclose(grid[0, [0, -1]], [1.42772, 1.97019], atol=5e-6)
    np.testing.assert_allclose(np.diff(grid[0]), 0.038747, atol=1e-6)
    profit = payoffs(game)[..., 0]
    nash, monopoly = 0.222927, 0.337490
    gain = (np.diagonal(profit) - nash) / (monopoly - nash)
    published = [-0.169, -0.024, 0.117, 0.251, 0.378, 0.498, 0.608, 0.707]
    np.testing.assert_allclose(gain[:8], published, atol=6e-4)
    np.testing.assert_allclose(
        profit.mean(axis=1)[:5] / 0.05, [5.790, 6.008, 6.162, 6.252, 6.278], atol=6e-4
    )


def test_linear_prices_have_a_closed_form():
    for d in (0.0, 0.3, 0.8):
        market = games.LinearMarket(substitutability=d, cost=0.2)
        np.testing.assert_allclose(market.nash_prices(), (1 - d + 0.2) / (2 - d), rtol=1e-12)
        np.testing.assert_allclose(market.monopoly_prices(), 0.6, rtol=1e-12)
    with pytest.raises(ValueError, match="outside the domain of demand"):
        games.LinearMarket(substitutability=0.8).game([[0.1, 1.5], [0.1, 1.5]])
    with pytest.raises(ValueError, match=r"prices must have shape \[2, m\]"):
        games.LinearMarket().game([[0.1, 0.2]])


def test_two_prices_and_the_equilibria_of_den_boer():
    """Win-stay-lose-shift and grim trigger are best replies below the published thresholds."""
    game = games.two_prices()
    profit = np.asarray(payoffs(game)[..., 0])  # prices: 0 competitive, 1 collusive
    np.testing.assert_allclose(profit, [[0.2229, 0.3679], [0.1180, 0.3375]], atol=5e-5)
    shift = np.array([1, 0, 0, 1])  # collude after equal prices
    grim = np.array([0, 0, 0, 1])  # collude only after both did

    def gain_of_deviating(strategy, epsilon):
        other = np.where(np.arange(2) == strategy[:, None], 1 - epsilon / 2, epsilon / 2)
        reward, values = other @ profit.T, np.zeros((4, 2))
        following = 2 * np.arange(2)[:, None] + np.arange(2)  # state after (own, other's)
        for _ in range(2000):
            # The other explores, the best reply does not.
            best = values.max(axis=1)[following]
            values = reward + 0.95 * np.einsum("sb,ab->sa", other, best)
        return (values.max(axis=1) - values[np.arange(4), strategy]).max()

    for strategy, threshold in ((shift, 0.291760), (grim, 0.514902)):
        assert gain_of_deviating(strategy, threshold - 2e-6) < 1e-9
        assert gain_of_deviating(strategy, threshold + 2e-6) > 1e-9


def test_kaisers_and_tuyls_pitchfork():
    game = games.coordination(memory=0)

    def at(temperature, p):
        learners = [ex.QLearning(1.0, 0.0, ex.EpsilonSoftmax(temperature))] * 2
        wrapped = ex.WrappedGame(game, learners)
        values = (jnp.array([[p, 1 - p]]),) * 2
        return wrapped, values

    for p in (0.378509, 0.621491):
        np.testing.assert_allclose(ex.drift(*at(0.49, p))[0], 0, atol=1e-6)
    largest = [
        np.linalg.eigvals(np.asarray(ex.jacobian(*at(t, 0.5)))).real.max()
        for t in (0.51, 0.5, 0.49)
    ]
    assert largest[0] < -1e-4
    assert abs(largest[1]) < 1e-12
    assert largest[2] > 1e-4


def test_unit_demand_goes_to_the_cheapest():
    table = payoffs(games.unit_demand(2, 10))
    np.testing.assert_allclose(table[4, 6], [3.0, 0.0])  # prices 5 and 7, cost 2
    np.testing.assert_allclose(table[6, 6], [2.5, 2.5])
    np.testing.assert_allclose(payoffs(games.unit_demand(3, 4))[3, 3, 3], [8 / 3] * 3)


def test_cournot_quantities():
    game = games.cournot(2, 3, extension=0.0)
    quantities = np.array([1 / 4, 7 / 24, 1 / 3])
    expected = (1 - quantities[:, None] - quantities) * quantities[:, None]
    np.testing.assert_allclose(payoffs(game)[..., 0], expected)


def test_sequential_pricing():
    game = games.sequential(6)
    assert (game.num_states, game.num_actions) == (14, (7, 7))
    # Firm 0 moves against a standing price 4/6: undercutting by 3/6 takes the market.
    np.testing.assert_allclose(game.rewards[4, 3, 5, 0], [0.25, 0], atol=1e-15)
    assert game.state_names[int(game.successors[4, 3, 5, 0])] == "1 after 0.50"
    np.testing.assert_allclose(game.rewards[4, 4, 0, 0], [1 / 9, 1 / 9])
    # Firm 1 moves to 2/6 against a standing 4/6, whatever firm 0 does.
    np.testing.assert_allclose(game.rewards[7 + 4, :, 2, 0], [[0, 2 / 9]] * 7, atol=1e-15)
    assert game.state_names[int(game.successors[11, 0, 2, 0])] == "0 after 0.33"


@pytest.mark.parametrize(
    ("auction", "paid"), [(games.first_price_auction, 2), (games.second_price_auction, 1)]
)
def test_auctions(auction, paid):
    table = payoffs(auction(2, 3))  # bids 1/4, 2/4, 3/4
    np.testing.assert_allclose(table[1, 0], [1 - paid / 4, 0])
    np.testing.assert_allclose(table[1, 1], [0.25, 0.25])
    three = auction(3, 3)
    np.testing.assert_allclose(three.probabilities[0, 2, 0, 2], [0.5, 0.5, 0])
    np.testing.assert_allclose(payoffs(three)[2, 0, 2], [1 / 8, 0, 1 / 8])
    with pytest.raises(ValueError, match="num_bidders must be at least 2"):
        auction(1)
