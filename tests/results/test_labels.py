"""Data sets of all results: the game's own names, dimensions, units, settings."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import comparisons
import ergodax as ex
from ergodax.results.labels import SETTING, Label, labelled, of_agents
from ergodax.results.result import Result
from results_of_each_kind import THETA, build, result


@pytest.mark.slow
def test_contents_are_the_comparison():
    c = comparisons.dilemma()
    data = c.to_xarray()
    expected = {
        "ode_parameters": np.stack(c.solution.params, axis=1),
        "ensemble_parameters": np.stack(c.simulation.mean[0], axis=1),
        "ensemble_parameters_variance": np.stack(c.simulation.variance[0], axis=1),
        "ode_policy": np.stack(c.policies, axis=1),
        "ensemble_policy": np.stack(c.simulation.mean[1], axis=1),
        "ensemble_policy_variance": np.stack(c.simulation.variance[1], axis=1),
        "ode_state_distribution": c.solution.state_distribution,
        "ensemble_state_frequency": c.simulation.state_frequency,
        "ode_rewards": c.solution.rewards,
        "ensemble_rewards": c.simulation.rewards,
    }
    assert set(data.data_vars) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(data[name], values)
        assert data[name].dtype == np.float64
        table = ("time", "agent", "state", "action")
        kind = name.split("_")[-1]
        dimensions = {"rewards": table[:2], "distribution": table[::2], "frequency": table[::2]}
        if kind in ("distribution", "frequency"):
            assert data[name].dims == ("time", "state")
        else:
            assert data[name].dims == dimensions.get(kind, table)


def test_coordinates_are_the_games_names():
    data = comparisons.dilemma().to_xarray()
    np.testing.assert_array_equal(data.time, comparisons.TIMES)
    np.testing.assert_array_equal(data.step, [0, 50, 100, 150, 200])
    assert data.step.dims == ("time",)
    assert data.state.values.tolist() == ["CC", "CD", "DC", "DD"]
    assert data.action.values.tolist() == ["C", "D"]
    assert data.agent.values.tolist() == [0, 1]
    value = data.ensemble_policy.sel(time=20.0, agent=1, state="DC", action="D")
    assert value == comparisons.dilemma().simulation.mean[1][1][4, 2, 1]


@pytest.mark.slow
def test_everything_is_described():
    for make in (comparisons.dilemma, comparisons.market, comparisons.untabulated):
        data = make().to_xarray()
        assert all(data[name].attrs["long_name"] for name in data.variables)
    data = comparisons.dilemma().to_xarray()
    assert data.time.attrs["units"] == "unscaled steps"
    assert data.ode_rewards.attrs["units"] == "reward per step"
    assert data.ensemble_policy.attrs["long_name"] == "policy, mean over runs"
    assert data.ode_state_distribution.attrs["units"] == "1"


def test_unequal_actions_have_their_own_dimensions():
    c = comparisons.market()
    data = c.to_xarray()
    assert "action" not in data.dims
    assert data.action_agent0.values.tolist() == ["low", "mid", "high"]
    assert data.action_agent1.values.tolist() == ["in", "out"]
    for agent in range(2):
        dimensions = ("time", "state", f"action_agent{agent}")
        for name, values in (
            ("ode_policy", c.policies[agent]),
            ("ensemble_policy", c.simulation.mean[1][agent]),
            ("ensemble_policy_variance", c.simulation.variance[1][agent]),
        ):
            variable = data[f"{name}_agent{agent}"]
            assert variable.dims == dimensions
            np.testing.assert_array_equal(variable, values)
    np.testing.assert_array_equal(data.ode_parameters_agent1, c.solution.params[1])
    assert data.ode_parameters_agent1.dims == ("time", "state", "action_agent1")
    theta, critic = data.ode_parameters_agent0_theta, data.ensemble_parameters_agent0_V
    assert theta.dims == ("time", "state", "action_agent0")
    np.testing.assert_array_equal(theta, c.solution.params[0].theta)
    assert critic.dims == ("time", "parameters_agent0_V_axis0")
    np.testing.assert_array_equal(critic, c.simulation.mean[0][0].V)


def test_any_parameters_are_stored_under_plain_names():
    c = comparisons.untabulated()
    data = c.to_xarray()
    bias, slope = data.ode_parameters_agent0_bias, data.ode_parameters_agent0_slope_a
    assert bias.dims == ("time",)
    assert slope.dims == ("time", "parameters_agent0_slope_a_axis0")
    np.testing.assert_array_equal(bias, c.solution.params[0]["bias"])
    np.testing.assert_array_equal(slope, c.solution.params[0]["slope/a"])
    # "a b" and "a/b" would be one plain name.
    own = [name for name in data.data_vars if name.startswith("ode_parameters_agent1")]
    assert len(own) == 2
    found = {tuple(data[name].values.tolist()) for name in own}
    assert found == {tuple(leaf.tolist()) for leaf in c.solution.params[1].values()}
    # Policies are tables all the same.
    assert data.ode_policy.dims == ("time", "agent", "state", "action")


def test_settings():
    settings = json.loads(comparisons.dilemma().to_xarray().attrs["settings"])
    assert settings == {
        "result": "Comparison",
        "ergodax": ex.__version__,
        "jax": jax.__version__,
        "scale": 10.0,
        "runs": 64,
        "key_data": np.asarray(jax.random.key_data(jax.random.key(0))).tolist(),
        "initial_state": None,
        "dtype": "float64",
        "game": {
            "agents": 2,
            "states": 4,
            "actions": [2, 2],
            "successors": 1,
            "state_names": ["CC", "CD", "DC", "DD"],
            "action_names": [["C", "D"], ["C", "D"]],
        },
        "learners": [
            {
                "type": "QLearning",
                "learning_rate": 0.01,
                "discount": 0.9,
                "exploration": {"type": "EpsilonSoftmax", "temperature": 0.5, "epsilon": 0.1},
                "initial": initial,
            }
            for initial in (30.0, [22.0, 20.0])
        ],
    }


def test_labels_of_a_simulation():
    saved = result("simulation")
    data = saved.to_xarray()
    runs = data.parameters_runs_agent1
    assert runs.dims == ("run", "time", "state", "action_agent1")
    np.testing.assert_array_equal(runs, saved.values[1])
    np.testing.assert_array_equal(data.parameters_agent0_theta, saved.mean[0].theta)
    np.testing.assert_array_equal(data.parameters_variance_agent1, saved.variance[1])
    np.testing.assert_array_equal(data.final_parameters_agent0_V, saved.final.params[0].V)
    np.testing.assert_array_equal(data.final_state, saved.final.state)
    assert data.rewards.dims == ("time", "agent")
    settings = json.loads(data.attrs["settings"])
    assert (settings["runs"], settings["scale"], settings["compensated"]) == (3, 5.0, False)
    assert settings["key_data"] == saved.key_data.tolist()


@pytest.mark.slow
def test_what_is_observed_is_named():
    wrapped, start = build(THETA)
    observed = {
        "policy": wrapped.policies,
        "observable": lambda params: {"gap": params[0][0, 0] - params[0][0, 1], "all": params[1]},
    }
    data = {
        name: ex.simulate(wrapped, start, [2.0], runs=2, key=jax.random.key(0), observe=observe)
        for name, observe in observed.items()
    }
    assert data["policy"].to_xarray().policy.dims == ("time", "agent", "state", "action")
    found, labelled = data["observable"], data["observable"].to_xarray()
    np.testing.assert_array_equal(labelled.observable_gap, found.mean["gap"])
    np.testing.assert_array_equal(labelled.observable_variance_all, found.variance["all"])
    assert labelled.observable_all.dims == ("time", "observable_all_axis0", "observable_all_axis1")


def test_labels_of_a_batch_of_solutions():
    saved = result("batched solutions")
    data = saved.to_xarray()
    assert data.parameters.dims == ("batch", "time", "agent", "state", "action")
    np.testing.assert_array_equal(data.parameters, np.stack(saved.params, axis=2))
    one = jax.tree.map(lambda leaf: leaf[1], saved).to_xarray()
    xarray.testing.assert_allclose(
        data.isel(batch=1).drop_vars("message"), one.drop_vars("message"), rtol=1e-14
    )
    assert data.message.values.tolist() == ["successful"] * 3


@pytest.mark.slow
def test_labels_of_derivatives():
    saved = result("sensitivities")
    data = saved.to_xarray()
    assert data.by_tau.dims == ("time", "agent", "state", "action")
    assert data.by_eps.dims == ("time", "eps_axis0", "agent", "state", "action")
    for agent, own in enumerate(saved.derivatives):
        np.testing.assert_array_equal(data.by_tau.sel(agent=agent), own["tau"])
        for k in range(2):
            np.testing.assert_array_equal(
                data.by_eps.sel(agent=agent).isel(eps_axis0=k), own["eps"][..., k]
            )


def test_labels_of_fluctuations():
    saved = result("fluctuations")
    data = saved.to_xarray()
    names = data.parameter.values.tolist()
    assert names[1] == "agent 0, -, 1"
    np.testing.assert_array_equal(data.covariance, saved.covariance)
    np.testing.assert_array_equal(
        data.bias.sel(parameter="agent 1, -, 0"), np.asarray(saved.bias)[:, 2]
    )
    assert data.covariance.dims == ("time", "parameter", "other_parameter")
    assert data.sizes["kink"] == 0


def test_only_kinks_that_were_crossed_are_labelled():
    crossed = [np.array([3.0, 5.0]), *(np.array([k, -1]) for k in range(4)), np.zeros((2, 4))]
    kinks = ex.second_order.fluctuations.Kinks(*map(jnp.asarray, crossed))
    saved = eqx.tree_at(lambda f: f.kinks, result("fluctuations"), kinks)
    data = saved.to_xarray()
    assert data.kink_time.values.tolist() == [3.0]
    assert [int(data[f"kink_{name}"][0]) for name in ("agent", "row", "old", "new")] == [0, 1, 2, 3]


@pytest.mark.slow
def test_labels_of_rest_points():
    saved = result("rest point")
    data = saved.to_xarray()
    np.testing.assert_array_equal(
        data.eigenvalues_real + 1j * data.eigenvalues_imag, saved.eigenvalues
    )
    assert data.stability == saved.stability
    batch = result("batched rest points").to_xarray()
    assert batch.stability.values.tolist() == ["stable"] * 3
    np.testing.assert_allclose(
        batch.eigenvalues_real, np.tile(data.eigenvalues_real, (3, 1)), rtol=1e-6
    )


def test_labels_of_basins_and_fits():
    saved = result("basins")
    data = saved.to_xarray()
    assert data.kind.values.tolist() == ["rest point"]
    assert data.attractor_of.values.tolist() == saved.labels.tolist()
    assert data.share_interval.sel(attractor=0, bound="high") == saved.intervals[0, 1]
    assert data.orbit0.dims == ("point0", "agent", "state", "action")
    fitted = result("fit")
    data = fitted.to_xarray()
    np.testing.assert_array_equal(data.theta_x, fitted.theta["x"])
    np.testing.assert_array_equal(data.losses, fitted.losses)


class Tally(Result):
    """A result of a user's own, with a label of every kind."""

    wrapped: ex.WrappedGame
    counts: jax.Array = eqx.field(metadata=labelled("visits", ("time", "state"), "1"))
    missing: None = eqx.field(metadata=labelled("nothing", ("time",)))
    start: tuple = eqx.field(metadata=labelled("start", name="parameters", make=of_agents))
    seed: int = eqx.field(metadata=labelled(SETTING), static=True)
    secret: float

    def _derived(self):
        """The sum of all visits."""
        return {"total": (self.counts.sum(axis=(-2, -1)), Label("all visits"))}


def test_fields_say_what_they_hold():
    wrapped, start = build(THETA)
    counts = jnp.arange(6.0).reshape(2, 3, 1)
    several = jax.vmap(lambda counts: Tally(wrapped, counts, None, start, 7, 0.5))(counts)
    start = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), start)
    data = eqx.tree_at(lambda tally: tally.start, several, start).to_xarray()
    assert set(data.data_vars) == {"counts", "parameters", "total"}
    assert data.counts.dims == ("batch", "time", "state")
    assert data.counts.attrs == {"long_name": "visits", "units": "1"}
    np.testing.assert_array_equal(data.counts, counts)
    assert data.total.values.tolist() == [3.0, 12.0]
    assert data.parameters.dims == ("batch", "agent", "state", "action")
    settings = json.loads(data.attrs["settings"])
    assert (settings["result"], settings["seed"], settings["dtype"]) == ("Tally", 7, "float64")
    assert "secret" not in settings
