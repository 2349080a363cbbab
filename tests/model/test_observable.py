import equinox as eqx
import jax.numpy as jnp
import pytest

import ergodax as ex
from ergodax.model.observable import PARAMETERS, Observable, named, parameters_and_policies


@pytest.fixture
def wrapped():
    return ex.WrappedGame(ex.games.prisoners_dilemma(), [ex.Sarsa(initial=3.0)] * 2)


def test_what_a_function_is_called(wrapped):
    assert Observable.of(wrapped.policies).names == ("policy",)
    assert Observable.of(lambda params: params).names == ("observable",)
    assert Observable.of(PARAMETERS) is PARAMETERS


def test_values_by_name(wrapped):
    start = wrapped.init()
    both = parameters_and_policies(wrapped)
    found = named(both.names, both(start))
    assert list(found) == ["parameters", "policy"]
    assert found["parameters"] is start
    for policy in found["policy"]:
        assert policy.tolist() == [[0.5, 0.5]] * 4
    assert named(PARAMETERS.names, PARAMETERS(start)) == {"parameters": start}


def test_one_program_serves_all_games(wrapped):
    traced = []

    @eqx.filter_jit
    def observe(observable, params):
        traced.append(1)
        return observable(params)

    for initial in (1.0, 2.0):
        learners = [ex.Sarsa(initial=jnp.asarray(initial))] * 2
        same = ex.WrappedGame(wrapped.game, learners)
        params, _ = observe(parameters_and_policies(same), same.init())
        assert float(params[0][0, 0]) == initial
    assert len(traced) == 1
