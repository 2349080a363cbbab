"""What several test modules share: golden games, random games in two forms, comparisons."""

import contextlib
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jax.flatten_util import ravel_pytree

import ergodax as ex
import oracle
from ergodax.simulation.job import Job

KINDS = ("q", "sarsa", "counterfactual", "actor_critic")
FORMS = ("state_action", "next_state", "duplicates", "deterministic")


class Spec(NamedTuple):
    """A learner in neutral form: what the package's and the oracle's learner are both made from."""

    kind: str
    alpha: float = 0.1
    gamma: float = 0.9
    tau: float = 1.0
    eps: float = 0.0
    alpha_v: float = 0.1


def make_learner(spec):
    """The package's learner."""
    exploration = ex.EpsilonSoftmax(spec.tau, spec.eps)
    if spec.kind == "actor_critic":
        return ex.ActorCritic(spec.alpha, spec.alpha_v, spec.gamma, exploration)
    classes = {
        "q": ex.QLearning,
        "sarsa": ex.Sarsa,
        "counterfactual": ex.CounterfactualQLearning,
    }
    return classes[spec.kind](spec.alpha, spec.gamma, exploration)


def make_oracle_learner(spec):
    """The oracle's learner."""
    if spec.kind == "actor_critic":
        return oracle.ActorCritic(spec.alpha, spec.alpha_v, spec.gamma, spec.tau, spec.eps)
    classes = {
        "q": oracle.QLearning,
        "sarsa": oracle.Sarsa,
        "counterfactual": oracle.CounterfactualQLearning,
    }
    return classes[spec.kind](spec.alpha, spec.gamma, spec.tau, spec.eps)


class RothErev(ex.AbstractLearner):
    """A user's learner: propensities decay at rate phi and grow by the reward received."""

    phi: jax.Array = ex.hyper(0.01)

    def init(self, game, agent, *, key):
        return jnp.ones((game.num_states, game.num_actions[agent]))

    def policy(self, params, state):
        return params[state] / params[state].sum()

    def update(self, params, transition, game, agent):
        t = transition
        gain = t.reward * jax.nn.one_hot(t.action, params.shape[1])
        return ex.At((t.state,), self.phi * (gain - params[t.state]))


def random_specs(rng, kinds):
    """One learner per kind, every hyper-parameter different."""
    return [
        Spec(
            kind,
            alpha=rng.uniform(0.1, 1),
            gamma=rng.uniform(0, 1),
            tau=rng.uniform(0.3, 2),
            eps=rng.uniform(0, 0.5),
            alpha_v=rng.uniform(0.1, 1),
        )
        for kind in kinds
    ]


class Case(NamedTuple):
    """One wrapped game at one point, for the package and for the oracle."""

    wrapped: ex.WrappedGame
    params: tuple
    game: oracle.DenseGame
    learners: list

    @property
    def flat(self):
        """The parameters as the oracle reads them: one flat vector per agent."""
        return [np.asarray(ravel_pytree(params)[0]) for params in self.params]


def random_case(
    seed, num_states, num_actions, kinds, form="state_action", density=1.0, recurrent=None
):
    """A random game with one closed class, random learners and random parameters.

    Args:
        seed: seeds everything.
        num_states: number of states.
        num_actions: number of actions of each agent.
        kinds: kind of learner of each agent.
        form: how rewards enter, one of `FORMS`.
        density: chance that a state is a successor.
        recurrent: if given, this many states keep among themselves and the others are transient.
    """
    rng = np.random.default_rng(seed)
    specs = random_specs(rng, kinds)
    game, dense = random_game(rng, num_states, num_actions, form, density, recurrent)
    wrapped = ex.WrappedGame(game, [make_learner(spec) for spec in specs])
    flat, unravel = ravel_pytree(wrapped.init())
    params = unravel(rng.normal(size=flat.size))
    return Case(wrapped, params, dense, [make_oracle_learner(spec) for spec in specs])


def random_game(rng, num_states, num_actions, form, density=1.0, recurrent=None):
    """A random game with one closed class, as a `MarkovGame` and as the oracle's `DenseGame`."""
    shape, n = (num_states, *num_actions), len(num_actions)
    if form == "deterministic":
        next_state = rng.integers(num_states, size=shape)
        next_state[(slice(None),) + (0,) * n] = np.maximum(np.arange(num_states) - 1, 0)
        if recurrent is not None:
            next_state[:recurrent] %= recurrent
        rewards = rng.normal(size=(*shape, n))
        dense = oracle.DenseGame.from_dense(np.eye(num_states)[next_state], rewards)
        return ex.MarkovGame.deterministic(next_state, rewards), dense
    kernel = random_kernel(rng, num_states, num_actions, density, recurrent)
    if form == "duplicates":
        return _duplicated(rng, kernel)
    rewards = rng.normal(size=(*shape, *((num_states,) if form == "next_state" else ()), n))
    game = ex.MarkovGame.from_dense(kernel, rewards)
    return game, oracle.DenseGame.from_dense(kernel, rewards)


