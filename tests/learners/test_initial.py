"""Initial values by name."""

import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from helpers import random_kernel


def test_uniform_play_is_that_of_the_pricing_literature():
    game = ex.games.bertrand()
    found = ex.initial_values(game, 1, "uniform play", discount=0.95)
    assert found.shape == (225, 15)
    published = [5.790, 6.008, 6.162, 6.252, 6.278, 6.244]  # Calvano et al. 2020
    np.testing.assert_allclose(found[100, :6], published, atol=6e-4)
    np.testing.assert_allclose(found[100, -1], 4.111, atol=6e-4)


def test_rules_bound_each_other():
    rng = np.random.default_rng(0)
    kernel, rewards = random_kernel(rng, 3, (2, 3)), rng.normal(size=(3, 2, 3, 3, 2))
    game = ex.MarkovGame.from_dense(kernel, rewards)
    low, mean, high = (
        ex.initial_values(game, 0, rule, discount=0.5)
        for rule in ("pessimistic", "uniform play", "optimistic")
    )
    assert (low <= mean).all()
    assert (mean <= high).all()
    np.testing.assert_allclose(high, 2 * rewards[..., 0].max())
    expected = np.einsum("sabt,sabt->sa", kernel, rewards[..., 0]) / 3 * 2
    np.testing.assert_allclose(mean, expected)
    learner = ex.QLearning(initial=high)
    np.testing.assert_array_equal(learner.init(game, 0, key=None), jnp.asarray(high))


def test_impossible_outcomes_do_not_count():
    game = ex.MarkovGame(
        np.zeros((1, 1, 2), int), np.array([[[1.0, 0.0]]]), np.array([[[[2.0], [100.0]]]])
    )
    assert ex.initial_values(game, 0, "optimistic", discount=0.0)[0, 0] == 2


@pytest.mark.parametrize(
    ("agent", "rule", "discount", "message"),
    [(2, "optimistic", 0.9, "agent"), (0, "high", 0.9, "rule"), (0, "optimistic", 1.0, "discount")],
)
def test_bad_input(agent, rule, discount, message):
    with pytest.raises(ValueError, match=f"^{message} must be"):
        ex.initial_values(ex.games.stag_hunt(), agent, rule, discount=discount)
