"""Every public function on fixed inputs: the numbers, and the labels of every result.

`python tests/public_results.py` writes what `test_public_results.py` compares with. It belongs to
the commit whose numbers are trusted, not to the one that is tested.
"""

import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ergodax as ex

DATA = Path(__file__).parent / "data"
TS = np.linspace(0.0, 12.0, 4)


def market(kind="q", learning_rate=0.3, temperature=0.7):
    """Two agents, three states, two and three actions, random transitions."""
    rng = np.random.default_rng(7)
    game = ex.MarkovGame.from_dense(
        rng.dirichlet(np.ones(3), size=(3, 2, 3)),
        rng.normal(size=(3, 2, 3, 2)),
        state_names=["low", "mid", "high"],
        action_names=[["in", "out"], ["a", "b", "c"]],
    )
    explore = ex.EpsilonSoftmax(temperature, 0.1)
    learners = {
        "q": lambda: [ex.QLearning(learning_rate, 0.6, explore), ex.QLearning(0.2, 0.5, explore)],
        "sarsa": lambda: [
            ex.Sarsa(learning_rate, 0.6, explore, 1.0),
            ex.Sarsa(0.2, 0.5, explore),
        ],
        "mixed": lambda: [
            ex.ActorCritic(learning_rate, 0.2, 0.6, explore),
            ex.CounterfactualQLearning(0.2, 0.5, explore),
        ],
    }[kind]()
    wrapped = ex.WrappedGame(game, learners)
    rng = np.random.default_rng(8)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), wrapped.init())
    return wrapped, params


def build(theta):
    return market("sarsa", theta["learning_rate"], theta["temperature"])


THETA = {"learning_rate": 0.3, "temperature": 0.7}


def at_one_point(found):
    for kind in ("q", "sarsa", "mixed"):
        wrapped, params = market(kind)
        found[f"policies/{kind}"] = wrapped.policies(params)
        found[f"stationary_distribution/{kind}"] = ex.stationary_distribution(wrapped, params)
        found[f"occupation_measure/{kind}"] = ex.occupation_measure(wrapped, params)
        found[f"drift/{kind}"] = ex.drift(wrapped, params)
        found[f"jacobian/{kind}"] = ex.jacobian(wrapped, params)
        found[f"poisson_values/{kind}"] = ex.poisson_values(wrapped, params)
        found[f"noise_covariance/{kind}"] = ex.noise_covariance(wrapped, params)
        for learner in wrapped.learners:
            ex.check_learner(learner, wrapped.game)
    wrapped, params = market()
    vector = np.linspace(-1, 1, 15)
    found["noise_covariance_product"] = ex.noise_covariance(wrapped, params, vector=vector)
    dilemma = ex.games.prisoners_dilemma(1.7)
    found["games.prisoners_dilemma"] = dilemma.kernel, dilemma.rewards


def flows(found, results):
    for kind in ("q", "sarsa", "mixed"):
        wrapped, params = market(kind)
        flow = ex.solve(wrapped, params, TS)
        found[f"solve/{kind}"] = flow.params, flow.state_distribution, flow.rewards
        results[f"Solution/{kind}"] = flow

    def loss(theta):
        wrapped, params = build(theta)
        end = ex.solve(wrapped, params, TS).params
        return sum(jnp.sum(leaf[-1] ** 2) for leaf in jax.tree.leaves(end))

    found["grad"] = jax.grad(loss)(THETA)
    sensitivities = ex.sensitivities(build, THETA, TS)
    found["sensitivities"] = sensitivities.params, sensitivities.derivatives
    results["Sensitivities"] = sensitivities
    wrapped, params = market()
    report = ex.kinks(wrapped, params, [0.0, 30.0])
    found["kinks"] = [[tie.time, tie.row, tie.old, tie.new, tie.jump] for tie in report.ties]


def rests(found, results):
    wrapped, params = market("sarsa")
    rest = ex.rest_point(wrapped, params)
    found["rest_point"] = rest.params, rest.jacobian, rest.eigenvalues.real
    results["RestPoint"] = rest
    guesses = jax.tree.map(lambda leaf: jnp.stack([leaf, 1 + leaf, -leaf]), params)
    found["rest_points"] = [one.params for one in ex.rest_points(wrapped, guesses)]
    drawn = ex.basins(wrapped, guesses, 300.0)
    found["basins"] = drawn.shares, drawn.intervals, drawn.ends
    results["Basins"] = drawn
    found["stationary_covariance"] = ex.stationary_covariance(wrapped, rest)


def second_order(found, results):
    for kind in ("sarsa", "mixed"):
        wrapped, params = market(kind)
        predicted = ex.fluctuations(wrapped, params, TS[:3], bias=True, initial_state=0)
        found[f"fluctuations/{kind}"] = predicted.covariance, predicted.bias, predicted.margin
        results[f"Fluctuations/{kind}"] = predicted
        found[f"layer/{kind}"] = predicted.layer(20.0)
        found[f"corrected_mean/{kind}"] = predicted.corrected_mean(20.0)
        found[f"band/{kind}"] = tuple(predicted.band(wrapped.policies, scale=20.0))
        found[f"correlation/{kind}"] = predicted.correlation(0, 1)[1:]
    wrapped, params = market("sarsa")
    found["required_scale"] = ex.required_scale(wrapped, params, 2.0, 0.2, paths=200)


