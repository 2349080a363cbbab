"""Every public function, arguments that it takes, and wrong values that are right for it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray

import ergodax as ex


class Call(NamedTuple):
    """A public function.

    Attributes:
        function: the function.
        arguments: makes arguments that it takes, by name.
        takes: for each parameter, labels of the wrong values that are right for it.
    """

    function: Callable
    arguments: Callable[[], dict[str, Any]]
    takes: dict[str, str]


def blank(kind, **fields):
    """A result that holds some of its fields only."""
    result = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(result, name, value)
    return result


KEY = jax.random.key(0)
TS = np.array([0.0, 2.0])
TABLES = [[2.0, 0.0], [3.0, 1.0]], [[2.0, 3.0], [0.0, 1.0]]


@functools.cache
def wrapped():
    """One state, two agents: compiled in no time."""
    learner = ex.QLearning(0.1, 0.5, ex.EpsilonSoftmax(1.0))
    return ex.WrappedGame(ex.games.bimatrix(*TABLES, memory=0), [learner, learner])


@functools.cache
def alone():
    """One agent with three actions."""
    learner = ex.QLearning(0.1, 0.5, ex.EpsilonSoftmax(1.0))
    return ex.WrappedGame(ex.games.repeated(np.ones((3, 1)), memory=0), [learner])


def at_times(count=2):
    return jax.tree.map(lambda leaf: np.stack([leaf] * count), wrapped().init())


def solution():
    shares = {"state_distribution": np.ones((2, 1)), "rewards": np.ones((2, 2))}
    return blank(ex.Solution, wrapped=wrapped(), ts=TS, params=at_times(), **shares)


def simulation():
    moments = {"mean": at_times(), "variance": at_times(), "values": None}
    return blank(
        ex.Simulation,
        **{"wrapped": wrapped(), "ts": TS, "observed": ("parameters",), "scale": 1.0, "runs": 2},
        **moments,
        state_frequency=np.ones((2, 1)),
    )


def fluctuations():
    return blank(
        ex.Fluctuations,
        **{"wrapped": wrapped(), "ts": TS, "params": at_times(), "bias": np.zeros((2, 4))},
        **{"covariance": np.zeros((2, 4, 4)), "margin": np.ones((2, 2)), "scale": None},
        initial=np.ones(1),
    )


def basins():
    return blank(ex.Basins, wrapped=wrapped(), labels=np.zeros(3, int), attractors=())


def sensitivities():
    by_theta = jax.tree.map(lambda leaf: {"x": leaf}, at_times())
    return blank(
        ex.Sensitivities, wrapped=wrapped(), ts=TS, params=at_times(), derivatives=by_theta
    )


def comparison():
    return blank(ex.Comparison, wrapped=wrapped(), solution=solution(), simulation=simulation())


def response():
    strategies = [np.zeros(1, int)] * 2
    return ex.outcomes.deviation_response(wrapped().game, strategies, 0, 1, state=0)


def grid():
    return xarray.Dataset({"policy": ("x", [0.1, 0.2])}, {"x": [1.0, 2.0]})


def start(name="params0"):
    return {"wrapped": wrapped(), name: wrapped().init()}


def build(theta):
    return wrapped(), wrapped().init()


def square(theta):
    return theta["x"] ** 2


def values(theta):
    return theta["x"] * np.ones(2)


def call(function, arguments=dict, **takes):
    return Call(function, arguments, takes)


POINT = {"wrapped": "", "params": ""}
SOLVER = {"rtol": "", "atol": "", "max_steps": ""}
FLOW = {"wrapped": "", "params0": "", "ts": ""} | SOLVER | {"max_steps": "None"}
NAMES = {"state_names": "None", "action_names": "None", "initial": "None"}
REPEATED = {"memory": "0", "action_names": "None", "initial": "None"}
TIMED = {"result": "", "scale": "None", "ax": "None"}
DRAWN = {"agent": "0", "state": "0", "sample_runs": "0"}
PORTRAIT = {"flow": "", "at": "None", "embed": "None", "paths": "empty", "rest_points": "empty"}
PORTRAIT |= {"runs": "None", "ax": "None"}
OPTIONS = {"checkpoint": "None text", "progress": "bool"}


def drawn(make, **options):
    return lambda: {"result": make(), "agent": 0, "state": 0} | options


CALLS = {
    "MarkovGame": call(
        ex.MarkovGame,
        lambda: dict(
            successors=np.zeros((1, 2, 1), int),
            probabilities=np.ones((1, 2, 1)),
            rewards=np.ones((1, 2, 1, 1)),
        ),
        **{"successors": "", "probabilities": "", "rewards": ""} | NAMES,
    ),
    "from_dense": call(
        ex.MarkovGame.from_dense,
        lambda: dict(kernel=np.ones((1, 2, 1)), rewards=np.ones((1, 2, 1))),
        **{"kernel": "", "rewards": "", "support": "None"} | NAMES,
    ),
    "deterministic": call(
        ex.MarkovGame.deterministic,
        lambda: dict(next_state=np.zeros((1, 2), int), rewards=np.ones((1, 2, 1))),
        **{"next_state": "", "rewards": ""} | NAMES,
    ),
    "repeated": call(
        ex.games.repeated, lambda: {"payoffs": np.ones((2, 1))}, payoffs="", **REPEATED
    ),
    "bimatrix": call(
        ex.games.bimatrix,
        lambda: dict(zip(("first", "second"), TABLES, strict=True)),
        **{"first": "", "second": ""} | REPEATED,
    ),
    "prisoners_dilemma": call(ex.games.prisoners_dilemma, g="-1 0", memory="0"),
    "QLearning": call(
        ex.QLearning, learning_rate="0", discount="0", exploration="", initial="0 -1 shape"
    ),
    "ActorCritic": call(
        ex.ActorCritic,
        **{"learning_rate": "0", "critic_rate": "0", "discount": "0", "exploration": ""},
        **{"initial_preferences": "0 -1 shape", "initial_values": "0 -1 shape"},
    ),
    "EpsilonSoftmax": call(ex.EpsilonSoftmax, temperature="", epsilon="0"),
    "EpsilonGreedy": call(ex.EpsilonGreedy, epsilon="0"),
    "hyper": call(ex.hyper, default="None nan inf -1 0 shape empty", within="", scalar="bool"),
    "At": call(
        ex.At,
        lambda: {"index": (0, 0), "value": 1.0},
        index="empty",
        value="nan inf -1 0 empty shape",
    ),
    "WrappedGame": call(
        ex.WrappedGame,
        lambda: {"game": wrapped().game, "learners": wrapped().learners},
        game="",
        learners="",
    ),
    "init": call(wrapped().init, key="None"),
    "policies": call(wrapped().policies, params=""),
    "frozen_chain": call(wrapped().frozen_chain, params=""),
    "transitions": call(wrapped().transitions, agent="0"),
    "check_learner": call(
        ex.check_learner,
        lambda: {"learner": wrapped().learners[0], "game": wrapped().game},
        learner="",
        game="",
    ),
    "initial_values": call(
        ex.initial_values,
        lambda: dict(game=wrapped().game, agent=0, rule="optimistic", discount=0.5),
        **{"game": "", "agent": "0", "rule": "", "discount": "0"},
    ),
    "drift": call(ex.drift, lambda: start("params"), **POINT),
    "jacobian": call(ex.jacobian, lambda: start("params"), **POINT),
    "occupation_measure": call(ex.occupation_measure, lambda: start("params"), **POINT),
    "stationary_distribution": call(ex.stationary_distribution, lambda: start("params"), **POINT),
    "poisson_values": call(ex.poisson_values, lambda: start("params"), **POINT),
    "noise_covariance": call(ex.noise_covariance, lambda: start("params"), vector="None", **POINT),
    "solve": call(
        ex.solve,
        lambda: start() | {"ts": TS},
        **FLOW,
        solver="None",
        adjoint="None",
        throw="bool",
    ),
    "kinks": call(ex.kinks, lambda: start() | {"ts": TS}, **FLOW | SOLVER, solver="None"),
    "sensitivities": call(
        ex.sensitivities,
        lambda: {"build": build, "theta": {"x": 1.0}, "ts": TS},
        **{"build": "", "theta": "shape ragged", "ts": "", "solver": "None", "throw": "bool"},
        **SOLVER | {"max_steps": "None"},
    ),
    "rest_point": call(
        ex.rest_point, lambda: start("guess"), wrapped="", guess="", throw="bool", **SOLVER
    ),
    "rest_points": call(
        ex.rest_points,
        lambda: {"wrapped": wrapped(), "guesses": at_times()},
        **{"wrapped": "", "guesses": ""} | SOLVER,
    ),
    "basins": call(
        ex.basins,
        lambda: {"wrapped": wrapped(), "params0": at_times(), "time": 1.0},
        **{"wrapped": "", "params0": "", "time": "", "tolerance": "", "confidence": ""} | SOLVER,
        progress="bool",
    ),
    "fluctuations": call(
        ex.fluctuations,
        lambda: start() | {"ts": TS},
        **FLOW | SOLVER,
        **{"initial_state": "None 0", "bias": "bool", "scale": "None", "max_kinks": "0 None"},
        **{"adjoint": "None", "throw": "bool"},
    ),
    "near_kink": call(fluctuations().near_kink, scale=""),
    "layer": call(fluctuations().layer, scale=""),
    "corrected_mean": call(fluctuations().corrected_mean, scale=""),
    "band": call(
        fluctuations().band,
        lambda: {"observe": wrapped().policies, "scale": 1.0},
        observe="",
        scale="",
    ),
    "correlation": call(
        fluctuations().correlation, lambda: {"first": 0, "second": 1}, first="0", second="0"
    ),
    "required_scale": call(
        ex.required_scale,
        lambda: start() | {"t1": 1.0, "tolerance": 0.1},
        **{"wrapped": "", "params0": "", "t1": "", "tolerance": "", "probability": ""},
        **{"initial_state": "None 0", "paths": "", "seed": "0"},
    ),
    "stationary_covariance": call(
        ex.stationary_covariance, lambda: start("rest_point"), wrapped="", rest_point=""
    ),
    "simulate": call(
        ex.simulate,
        lambda: start() | {"ts": TS, "key": KEY},
        **{"wrapped": "", "params0": "", "ts": "", "scale": "", "runs": "None", "key": ""},
        **{"initial_state": "None 0", "observe": "", "recorder": "None", "keep_runs": "bool"},
        **{"dtype": "None", "start": "None", "batch_size": "None", "devices": "None"} | OPTIONS,
    ),
    "simulate_until": call(
        ex.simulate_until,
        lambda: start() | {"until": ex.until.greedy_unchanged(1), "max_steps": 2, "key": KEY},
        **{"wrapped": "", "params0": "", "until": "", "max_steps": "", "key": "", "runs": "None"},
        **{"scale": "", "initial_state": "None 0", "dtype": "None", "start": "None"},
        **{"batch_size": "None", "devices": "None"} | OPTIONS,
    ),
    "compare": call(
        ex.compare,
        lambda: start() | {"ts": TS, "key": KEY},
        **{"wrapped": "", "params0": "", "ts": "", "scale": "", "runs": "", "key": ""},
        **{"initial_state": "None 0", "dtype": "None", "progress": "bool"},
    ),
    "convergence_study": call(
        ex.convergence_study,
        lambda: start() | {"t1": 1.0, "key": KEY},
        **{"wrapped": "", "params0": "", "t1": "", "scales": "", "runs": "", "key": ""},
        **{"initial_state": "None 0", "batch_size": ""} | OPTIONS,
    ),
    "fit": call(
        ex.fit,
        lambda: {"loss": square, "theta0": {"x": 1.0}},
        **{"loss": "", "theta0": "", "bounds": "None", "optimizer": "None", "max_steps": ""},
        # Any pytree, which the loss takes as it likes.
        data="None text nan inf -1 0 complex bool ragged empty shape result",
        **{"rtol": "0", "atol": "0", "progress": "bool"},
    ),
    "standard_errors": call(
        ex.standard_errors,
        lambda: {"predict": values, "theta": {"x": 1.0}, "covariance": np.eye(2)},
        **{"predict": "", "theta": "", "covariance": "", "weights": "None", "bias": "None"},
    ),
    "sweep": call(
        ex.sweep,
        lambda: {"build": build, "thetas": {"x": [1.0]}, "ts": TS},
        **{"build": "", "thetas": "", "ts": "", "design": "", "simulation": "None"} | SOLVER,
        **{"batch_size": "None", "folder": "None text", "part": "None", "progress": "bool"},
    ),
    "use_all_cores": call(ex.use_all_cores, count="None"),
    "keep_programs": call(ex.keep_programs, folder="None text"),
    "save": call(
        ex.io.save,
        lambda: {"result": grid(), "path": "data.nc"},
        result="empty",
        path="text",
        attributes="None",
    ),
    "load": call(ex.io.load, lambda: {"path": "data.nc"}, path="text", classes="empty"),
    "table": call(ex.io.table, lambda: {"result": grid()}, result=""),
    "plot.parameters": call(ex.plot.parameters, drawn(solution), **TIMED | DRAWN),
    "plot.policies": call(ex.plot.policies, drawn(solution), **TIMED | DRAWN),
    "plot.state_distribution": call(
        ex.plot.state_distribution,
        lambda: {"result": solution(), "state": 0},
        **TIMED,
        state="None 0",
    ),
    "plot.deviation_response": call(
        ex.plot.deviation_response,
        lambda: {"response": response()},
        **{"response": "", "values": "None", "deviating": "None 0", "ax": "None"},
    ),
    "plot.comparison": call(
        ex.plot.comparison, lambda: {"comparison": comparison()}, comparison="", states="None"
    ),
    "plot.phase_portrait": call(
        ex.plot.phase_portrait,
        lambda: {"flow": wrapped(), "coordinates": (0, 1), "limits": ((0, 1), (0, 1))},
        **PORTRAIT | {"embed": "None result", "coordinates": "", "policy": "bool"},
        limits="None",
    ),
    "plot.simplex": call(
        ex.plot.simplex,
        lambda: {"flow": alone(), "agent": 0, "state": 0},
        **PORTRAIT | {"agent": "0", "state": "0"},
    ),
    "plot.basins": call(
        ex.plot.basins,
        lambda: {"result": basins(), "params0": at_times(3), "coordinates": (0, 1)},
        **{"result": "", "params0": "", "coordinates": "", "policy": "bool", "ax": "None"},
    ),
    "plot.sweep": call(
        ex.plot.sweep,
        lambda: {"dataset": grid(), "variable": "policy"},
        **{"dataset": "", "variable": "", "at": "None", "gradient": "bool", "ax": "None"},
    ),
    "plot.sensitivities": call(
        ex.plot.sensitivities,
        lambda: {"result": sensitivities(), "of": 0},
        **{"result": "", "of": "0", "time": "None 0", "theta": "None nan inf -1 0"},
        ax="None",
    ),
    "plot.convergence": call(
        ex.plot.convergence, lambda: {"study": blank(ex.ConvergenceStudy)}, study="", ax="None"
    ),
}


def numbers(function, **takes):
    """A game that needs no arguments, whose other parameters are numbers of any size."""
    known = {"memory": "0"} | takes
    names = inspect.signature(function).parameters
    return call(function, **{name: known.get(name, "-1 0") for name in names})


LEARNER = {"learning_rate": "0", "discount": "0", "exploration": "", "initial": "0 -1 shape"}

CALLS |= {
    name: numbers(getattr(ex.games, name))
    for name in (
        *("symmetric", "stag_hunt", "hawk_dove", "chicken", "battle_of_the_sexes", "coordination"),
        "matching_pennies",
    )
} | {
    "rock_paper_scissors": numbers(ex.games.rock_paper_scissors, tie=""),
    "public_goods": numbers(ex.games.public_goods, num_agents=""),
    "volunteers_dilemma": numbers(ex.games.volunteers_dilemma, num_agents=""),
    "minority": numbers(ex.games.minority, num_agents=""),
    "travellers_dilemma": numbers(ex.games.travellers_dilemma, low="-1 0", high="", bonus="-1 0"),
    "two_state_dilemma": numbers(ex.games.two_state_dilemma, to_rich="None"),
    "ecological_public_good": numbers(
        ex.games.ecological_public_good, num_agents="", collapse="0", recovery="0"
    ),
    "two_state_matching_pennies": numbers(ex.games.two_state_matching_pennies, switch="0"),
    "random_ergodic": call(
        ex.games.random_ergodic, lambda: {"key": KEY}, key="", num_states="", num_actions=""
    ),
    "unit_demand": numbers(ex.games.unit_demand, num_firms="", num_prices=""),
    "cournot": numbers(ex.games.cournot, num_firms="", num_quantities="", slope=""),
    "sequential": numbers(ex.games.sequential, intervals=""),
    "bertrand": numbers(ex.games.bertrand, market="None", num_prices="", extension="-1 0"),
    "two_prices": numbers(ex.games.two_prices, market="None"),
    "first_price_auction": numbers(ex.games.first_price_auction, num_bidders="", num_bids=""),
    "second_price_auction": numbers(ex.games.second_price_auction, num_bidders="", num_bids=""),
    "LogitMarket": call(
        ex.games.LogitMarket,
        num_firms="",
        **{"quality": "-1 0", "cost": "-1 0", "outside": "-1 0", "differentiation": ""},
    ),
    "LinearMarket": call(
        ex.games.LinearMarket,
        **{"num_firms": "", "intercept": "", "cost": "-1 0", "substitutability": "0"},
    ),
    "price_grid": call(ex.games.LogitMarket().price_grid, num_prices="", extension="-1 0"),
    "payoffs": call(
        ex.games.LinearMarket().payoffs, lambda: {"prices": np.full((2, 2), 0.4)}, prices=""
    ),
    "game": call(ex.games.LinearMarket().game, prices="None", memory="0"),
    "from_table": call(
        ex.games.from_table,
        lambda: {"table": {"action": ["C", "D"], "payoff": [1.0, 0.0]}},
        table="text",
        memory="0",
    ),
    "read_nfg": call(ex.games.read_nfg, lambda: {"path": "game.nfg"}, path="text", memory="0"),
    "write_nfg": call(
        ex.games.write_nfg,
        lambda: {"game": ex.games.bimatrix(*TABLES, memory=0), "path": "game.nfg"},
        game="",
        path="text",
        title="text",
    ),
    "at": call(wrapped().at, t="-1 0"),
    "greedy_unchanged": call(ex.until.greedy_unchanged, steps=""),
    "settled": call(
        ex.until.settled, lambda: {"tolerance": 0.1, "steps": 2}, tolerance="", steps=""
    ),
    "replicate": call(ex.replications.replicate, lambda: {"name": "goll"}, name="", options=""),
    "repeated_lottery": call(
        ex.games.repeated_lottery,
        lambda: {"payoffs": np.ones((2, 2, 2, 2)), "probabilities": [0.5, 0.5]},
        **{"payoffs": "", "probabilities": "", "memory": "0", "action_names": "None"},
    ),
    "with_signals": call(
        ex.games.with_signals,
        lambda: {"game": wrapped().game, "signals": np.ones((2, 2, 1, 1))},
        game="",
        signals="",
    ),
    "CounterfactualQLearning": call(ex.CounterfactualQLearning, **LEARNER),
    "Sarsa": call(ex.Sarsa, **LEARNER),
    "ExpectedSarsa": call(ex.ExpectedSarsa, **LEARNER),
    "DoubleQLearning": call(ex.DoubleQLearning, **LEARNER, selection=""),
    "FrequencyAdjustedQLearning": call(ex.FrequencyAdjustedQLearning, **LEARNER, frequency=""),
    "FallingRate": call(
        ex.FallingRate, lambda: {"learner": wrapped().learners[0]}, learner="", power="0"
    ),
    "Cross": call(ex.Cross, learning_rate="0", epsilon="0"),
    "BushMosteller": call(ex.BushMosteller, learning_rate="0", epsilon="0", aspiration="-1 0"),
    "RothErev": call(
        ex.RothErev,
        **{"learning_rate": "0", "forgetting": "0", "experimentation": "0", "initial": "shape"},
    ),
    "Reinforce": call(
        ex.Reinforce,
        **{"learning_rate": "0", "baseline": "-1 0", "exploration": "", "initial": "0 -1 shape"},
    ),
    "ExponentialWeights": call(
        ex.ExponentialWeights, learning_rate="0", exploration="", initial="0 -1 shape"
    ),
    "ProjectedGradient": call(
        ex.ProjectedGradient, learning_rate="0", exploration="", initial="0 -1 shape"
    ),
    "WolfPHC": call(
        ex.WolfPHC,
        **{"learning_rate": "0", "discount": "0", "win_rate": "0", "lose_rate": "0"},
        **{"epsilon": "0", "initial": "0 -1 shape"},
    ),
    "Observing": call(
        ex.Observing,
        lambda: {"learner": wrapped().learners[0], "observation": [0]},
        learner="",
        observation="",
    ),
    "Lenient": call(ex.Lenient, lambda: {"learner": wrapped().learners[0]}, learner="", draws=""),
    "Projection": call(ex.Projection, temperature="", epsilon="0"),
    "exponential": call(ex.schedules.exponential, start="-1 0", rate="0", end="-1 0"),
    "power": call(ex.schedules.power, start="-1 0", power="0", delay=""),
    "piecewise": call(
        ex.schedules.piecewise,
        lambda: {"times": [0.0, 1.0], "values": [1.0, 2.0]},
        times="",
        values="",
        between="",
    ),
    "from_optax": Call(ex.schedules.from_optax, lambda: {"function": abs}, {"function": "result"}),
}

PLAYED = {"game": "", "policies": ""}
STRATEGIES = {"game": "", "strategies": ""}


def played(**options):
    policies = tuple(np.full((1, 2), 0.5) for _ in range(2))
    return lambda: {"game": wrapped().game, "policies": policies} | options


def chosen(**options):
    return lambda: {"game": wrapped().game, "strategies": [np.zeros(1, int)] * 2} | options


CALLS |= {
    "outcomes.values": call(ex.outcomes.values, played(discount=0.5), **PLAYED | {"discount": "0"}),
    "outcomes.action_values": call(
        ex.outcomes.action_values,
        played(discount=0.5, agent=0),
        **PLAYED | {"discount": "0", "agent": "0"},
    ),
    "outcomes.best_response": call(
        ex.outcomes.best_response,
        played(discount=0.5, agent=0),
        **PLAYED | {"discount": "0", "agent": "0"},
    ),
    "outcomes.exploitability": call(
        ex.outcomes.exploitability, played(discount=0.5), **PLAYED | {"discount": "0"}
    ),
    "outcomes.is_equilibrium": call(
        ex.outcomes.is_equilibrium,
        played(discount=0.5),
        **PLAYED | {"discount": "0", "states": "None bool", "against": "", "tolerance": "0"},
    ),
    "outcomes.q_loss": call(
        ex.outcomes.q_loss, played(discount=0.5), **PLAYED | {"discount": "0", "against": ""}
    ),
    "outcomes.mean_rewards": call(ex.outcomes.mean_rewards, played(), **PLAYED),
    "outcomes.cross_pair": call(
        ex.outcomes.cross_pair,
        lambda: {"policies": tuple(np.full((3, 1, 2), 0.5) for _ in range(2))},
        **{"policies": "", "agent": "0", "shift": "-1 0"},
    ),
    "outcomes.greedy": call(ex.outcomes.greedy, played(), **PLAYED),
    "outcomes.play": call(ex.outcomes.play, chosen(), **STRATEGIES | {"initial_state": "None 0"}),
    "outcomes.deviation_response": call(
        ex.outcomes.deviation_response,
        chosen(agent=0, action=1, state=0),
        **STRATEGIES | {"agent": "0", "action": "0", "state": "0"},
        **{"periods": "", "before": "0", "after": ""},
    ),
    "outcomes.profit_gain": call(
        ex.outcomes.profit_gain,
        lambda: {"profits": 1.0, "competitive": 0.5, "collusive": 2.0},
        **{"profits": "nan inf 0 -1 empty shape", "competitive": "-1 0 empty shape"},
        collusive="-1 0 empty shape",
    ),
    "outcomes.strategy_class": call(
        ex.outcomes.strategy_class,
        lambda: {
            "game": ex.games.prisoners_dilemma(1.0),
            "strategies": [np.zeros(4, int)] * 2,
        },
        **STRATEGIES,
    ),
}
