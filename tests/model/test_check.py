import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.games import prisoners_dilemma, repeated
from ergodax.model import check
from helpers import RothErev


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner",
    [
        ex.QLearning(),
        ex.CounterfactualQLearning(),
        ex.Sarsa(),
        ex.ActorCritic(),
        RothErev(),
        ex.QLearning(exploration=ex.EpsilonGreedy(0.1)),
        ex.ActorCritic(0.5, 0.5, 0.9, ex.EpsilonSoftmax(0.02, 0.1)),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_accepts_learners_that_keep_the_contract(learner):
    ex.check_learner(learner, prisoners_dilemma())
    ex.check_learner(learner, repeated(np.arange(18.0).reshape(3, 3, 2)[:, :2], memory=1))


class EmptyInit(RothErev):
    def init(self, game, agent, *, key):
        return ()


class IntegerInit(RothErev):
    def init(self, game, agent, *, key):
        return jnp.ones((game.num_states, game.num_actions[agent]), dtype=int)


class InfiniteInit(RothErev):
    def init(self, game, agent, *, key):
        return jnp.full((game.num_states, game.num_actions[agent]), jnp.inf)


class RandomInit(RothErev):
    def init(self, game, agent, *, key):
        return jnp.asarray(np.random.default_rng().uniform(1, 2, (game.num_states, 2)))


class ShortPolicy(RothErev):
    def policy(self, params, state):
        return params[state][:1]


class UnnormalisedPolicy(RothErev):
    def policy(self, params, state):
        return params[state]


class NegativePolicy(RothErev):
    def policy(self, params, state):
        return jnp.array([1.5, -0.5])


class RandomPolicy(RothErev):
    def policy(self, params, state):
        share = np.random.default_rng().uniform()
        return jnp.array([share, 1 - share])


class WrongStructure(RothErev):
    def update(self, params, transition, game, agent):
        return (params, params)


class WrongShape(RothErev):
    def update(self, params, transition, game, agent):
        return params[0]


class WrongRow(RothErev):
    def update(self, params, transition, game, agent):
        return ex.At((transition.state,), 1.0)


class DeepIndex(RothErev):
    def update(self, params, transition, game, agent):
        t = transition
        return ex.At((t.state, t.action, t.action), t.reward)


class FloatIndex(RothErev):
    def update(self, params, transition, game, agent):
        return ex.At((transition.reward, transition.action), transition.reward)


class OutOfBounds(RothErev):
    def update(self, params, transition, game, agent):
        return ex.At((transition.state + 1, transition.action), transition.reward)


class InfiniteUpdate(RothErev):
    def update(self, params, transition, game, agent):
        t = transition
        return ex.At((t.state, t.action), jnp.where(t.state == 2, jnp.inf, 0.0))


class RandomUpdate(RothErev):
    def update(self, params, transition, game, agent):
        t = transition
        return ex.At((t.state, t.action), t.reward * np.random.default_rng().uniform())


class ForgottenNextAction(RothErev):
    def update(self, params, transition, game, agent):
        t = transition
        return ex.At((t.state, t.action), params[t.next_state, t.next_action])


class PlainNumber(RothErev):
    rate: float = 0.1


class NewTable(RothErev):
    def update(self, params, transition, game, agent):
        t = transition
        return params.at[t.state, t.action].add(self.phi * (t.reward - params[t.state, t.action]))


class NewRow(RothErev):
    def update(self, params, transition, game, agent):
        return ex.At(
            (transition.state,),
            NewTable.update(self, params, transition, game, agent)[transition.state],
        )


class Greedy(RothErev):
    def policy(self, params, state):
        return jax.nn.one_hot(params[state].argmax(), params.shape[1])


class HandWritten(RothErev):
    """Q-learning that does not say that it takes a maximum."""

    exploration: ex.EpsilonSoftmax = eqx.field(default_factory=ex.EpsilonSoftmax)

    def policy(self, params, state):
        return self.exploration(params[state])

    def update(self, params, transition, game, agent):
        t = transition
        target = t.reward + 0.9 * params[t.next_state].max()
        return ex.At((t.state, t.action), 0.1 * (target - params[t.state, t.action]))


class Sorting(HandWritten):
    def update(self, params, transition, game, agent):
        t = transition
        target = t.reward + 0.9 * jnp.sort(params[t.next_state])[-1]
        return ex.At((t.state, t.action), 0.1 * (target - params[t.state, t.action]))


class Kinked(ex.Sarsa):
    class Rule(ex.EpsilonSoftmax):
        def __call__(self, values):
            share = jnp.clip(values[0] - values[1], -0.5, 0.5) + 0.5
            return jnp.stack([share, 1 - share])

    exploration: Rule = eqx.field(default_factory=Rule)


class Clipped(RothErev):
    """Its policy has kinks, and no exploration rule says so."""

    def policy(self, params, state):
        up = jnp.clip(1 + params[state, 0] - params[state, 1], 0.2, 0.8)
        return jnp.stack([up, 1 - up])


class Ramp(ex.AbstractExploration):
    """The same as a rule, which says nothing of its kinks."""

    def __call__(self, values):
        up = jnp.clip(0.5 + values[0] - values[1], 0.2, 0.8)
        return jnp.stack([up, 1 - up])


class Drifting(RothErev):
    """Its policy is a distribution at the start only."""

    def policy(self, params, state):
        return params[state] / params.shape[1]


class Moving(RothErev):
    """Its index leaves the table when its parameters have grown."""

    def update(self, params, transition, game, agent):
        t = transition
        state = t.state + 4 * (params[t.state, t.action] > 1).astype(t.state.dtype)
        return ex.At((state, t.action), 0.1 * t.reward)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (EmptyInit(), r"EmptyInit\.init must return at least one array"),
        (IntegerInit(), r"agent 0: IntegerInit\.init: parameter must be a floating-point"),
        (InfiniteInit(), r"InfiniteInit\.init: parameter must be finite"),
        (RandomInit(), r"RandomInit\.init is not pure"),
        (ShortPolicy(), r"ShortPolicy\.policy must return 2 probabilities; found shape \(1,\)"),
        (UnnormalisedPolicy(), r"policy in state 0 \(CC\) must sum to 1; found \[1\. 1\.\], sum 2"),
        (NegativePolicy(), r"policy in state 0 \(CC\) must not be negative or NaN"),
        (RandomPolicy(), r"RandomPolicy\.policy in state 0 \(CC\) is not pure"),
        (WrongStructure(), r"WrongStructure\.update: increment must have shape|structured like"),
        (WrongShape(), r"WrongShape\.update: increment must have shape \(4, 2\); found \(2,\)"),
        (WrongRow(), r"WrongRow\.update: increment must have shape \(2,\); found \(\)"),
        (DeepIndex(), r"DeepIndex\.update: increment: At\.index must be a tuple of at most 2"),
        (FloatIndex(), r"FloatIndex\.update: increment: At\.index must hold scalar integers"),
        (OutOfBounds(), r"index must fit the table \(4, 2\); found 4 in state 3 after joint"),
        (InfiniteUpdate(), r"must be finite; found inf in state 2 after joint action \(0, 0\)"),
        (RandomUpdate(), r"RandomUpdate\.update is not pure"),
        (ForgottenNextAction(), r"must have shape \(\); .*set needs_next_action = True"),
        (NewTable(), r"NewTable\.update: increment follows entries .* not touch"),
        (NewRow(), r"NewRow\.update: increment follows entries .* not touch"),
        (Greedy(), r"Greedy\.policy jumps .* `continuous` that returns False"),
        (HandWritten(), r"HandWritten\.update has a kink, .* `maximised` does not declare"),
        (Sorting(), r"Sorting\.update has a kink, .* `maximised` does not declare"),
        (Clipped(), r"Clipped\.policy has a kink, .* `maximised` does not declare"),
        (ex.QLearning(1.0, 0.5, Ramp()), r"QLearning\.policy has a kink, .* does not declare"),
        (Kinked(), r"Kinked\.policy has a kink, but `smooth` is True"),
        (Drifting(), r"Drifting\.policy, after some updates, in state . .* must sum to 1"),
        (Moving(), r"Moving\.update, after some updates: increment index must fit the table"),
        (PlainNumber(), r"PlainNumber\.rate is the plain Python number 0\.1; .*ergodax\.hyper"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, eqx.Module) else "",
)
def test_names_what_is_wrong(learner, message):
    with pytest.raises(ValueError, match=message):
        ex.check_learner(learner, prisoners_dilemma())