def random_kernel(rng, num_states, num_actions, density=1.0, recurrent=None):
    """A random kernel whose state 0 can be reached from everywhere: one closed class."""
    shape = (num_states, *num_actions)
    kernel = rng.dirichlet(np.ones(num_states), size=shape)
    kernel *= rng.random(kernel.shape) < density
    empty = kernel.sum(axis=-1) == 0
    kernel[empty, rng.integers(num_states, size=empty.sum())] = 1.0
    kernel /= kernel.sum(axis=-1, keepdims=True)
    for state in range(num_states):
        row = kernel[(state, *(0,) * len(num_actions))]
        row *= 0.5
        row[max(state - 1, 0)] += 0.5
    if recurrent is not None:
        kernel[:recurrent, ..., 0] += kernel[:recurrent, ..., recurrent:].sum(axis=-1)
        kernel[:recurrent, ..., recurrent:] = 0
    return kernel


def _duplicated(rng, kernel):
    """Finite random rewards: every successor stands twice, with other rewards."""
    n = kernel.ndim - 2
    share = rng.uniform(size=kernel.shape)
    probabilities = np.concatenate([share * kernel, (1 - share) * kernel], axis=-1)
    successors = np.broadcast_to(np.arange(kernel.shape[0]), kernel.shape)
    successors = np.concatenate([successors, successors], axis=-1)
    rewards = rng.normal(size=(*probabilities.shape, n))
    outcomes = {
        (index[0], index[1:]): list(
            zip(probabilities[index], successors[index].tolist(), rewards[index], strict=True)
        )
        for index in np.ndindex(kernel.shape[:-1])
    }
    dense = oracle.DenseGame(outcomes, kernel.shape[0], kernel.shape[1:-1], n)
    return ex.MarkovGame(successors, probabilities, rewards), dense


def golden_game(golden, case):
    """The wrapped game of a golden case."""
    values = golden["random" if case == "actor_critic" else case]
    kind = "actor_critic" if case == "actor_critic" else "q"
    learners = [
        make_learner(Spec(kind, alpha, gamma, tau, eps, alpha_v=alpha))
        for alpha, gamma, tau, eps in zip(
            *(values[name] for name in ("alpha", "gamma", "tau", "eps")), strict=True
        )
    ]
    return ex.WrappedGame(ex.MarkovGame.from_dense(values["T"], golden[case]["R"]), learners)


def unflatten(wrapped, flat):
    """Parameters of all agents from one flat vector."""
    return ravel_pytree(wrapped.init())[1](np.asarray(flat))


def flatten(params):
    """All agents' parameters as one flat NumPy vector."""
    return np.asarray(ravel_pytree(params)[0])


def flatten_times(params):
    """Parameters with a leading time axis as one NumPy array `[K, d]`."""
    return np.asarray(jax.vmap(lambda p: ravel_pytree(p)[0])(params))


def interrupt_after(monkeypatch, count, work=Job):
    """Ctrl-C once `count` blocks of a simulation are done."""
    run = work.run

    def interrupted(self):
        for k, taken in enumerate(run(self)):
            yield taken
            if k + 1 == count:
                raise KeyboardInterrupt

    monkeypatch.setattr(work, "run", interrupted)


@contextlib.contextmanager
def annotations_off():
    """Switches the checks of annotations off, to see what users see who get a shape wrong."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def assert_close(found, expected, tolerance):
    """Largest error relative to the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    error, size = np.abs(found - expected).max(), np.abs(expected).max()
    assert error <= tolerance * size, f"largest error {error:.2e}, largest entry {size:.2e}"


def central_difference(function, x, direction, step=1e-5):
    """Directional derivative of a scalar or array function of a flat vector, error O(step^4)."""

    def slope(h):
        return (np.asarray(function(x + h * direction)) - function(x - h * direction)) / (2 * h)

    return (4 * slope(step / 2) - slope(step)) / 3


