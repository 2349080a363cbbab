"""What is seen first: every `repr` is short, and says sizes, settings, times and status."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from helpers import golden_game

GAME = (
    "MarkovGame(2 agents, 4 states (CC, CD, DC, DD), 2 x 2 actions (C, D), 1 successor"
    "; payoffs CC (3, 3), CD (1.5, 3.5), DC (3.5, 1.5), DD (2, 2))"
)


def build(theta):
    explore = ex.EpsilonSoftmax(theta["temperature"], 0.1)
    learners = [ex.Sarsa(0.01, 0.9, explore, initial) for initial in (30.0, [22.0, 20.5])]
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), learners)
    return wrapped, wrapped.init()


@pytest.fixture(scope="module")
def dilemma():
    return build({"temperature": 0.5})


def test_game_says_its_sizes_and_names():
    assert repr(ex.games.prisoners_dilemma()) == GAME
    unlike = ex.games.repeated(
        (np.zeros((2, 3)), np.ones((2, 3))),
        memory=0,
        action_names=[["up", "down"], ["l", "m", "r"]],
    )
    assert repr(unlike) == (
        "MarkovGame(2 agents, 1 state (-), 2 x 3 actions (up, down) (l, m, r), 1 successor; "
        "payoffs up-l (0, 1), up-m (0, 1), up-r (0, 1), down-l (0, 1), down-m (0, 1), "
        "down-r (0, 1))"
    )
    many = ex.games.repeated(np.zeros((4, 4, 2)), action_names=[list("abcd")] * 2)
    assert "16 states (aa, ab, ac, ad, ba, bb, bc, bd, ..), 4 x 4 actions (a, b, c, d)," in repr(
        many
    )


def test_learner_says_its_settings():
    learner = ex.QLearning(0.01, 0.9, ex.EpsilonSoftmax(0.5, 0.1), [22.0, 20.5])
    assert repr(learner) == (
        "QLearning(learning_rate=0.01, discount=0.9, "
        "exploration=EpsilonSoftmax(temperature=0.5, epsilon=0.1), initial=[22, 20.5])"
    )
    assert repr(ex.EpsilonGreedy(0.25)) == "EpsilonGreedy(epsilon=0.25)"
    table = ex.QLearning(initial=np.zeros((4, 2)))
    assert repr(table).endswith("initial=float64[4, 2])")


def test_learner_without_hyper_parameters_or_with_other_fields():
    class Imitation(ex.AbstractLearner):
        table: tuple = eqx.field(static=True, default=("C", "D"))

        def init(self, game, agent, *, key): ...

        def policy(self, params, state): ...

        def update(self, params, transition, game, agent): ...

    assert repr(Imitation()) == "Imitation(table=('C', 'D'))"


def test_traced_and_batched_settings_are_named_by_shape():
    seen = []
    jax.jit(lambda x: seen.append(repr(ex.EpsilonSoftmax(x))) or x)(jnp.asarray(0.5))
    assert seen == ["EpsilonSoftmax(temperature=float64[], epsilon=float64[])"]
    many = jax.vmap(ex.EpsilonSoftmax)(jnp.linspace(0.1, 1, 10))
    assert repr(many) == "EpsilonSoftmax(temperature=float64[10], epsilon=float64[10])"


def test_wrapped_game_says_its_game_and_learners(dilemma, golden):
    lines = repr(dilemma[0]).splitlines()
    assert lines[0] == f"WrappedGame of {GAME} and the learners"
    assert [line[:10] for line in lines[1:]] == ["  0: Sarsa", "  1: Sarsa"]
    assert lines[2].endswith("initial=[22, 20.5])")
    # Learners that are alike share a line.
    assert repr(golden_game(golden, "actor_critic")).splitlines()[1].startswith("  0, 1: Actor")


@pytest.mark.slow
def test_solution_says_its_times_and_status(dilemma):
    assert repr(ex.solve(*dilemma, [0.0, 5.0, 10.0])) == (
        "Solution(3 times from 0 to 10: successful)"
    )
    failed = ex.solve(*dilemma, [0.0, 1e4], max_steps=2, throw=False)
    assert repr(failed) == (
        "Solution(2 times from 0 to 10000: "
        "The maximum number of solver steps was reached, at t = 0)"
    )


@pytest.mark.slow
def test_batched_and_traced_solutions():
    seen = []

    def solve(temperature):
        solution = ex.solve(*build({"temperature": temperature}), [5.0])
        seen.append(repr(solution))
        return solution

    batch = eqx.filter_vmap(solve)(jnp.asarray([0.5, 0.6]))
    assert repr(batch) == "Solution(1 times: 2 of 2 successful)"
    assert seen == ["Solution(t = 5: traced)"]


@pytest.mark.slow
def test_sensitivities_say_by_what():
    found = ex.sensitivities(build, {"temperature": 0.5}, [5.0])
    assert repr(found) == "Sensitivities(t = 5, by temperature: successful)"


def test_simulation_says_its_runs_times_and_status(dilemma):
    simulation = ex.simulate(*dilemma, [0.0, 2.0], scale=10, runs=8, key=jax.random.key(0))
    assert repr(simulation) == ("Simulation(8 runs at scale 10, 2 times from 0 to 2: successful)")
    assert repr(simulation.final) == "Ensemble(8 runs)"
    cut = eqx.tree_at(lambda s: s.result, simulation, ex.RESULTS.interrupted)
    assert repr(cut).endswith(": The computation was interrupted)")


def rest_point(jacobian, result=ex.RESULTS.successful):
    zero = jnp.zeros(jacobian.shape[:-2])
    wrapped = build({"temperature": 0.5})[0]
    return ex.RestPoint(wrapped, (jnp.zeros(3),), zero + 2e-17, zero, jacobian, result)


def test_rest_point_says_its_stability():
    assert repr(rest_point(-jnp.eye(3))) == (
        "RestPoint(3 parameters, stable, residual 2e-17: successful)"
    )
    assert "unstable" in repr(rest_point(jnp.eye(3)))
    lost = rest_point(-jnp.eye(3), ex.RESULTS.nonlinear_max_steps_reached)
    assert repr(lost).startswith("RestPoint(3 parameters, residual 2e-17: The maximum number of")


def test_batched_rest_points_say_how_many_were_found():
    batch = jax.vmap(lambda _: rest_point(-jnp.eye(3)))(jnp.arange(4))
    assert repr(batch) == "RestPoint(3 parameters: 4 of 4 successful)"


def test_rest_points_say_what_they_are_and_how_many_guesses_failed():
    stable, lost = rest_point(-jnp.eye(3)), ex.RESULTS.nonlinear_max_steps_reached
    results = jax.tree.map(lambda code: jnp.stack([0 * code, code]), lost)
    found = ex.RestPoints(stable.wrapped, (stable,), np.array([0, -1]), results)
    assert repr(found) == "RestPoints(1 stable, from 2 guesses; 1 led to none)"
    (reason,) = found.failures
    assert reason.startswith("The maximum number of steps")
    none = ex.RestPoints(stable.wrapped, (), np.array([-1]), jax.tree.map(lambda c: c[1:], results))
    assert repr(none) == "RestPoints(none, from 1 guesses; 1 led to none)"


def test_fluctuations_say_what_was_solved(dilemma):
    found = ex.fluctuations(*dilemma, [0.0, 2.0])
    assert repr(found) == (
        "Fluctuations(covariance of 16 parameters, 2 times from 0 to 2: successful)"
    )
    biased = eqx.tree_at(lambda f: f.bias, found, jnp.zeros((2, 16)), is_leaf=lambda x: x is None)
    assert repr(biased).startswith("Fluctuations(covariance and bias of 16 parameters, ")


def test_basins_say_the_shares():
    found = rest_point(-jnp.eye(3))
    rest = ex.Attractor(orbit=found.params, period=0.0, rest=found)
    cycle = ex.Attractor(orbit=found.params, period=12.5, rest=None)
    assert repr(rest) == "Attractor(stable rest point)"
    assert repr(cycle) == "Attractor(limit cycle of period 12.5)"
    basins = ex.Basins(
        wrapped=found.wrapped,
        attractors=(rest, cycle),
        labels=np.array([0, 0, 1, -1]),
        shares=np.array([0.5, 0.25]),
        intervals=np.zeros((2, 2)),
        ends=(),
    )
    assert repr(basins) == (
        "Basins(4 starts: 50.0% to a rest point, 25.0% to a limit cycle, 25.0% unidentified)"
    )


def test_fit_says_what_it_found():
    found = ex.fit(lambda theta: (theta["x"] - 2.0) ** 2, {"x": 1.0})
    assert repr(found).startswith("Fit(x 2; loss ")
    assert repr(found).endswith(f"after {len(found.losses) - 1} steps: successful)")
