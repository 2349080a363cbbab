import jax
import numpy as np
import pytest

import ergodax as ex
from ergodax.averaged import room
from ergodax.averaged.drift import flat_drift


def market(prices, kind=ex.QLearning):
    """Two sellers who remember the last prices of both."""
    payoffs = np.random.default_rng(0).normal(size=(prices, prices))
    game = ex.games.repeated((payoffs, payoffs.T))
    return ex.WrappedGame(game, [kind(0.1, 0.9, ex.EpsilonSoftmax(0.5, 0.1))] * 2)


@pytest.fixture
def small(monkeypatch):
    """A machine with 32 GiB, whatever this one has."""
    monkeypatch.setattr("ergodax.base.memory.available_memory", lambda: 2**35)


@pytest.mark.parametrize(
    ("analysis", "what"),
    [
        (lambda w, x: ex.fluctuations(w, x, [1.0]), "fluctuations"),
        (lambda w, x: ex.required_scale(w, x, 1.0, 0.1), "fluctuations"),
        (lambda w, x: ex.stationary_covariance(w, x), "the covariance"),
        (lambda w, x: ex.jacobian(w, x), "the Jacobian"),
    ],
)
def test_what_memory_cannot_hold_is_refused_at_once(small, analysis, what):
    wrapped = market(15)
    with pytest.raises(ValueError, match=rf"{what} of 6750 parameters needs [\d.]+ GiB but 32 GiB"):
        analysis(wrapped, wrapped.init())


def test_a_rest_point_takes_no_more_than_its_events(monkeypatch):
    monkeypatch.setattr("ergodax.base.memory.available_memory", lambda: 2**26)
    wrapped = market(15)
    with pytest.raises(ValueError, match=r"a rest point of 6750 parameters needs 0\.[01]\d* GiB"):
        ex.rest_point(wrapped, wrapped.init())


def test_too_many_derivatives_are_refused_at_once(small):
    wrapped = market(15)

    def build(theta):
        learners = [ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(0.5), own) for own in theta]
        other = ex.WrappedGame(wrapped.game, learners)
        return other, other.init()

    with pytest.raises(
        ValueError, match=r"by 6750 entries of theta of 6750 parameters needs [\d.]+"
    ):
        ex.sensitivities(build, [np.zeros((225, 15)), np.zeros((225, 15))], [1.0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ex.QLearning, ex.Sarsa])
def test_the_estimate_is_what_the_program_takes(monkeypatch, kind):
    wrapped = market(6, kind)
    params = wrapped.init()
    x, _, field = flat_drift(params)
    compiled = jax.jit(jax.jacfwd(lambda x: field(x, wrapped))).lower(x).compile()
    taken = compiled.memory_analysis().temp_size_in_bytes
    needed = []
    monkeypatch.setattr(room, "check_room", lambda size, *_: needed.append(size))
    room.check_slopes("the Jacobian", wrapped, params, "")
    assert taken / 3 < needed[0] < 3 * taken
