"""Typical mistakes, and the line that says what to write instead, where the mistake is made."""

import dataclasses
import datetime
import fractions
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import ergodax as ex
from helpers import annotations_off
from refused import KEY, TS, alone, at_times, build, solution, start, wrapped

A = np.array([[3.0, 0.0], [5.0, 1.0]])


class Decided(ex.QLearning):
    """Decides on a value, which JAX traces."""

    def policy(self, params, state):
        return jnp.array([1.0, 0.0]) if params[state, 0] > 0 else jnp.array([0.0, 1.0])


def decided():
    game = wrapped().game
    return ex.WrappedGame(game, [Decided(), ex.QLearning()]), wrapped().init()


def simulated(**options):
    return ex.simulate(**start() | {"ts": TS, "key": KEY} | options)


MISTAKES = {
    # Learners
    "number as exploration": (
        lambda: ex.QLearning(0.1, 0.9, 0.5),
        r"e\.g\. EpsilonSoftmax\(0\.5\)",
    ),
    "class as exploration": (
        lambda: ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax),
        r"called: EpsilonSoftmax\(\.\.\); found the class EpsilonSoftmax",
    ),
    "alpha": (lambda: ex.QLearning(alpha=0.1), "no 'alpha'; did you mean learning_rate"),
    "gamma": (lambda: ex.Sarsa(gamma=0.1), "no 'gamma'; did you mean discount"),
    "lr": (lambda: ex.QLearning(lr=0.1), "no 'lr'; did you mean learning_rate"),
    "alpha_v": (lambda: ex.ActorCritic(alpha_v=0.1), "did you mean critic_rate"),
    "misspelt": (lambda: ex.QLearning(discuont=0.1), "did you mean discount"),
    "tau": (lambda: ex.EpsilonSoftmax(tau=0.1), "did you mean temperature"),
    "temperature of a learner": (lambda: ex.QLearning(temperature=1.0), "did you mean exploration"),
    "unknown keyword": (lambda: ex.EpsilonGreedy(rate=1), "no 'rate': it takes epsilon"),
    "At without a tuple": (lambda: ex.At(0, jnp.ones(2)), r"At\(\(state,\), row\)"),
    "At of three": (lambda: ex.At(0, 1, 2.0), r"At\(\(state, action\), value\) .* 3 arguments"),
    "if in a policy": (lambda: ex.drift(*decided()), r"agent 0: Decided\.policy .* use jnp\.where"),
    "if, simulated": (
        lambda: ex.simulate(*decided(), TS, key=KEY),
        r"agent 0: Decided\.policy decides on a value.* use jnp\.where in place of `if`",
    ),
    # Games
    "one learner": (
        lambda: ex.WrappedGame(wrapped().game, ex.QLearning()),
        r"one learner per agent; .* \[learner\] \* 2",
    ),
    "class as learner": (
        lambda: ex.WrappedGame(wrapped().game, [ex.QLearning] * 2),
        "found the class QLearning as that of agent 0: call it",
    ),
    "agents first": (lambda: ex.games.repeated(np.stack([A, A.T])), "agents first or last"),
    "agents first, three actions": (
        lambda: ex.games.repeated(np.ones((2, 3, 3))),
        r"np\.moveaxis\(payoffs, 0, -1\)",
    ),
    "names in one text": (
        lambda: ex.MarkovGame.from_dense(
            np.ones((2, 1, 2)) / 2, np.ones((2, 1, 1)), state_names="ab"
        ),
        "state_names must be a list of names; found 'ab'",
    ),
    # Parameters
    "one array": (
        lambda: ex.solve(wrapped(), wrapped().init()[0], TS),
        r"params0 must be a tuple .* one pytree for each of 2 agents; found Array\(\[\[0\., 0\.",
    ),
    "policies along times": (
        lambda: wrapped().policies(at_times()),
        r"shape \(1, 2\); found \(2, 1, 2\), with a leading axis: .* jax\.vmap",
    ),
    "one start for basins": (
        lambda: ex.basins(**start(), time=1.0),
        r"shape \[starts, 1, 2\]; found \(1, 2\): one alone, without the leading axis of starts",
    ),
    "one guess": (
        lambda: ex.rest_points(**start("guesses")),
        r"shape \[guesses, 1, 2\]; found \(1, 2\): one alone",
    ),
    # Keys
    "integer as key": (lambda: simulated(key=0), r"e\.g\. jax\.random\.key\(0\); found 0"),
    "several keys": (
        lambda: simulated(key=jax.random.split(KEY, 3)),
        r"key must be one random key; found several, of shape \(3,\)",
    ),
    "key of a learner": (lambda: wrapped().init(0), r"jax\.random\.key\(0\); found 0"),
    # Derivatives
    "gradient of a simulation": (
        lambda: jax.grad(lambda x: simulated(scale=x).mean[0].sum())(2.0),
        r"simulate looks at values: .* differentiate ergodax\.solve instead",
    ),
    "gradient of a comparison": (
        lambda: jax.grad(lambda x: ex.compare(**start(), ts=TS, key=KEY, scale=x).separation)(2.0),
        r"compare looks at values: .* differentiate ergodax\.solve instead",
    ),
    # Numbers
    "text as scale": (lambda: simulated(scale="10"), "scale must be a positive number; found '10'"),
    "dates as times": (
        lambda: ex.solve(**start(), ts=[datetime.date(2025, 1, 1)]),
        "ts must be a non-empty list of times",
    ),
    "texts as times": (
        lambda: ex.solve(**start(), ts=["0", "1"]),
        r"ts must be a non-empty list of times; found \['0', '1'\]",
    ),
    "no first states": (
        lambda: simulated(initial_state=[]),
        r"initial_state must be .* found \[\]",
    ),
    "half a state": (lambda: simulated(initial_state=0.5), "initial_state must be a state"),
    "first states of one comparison": (
        lambda: ex.compare(**start(), ts=TS, key=KEY, initial_state=[0, 0]),
        "initial_state must be a state",
    ),
    "observing nothing": (lambda: simulated(observe=lambda p: None), "observe must return numbers"),
    "dictionary of a fit": (
        lambda: ex.fit(lambda x: x**2, 0.5),
        r"theta0 must be a dictionary, e\.g\. \{'temperature': 0\.5\}; found 0\.5",
    ),
    "option of a sweep": (
        lambda: ex.sweep(build, {"x": [1.0]}, TS, simulation={"key": KEY, "run": 2}),
        "simulation takes no 'run'; did you mean runs",
    ),
    # Pictures
    "agent by name": (
        lambda: ex.plot.parameters(solution(), "Alice", 0),
        "agent must be the number of an agent, 0 to 1; found 'Alice'",
    ),
    "half a state, drawn": (
        lambda: ex.plot.policies(solution(), 0, 0.5),
        r"state 0\.5 is not a state",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake):
    make, message = MISTAKES[mistake]
    with annotations_off(), pytest.raises((ValueError, TypeError), match=message) as error:
        make()
    assert "\n" not in str(error.value).split("\n--------------------\n")[0]