def simulations(found, results):
    for kind in ("q", "sarsa", "mixed"):
        wrapped, params = market(kind)
        key = jax.random.key(3)
        runs = ex.simulate(wrapped, params, TS, scale=5, runs=70, key=key, keep_runs=True)
        found[f"simulate/{kind}"] = (
            *(runs.mean, runs.variance, runs.values, runs.state_frequency[1:], runs.rewards[1:]),
            runs.final,
        )
        results[f"Simulation/{kind}"] = runs
    wrapped, params = market()
    more = ex.simulate(
        wrapped, None, [13.0], scale=5, runs=70, key=jax.random.key(3), start=runs_of(wrapped)
    )
    found["simulate/continued"] = more.mean, more.rewards
    single = ex.simulate(
        wrapped, params, TS, scale=5, runs=9, key=jax.random.key(4), dtype="float32"
    )
    found["simulate/float32"] = single.mean, single.variance, single.rewards[1:]
    observed = ex.simulate(
        wrapped, params, TS, runs=9, key=jax.random.key(4), observe=wrapped.policies
    )
    found["simulate/policies"] = observed.mean, observed.variance
    results["Simulation/policies"] = observed
    other = ex.simulate(
        wrapped, params, TS, runs=9, key=jax.random.key(4), observe=lambda p: p[0][0, 0]
    )
    results["Simulation/observable"] = other


def runs_of(wrapped):
    params = market()[1]
    return ex.simulate(wrapped, params, TS, scale=5, runs=70, key=jax.random.key(3))


def studies(found, results):
    wrapped, params = market("sarsa")
    comparison = ex.compare(
        wrapped, params, TS, scale=10, runs=65, key=jax.random.key(5), initial_state="mid"
    )
    found["compare"] = (
        *(comparison.parameter_gap.largest, comparison.policy_gap.root_mean_square),
        *(comparison.separation, comparison.prediction, comparison.agreement.mean_z),
    )
    results["Comparison"] = comparison
    for kind in ("q", "sarsa"):
        wrapped, params = market(kind)
        study = ex.convergence_study(
            *(wrapped, params, 1.0),
            scales=(8, 16, 32),
            runs=70,
            key=jax.random.key(6),
            initial_state=0,
        )
        found[f"convergence_study/{kind}"] = (
            *(study.strong, study.strong_error, study.plain, study.plain_error),
            *(study.weak, study.weak_error, study.bias),
            *(study.strong_constant, study.strong_theory, study.weak_constant),
            *(study.weak_theory, study.strong_slope),
        )
        results[f"ConvergenceStudy/{kind}"] = study
    thetas = {"learning_rate": [0.2, 0.3], "temperature": [0.6, 0.8]}
    swept = ex.sweep(build, thetas, TS)
    results["sweep"] = swept
    found["sweep"] = {name: swept[name].values for name in _numbers(swept)}
    simulated = ex.sweep(build, thetas, TS, simulation={"key": jax.random.key(7), "runs": 8})
    results["sweep/simulation"] = simulated
    found["sweep/simulation"] = {name: simulated[name].values for name in _numbers(simulated)}

    def predict(theta):
        wrapped, params = build(theta)
        path = ex.solve(wrapped, params, TS, adjoint=__import__("diffrax").ForwardMode()).params
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(path)])

    data = predict({"learning_rate": 0.25, "temperature": 0.75})

    def loss(theta):
        wrapped, params = build(theta)
        path = ex.solve(wrapped, params, TS).params
        values = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(path)])
        return jnp.sum((values - data) ** 2)

    fitted = ex.fit(loss, THETA, bounds={"learning_rate": (0, 1)}, max_steps=40, rtol=1e-4)
    found["fit"] = fitted.losses[:3]
    results["Fit"] = fitted
    covariance = np.eye(len(data)) / 100
    found["standard_errors"] = ex.standard_errors(predict, THETA, covariance)


def _numbers(data):
    return [n for n, v in data.data_vars.items() if v.dtype.kind == "f"]


def collect():
    """Numbers by name, and the results."""
    found, results = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        at_one_point(found)
        flows(found, results)
        rests(found, results)
        second_order(found, results)
        simulations(found, results)
        studies(found, results)
    numbers = {
        f"{name}:{k}": np.asarray(leaf)
        for name, tree in found.items()
        for k, leaf in enumerate(jax.tree.leaves(tree))
    }
    return numbers, results


def labels_of(result):
    """Dimensions and attributes of all variables and coordinates of a result's data set."""
    data = result if hasattr(result, "data_vars") else result.to_xarray()
    settings = json.loads(data.attrs.get("settings", "{}"))
    return {
        "attributes": sorted(data.attrs),
        "settings": sorted(settings),
        "variables": {
            name: [list(v.dims), {k: str(a) for k, a in v.attrs.items()}, str(v.dtype.kind)]
            for name, v in sorted(data.variables.items())
        },
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    numbers, results = collect()
    np.savez_compressed(DATA / "public_results.npz", **numbers)
    labels = {name: labels_of(result) for name, result in results.items()}
    (DATA / "public_labels.json").write_text(json.dumps(labels, indent=0, sort_keys=True))
    print(len({name.partition(":")[0] for name in numbers}), "results,", len(numbers), "arrays")