class Discounting(HandWritten):
    """The same, without a kink where the discount is zero."""

    discount: jax.Array = ex.hyper(0.9)

    def update(self, params, transition, game, agent):
        t = transition
        target = t.reward + self.discount * params[t.next_state].max()
        return ex.At((t.state, t.action), 0.1 * (target - params[t.state, t.action]))


@pytest.mark.parametrize(
    "analysis",
    [
        lambda w, p: ex.kinks(w, p, [1.0]),
        lambda w, p: ex.fluctuations(w, p, [1.0]),
        lambda w, p: ex.required_scale(w, p, 1.0, 0.1),
        lambda w, p: ex.stationary_covariance(w, p),
        lambda w, p: ex.compare(w, p, [1.0], runs=4, key=jax.random.key(0)),
    ],
    ids=["kinks", "fluctuations", "required_scale", "stationary_covariance", "compare"],
)
def test_analyses_of_kinks_refuse_those_that_are_not_declared(analysis):
    wrapped = ex.WrappedGame(prisoners_dilemma(), [ex.QLearning(), HandWritten()])
    with pytest.raises(
        ValueError, match=r"agent 1: HandWritten\.update has a kink, .* `maximised`"
    ):
        analysis(wrapped, wrapped.init())


def test_kinks_are_looked_for_once_for_each_class(monkeypatch):
    looked = []

    def jumps(*args, **options):
        looked.append(args)
        return found(*args, **options)

    found = check._jumps
    monkeypatch.setattr(check, "_jumps", jumps)
    game = repeated((np.eye(2), np.eye(2)), memory=0)
    for phi in (0.01, 0.02):
        check.check_kinks(ex.WrappedGame(game, [ex.Sarsa(), RothErev(phi)]))
    assert len(looked) == 2  # at the policy and at the update
    for own in (ex.QLearning(1.0, 0.5, Ramp()), ex.Observing(HandWritten(), [0])):
        with pytest.raises(ValueError, match="has a kink"):
            check.check_kinks(ex.WrappedGame(game, [ex.Sarsa(), own]))
    check.check_kinks(ex.WrappedGame(game, [ex.Sarsa(), Discounting(discount=0.0)]))
    with pytest.raises(ValueError, match="has a kink"):
        check.check_kinks(ex.WrappedGame(game, [ex.Sarsa(), Discounting(discount=0.5)]))