@pytest.mark.parametrize(
    "payoffs",
    [
        [[fractions.Fraction(3)], [fractions.Fraction(1, 4)]],
        pandas.DataFrame({"payoff": pandas.array([3, 0.25], dtype="Float64")}),
        np.array([[3.0], [0.25]], np.float32),
        [[np.float64(3)], [jnp.asarray(0.25)]],
    ],
)
def test_numbers_of_other_kinds_are_taken(payoffs):
    with annotations_off():
        game = ex.games.repeated(payoffs, memory=0)
    np.testing.assert_array_equal(game.rewards[0, :, 0, 0], [3.0, 0.25])
    assert game.rewards.dtype == jnp.float64


def test_numbers_of_other_kinds_are_parameters():
    with annotations_off():
        rule = ex.EpsilonSoftmax(fractions.Fraction(1, 2), np.float32(0.25))
        scale = simulated(scale=fractions.Fraction(5, 2), runs=np.int64(3)).scale
    assert (float(rule.temperature), float(rule.epsilon), scale) == (0.5, 0.25, 2.5)


@pytest.mark.slow
def test_parameters_of_numpy_and_of_float32_are_taken():
    params = jax.tree.map(lambda leaf: np.asarray(leaf + 0.25, np.float32), wrapped().init())
    game = alone(), (np.float32([[0.0, 1.0, 0.5]]),)
    for one, own in ((wrapped(), params), game):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), own)
        for function in (ex.drift, ex.jacobian, ex.noise_covariance, ex.poisson_values):
            found, expected = (function(one, p) for p in (own, double))
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(float)}
        for found, expected in (
            (one.policies(own), one.policies(double)),
            (one.frozen_chain(own), one.frozen_chain(double)),
            (one.increments(0, own[0]), one.increments(0, double[0])),
        ):
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
def test_derivatives_by_float32_parameters_are_theirs():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.25, jnp.float32), wrapped().init())

    def end(params):
        return ex.solve(wrapped(), params, TS).params[0][-1].sum()

    slope = jax.grad(end)(params)
    double = jax.grad(end)(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params))
    assert slope[0].dtype == jnp.float32
    np.testing.assert_array_equal(slope[0], double[0].astype(jnp.float32))


def test_constants_rounded_to_float32_are_warned_of():
    early = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), wrapped().learners[0])
    late = ex.WrappedGame(wrapped().game, [early, wrapped().learners[1]])
    with pytest.warns(UserWarning, match=r"learners\[0\].* is in float32.*jax_enable_x64"):
        ex.drift(late, late.init())


class Unnormalised(ex.QLearning):
    def policy(self, params, state):
        return 1.2 * super().policy(params, state)


class Outside(ex.QLearning):
    def update(self, params, transition, game, agent):
        return ex.At((transition.state + transition.action, transition.action), 1.0)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (
            Unnormalised(),
            r"agent 1: Unnormalised\.policy in state 0 \(-\) must sum to 1; found .*1\.2",
        ),
        (
            Outside(),
            r"agent 1: Outside\.update returns an At outside its table in state 0 .*\(0, 1\)",
        ),
    ],
)
@pytest.mark.parametrize("function", [ex.drift, ex.stationary_distribution])
def test_broken_learners_are_refused_by_the_averaged_side(learner, message, function):
    broken = ex.WrappedGame(wrapped().game, [wrapped().learners[0], learner])
    with pytest.raises(ValueError, match=message):
        function(broken, broken.init())


@pytest.mark.parametrize("module", [ex, ex.games, ex.schedules], ids=lambda module: module.__name__)
def test_type_checkers_see_fields_in_the_order_of_arguments(module):
    """They take a field to stand where a base first declares it, which Python does not."""
    classes = [value for value in vars(module).values() if dataclasses.is_dataclass(value)]
    for kind in filter(inspect.isclass, classes):
        given = [field.name for field in dataclasses.fields(kind) if field.init]
        bases = map(inspect.get_annotations, reversed(kind.__mro__))
        assert [
            name for name in dict.fromkeys(n for b in bases for n in b) if name in given
        ] == given