def golden_build(golden, case):
    """A golden case as a function of its hyper-parameters and one reward, and its theta.

    Hyper-parameters are shared by the agents, or, in `mixed`, one per agent.
    """
    values = golden[case]
    own, agents = case == "mixed", range(len(values["alpha"]))
    theta = {name: jnp.asarray(values[name]) for name in ("alpha", "gamma", "tau", "eps")}
    if not own:
        theta = {name: value[0] for name, value in theta.items()}
    theta["R"] = jnp.asarray(values["R"][tuple(values["reward_entry_index"])])

    def build(theta):
        rewards = jnp.asarray(values["R"]).at[tuple(values["reward_entry_index"])].set(theta["R"])

        def learner(agent):
            alpha, gamma, tau, eps = (
                theta[name][agent] if own else theta[name]
                for name in ("alpha", "gamma", "tau", "eps")
            )
            return ex.QLearning(alpha, gamma, ex.EpsilonSoftmax(tau, eps))

        game = ex.MarkovGame.from_dense(values["T"], rewards)
        wrapped = ex.WrappedGame(game, [learner(agent) for agent in agents])
        return wrapped, unflatten(wrapped, values["x0"])

    return build, theta


def learnt_cooperation(epsilon):
    """How often two Q-learners with this exploration cooperate, after learning for long."""
    payoffs = np.array([[4.0, 0.0], [3.0, 2.0]])
    learner = ex.QLearning(0.1, 0.0, ex.EpsilonSoftmax(0.25, epsilon), [[4.0, 3.0]])
    game = ex.games.repeated((payoffs, payoffs.T), memory=0)
    wrapped = ex.WrappedGame(game, [learner, learner])
    params = ex.solve(wrapped, wrapped.init(), [300.0]).params
    return wrapped.policies(jax.tree.map(lambda leaf: leaf[-1], params))[0][0, 0]


# Agent 0 finds its first action worse until agent 1, who knows nothing of it, has learned to play
# its second: the lead of the first action falls, turns and grows again. With this lead at the start
# it falls to exactly zero; with less, the tie is crossed twice, ever more slowly.
TURNING_REWARDS = np.zeros((1, 2, 2, 2))
TURNING_REWARDS[0, 0, :, 0] = [-1.0, 1.0]
TURNING_REWARDS[0, :, 1, 1] = 1.0
TOUCHING, TURN = 1.9563457314139494, 5.394


def turning(theta):
    """The two agents, from a lead given by its distance to the one that just touches."""
    game = ex.MarkovGame.deterministic(np.zeros((1, 2, 2), int), TURNING_REWARDS)
    first = ex.QLearning(theta["alpha"], 0.8, ex.EpsilonSoftmax(0.5, 0.1))
    second = ex.QLearning(0.3, 0.0, ex.EpsilonSoftmax(0.2, 0.1))
    start = jnp.stack([1.0 + TOUCHING + theta["lead"], jnp.asarray(1.0)])[None]
    return ex.WrappedGame(game, [first, second]), (start, jnp.array([[1.0, 0.0]]))


def golden_derivatives(golden, case):
    """Golden derivatives of x(T) by every leaf of the theta of `golden_build`, `[d, ...]`."""
    values, names = golden[case], ("alpha", "gamma", "tau", "eps")
    if case == "mixed":
        agents = range(len(values["alpha"]))
        found = {n: np.stack([values[f"dxT_d{n}{i}"] for i in agents], axis=-1) for n in names}
    else:
        found = {name: values[f"dxT_d{name}"] for name in names}
    return found | {"R": values["dxT_dR"]}


def assert_derivatives_close(found, expected, tolerance):
    """Largest error relative to the largest entry, for every parameter apart."""
    for name, like in expected.items():
        columns = np.asarray(found[name]).reshape(len(like), -1).T
        for column, reference in zip(columns, like.reshape(len(like), -1).T, strict=True):
            assert_close(column, reference, tolerance)


def flatten_derivatives(derivatives, theta):
    """Derivatives nested as `jax.jacobian` does, by leaf of theta: `[K, d, ...]`."""
    tables = jax.tree.structure(theta)
    outer = jax.tree.leaves(derivatives, is_leaf=lambda x: jax.tree.structure(x) == tables)
    return {
        name: np.concatenate(
            [
                np.reshape(part[name], (len(part[name]), -1, *np.shape(theta[name])))
                for part in outer
            ],
            axis=1,
        )
        for name in theta
    }


def told(script, *arguments, **environment):
    """What a process prints that runs a script, and keeps programs only where that says."""
    inherited = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    options = {"capture_output": True, "text": True, "check": True}
    return subprocess.run(command, env=inherited | environment, **options)


# Begins a script that keeps programs in the folder of its first argument; `names` are those of the
# programs that are compiled.
KEEPING = """
import sys
import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
import ergodax as ex
from ergodax.base import dependencies, programs

dependencies._STARTED = float("inf")  # the files of a checkout may be new
ex.keep_programs(sys.argv[1])
names = []

def note(event, seconds, fun_name="", **rest):
    if event.endswith("backend_compile_duration"):
        names.append(fun_name)

jax.monitoring.register_event_duration_secs_listener(note)
"""
