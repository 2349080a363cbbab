"""Private lotteries of learners: how they are declared, averaged and drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex


class Tossing(ex.AbstractLearner):
    """Counts the outcomes of its lottery; takes its only action."""

    lottery = (0.2, 0.3, 0.5)

    def init(self, game, agent, *, key):
        return jnp.zeros(3)

    def policy(self, params, state):
        return jnp.ones(1)

    def update(self, params, transition, game, agent):
        return ex.At((transition.lottery,), 1.0 + 0 * params[0])


class Coin(Tossing):
    lottery = (0.25, 0.75)


class Watching(Tossing):
    """Counts the next states, and draws nothing."""

    lottery = None

    def update(self, params, transition, game, agent):
        return ex.At((transition.next_state,), 1.0 + 0 * params[0])


def game_of(num_agents):
    """Three states, drawn anew at every step, and one action."""
    kernel = np.broadcast_to([0.5, 0.4, 0.1], (3, *(1,) * num_agents, 3))
    return ex.MarkovGame.from_dense(kernel, np.zeros((3, *(1,) * num_agents, num_agents)))


def test_only_lotteries_split_the_outcomes():
    game = game_of(2)
    assert ex.WrappedGame(game, [Watching(), Watching()]).game is game
    wrapped = ex.WrappedGame(game, [Tossing(), Coin()])
    assert wrapped.game.num_successors == 18
    np.testing.assert_allclose(wrapped.game.kernel, game.kernel, rtol=1e-15)
    assert wrapped.at(1.0).game.num_successors == 18


def test_drift_and_noise_are_those_of_independent_lotteries():
    wrapped = ex.WrappedGame(game_of(3), [Tossing(), Watching(), Coin()])
    laws = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.4, 0.1]), np.array([0.25, 0.75, 0.0])
    found = ex.drift(wrapped, wrapped.init())
    np.testing.assert_allclose(np.stack(found), laws, rtol=1e-14)
    expected = np.zeros((9, 9))
    for k, p in enumerate(laws):
        expected[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = np.diag(p) - np.outer(p, p)
    covariance = ex.noise_covariance(wrapped, wrapped.init())
    np.testing.assert_allclose(covariance, expected, atol=1e-14)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_simulated_lotteries_are_drawn_independently_of_each_other_and_of_the_game():
    wrapped, steps, runs = ex.WrappedGame(game_of(3), [Tossing(), Watching(), Coin()]), 8, 20_000
    simulated = ex.simulate(
        wrapped, wrapped.init(), [steps], runs=runs, key=jax.random.key(2), keep_runs=True
    )
    counts = np.concatenate([own[:, 0] for own in simulated.values], axis=1)
    laws = np.array([[0.2, 0.3, 0.5], [0.5, 0.4, 0.1], [0.25, 0.75, 0.0]])
    np.testing.assert_array_equal(counts.reshape(runs, 3, 3).sum(axis=2), steps)
    exact = np.zeros((9, 9))
    for k, p in enumerate(laws):
        exact[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = steps * (np.diag(p) - np.outer(p, p))
    centred = counts - steps * laws.ravel()
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(axis=0) / np.sqrt(runs)
    assert np.all(np.abs(products.mean(axis=0) - exact) <= 5.5 * error)
    deviation = np.sqrt(np.diagonal(exact) / runs)
    assert np.all(np.abs(centred.mean(axis=0)) <= 5.5 * deviation)


@pytest.mark.parametrize("lottery", [(0.5, 0.4), (1.5, -0.5), [0.5, 0.5], "coin", (), (0.5, None)])
def test_lotteries_must_be_probabilities(lottery):
    class Wrong(Tossing):
        pass

    Wrong.lottery = lottery
    with pytest.raises(ValueError, match=r"agent 1: Wrong.lottery must be a tuple of positive"):
        ex.WrappedGame(game_of(2), [Tossing(), Wrong()])
