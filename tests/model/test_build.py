"""The one check of what `build(theta)` returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.model.build import check_build, check_theta

THETA = {"tau": jnp.array(0.5), "rate": jnp.array(0.1)}


def dilemma(theta, kind=ex.Sarsa):
    learner = kind(theta["rate"], exploration=ex.EpsilonSoftmax(theta["tau"]))
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])
    return wrapped, wrapped.init()


def test_what_was_built_is_returned():
    wrapped, params0 = check_build(dilemma, THETA)
    assert wrapped.learners[0].learning_rate == 0.1
    assert [leaf.shape for leaf in params0] == [(4, 2), (4, 2)]


@pytest.mark.parametrize(
    "decide", [bool, float, int, np.asarray, lambda x: range(9)[x.astype(int)]]
)
def test_a_value_that_is_looked_at_is_named(decide):
    def build(theta):
        decide(theta["rate"])
        return dilemma(theta)

    with pytest.raises(ValueError, match=r"decides on the value of theta\['rate'\].*jnp\.where"):
        check_build(build, THETA)


def test_another_structure_elsewhere_is_named():
    def build(theta):
        return dilemma(theta, ex.Sarsa if theta["tau"] < 1 else ex.ActorCritic)

    others = [("at 0.7", THETA | {"tau": 0.7}), ("at 2", THETA | {"tau": 2.0})]
    message = r"with theta: learners\[0\]\.\w+ has shape (\(\)|none) at 0\.5 and .* at 2"
    with pytest.raises(ValueError, match=message):
        check_build(build, THETA, others, "at 0.5")


def test_another_structure_when_traced_is_named():
    def build(theta):
        wrapped, params0 = dilemma(theta)
        traced = isinstance(theta["tau"], jax.core.Tracer)
        learner = ex.Sarsa(0.3, 0.6, initial=jnp.zeros((4, 2)) if traced else 0.0)
        return ex.WrappedGame(wrapped.game, [wrapped.learners[0], learner]), params0

    message = r"with theta\['tau'\]: learners\[1\]\.initial has shape \(\) here and \(4, 2\)"
    with pytest.raises(ValueError, match=message):
        check_build(build, THETA)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda theta: dilemma(theta)[0], "must return a wrapped game and the parameters"),
        (lambda theta: dilemma(theta)[::-1], "must return a wrapped game and the parameters"),
        (lambda theta: (dilemma(theta)[0], ()), r"params must be a tuple .* one pytree for each"),
        (
            lambda theta: jax.vmap(dilemma)(jax.tree.map(lambda x: x * jnp.ones(3), theta)),
            "must return one game, without an axis of runs",
        ),
    ],
)
def test_something_else_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        check_build(build, THETA)


def test_theta_is_of_floats():
    assert check_theta({"tau": 0.5})["tau"].dtype == jnp.result_type(float)
    with pytest.raises(ValueError, match=r"theta\['tau'\] must be floating-point; found 1"):
        check_theta({"tau": 1})
