"""What is drawn of sweeps and sensitivities."""

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import xarray
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import ergodax as ex
from ergodax import plot
from helpers import annotations_off

X, Y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 20.0, 30.0])


def swept():
    """Values that are known: 3 x + 0.5 y, and their like for two agents and three times."""
    plane = 3 * X[:, None] + 0.5 * Y
    rewards = plane[:, :, None, None] + np.array([0.0, 100.0])[:, None] + np.array([0.0, 7.0])
    return xarray.Dataset(
        {"rewards": (("x", "y", "time", "agent"), rewards), "steps": (("x", "y"), plane)},
        {"x": X, "y": Y, "time": [0.0, 5.0], "agent": [0, 1]},
    )


def test_heat_map_and_gradient():
    ax = plot.sweep(swept(), "rewards", {"agent": 1}, gradient=True)
    mesh, *_, arrows = ax.collections
    # The last time, and the second agent.
    np.testing.assert_allclose(mesh.get_array(), (3 * X + 0.5 * Y[:, None]) + 107)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert ax.get_title() == "agent 1, time 5"
    assert ax.figure.axes[1].get_ylabel() == "rewards"
    # Derivatives times the lengths of the axes.
    np.testing.assert_allclose(arrows.U, 3 * 3.0)
    np.testing.assert_allclose(arrows.V, 0.5 * 30.0)
    own = {"x": np.ones((4, 3)), "y": np.zeros((4, 3))}
    arrows = plot.sweep(swept(), "steps", gradient=own).collections[-1]
    np.testing.assert_allclose(arrows.U, 3.0)
    np.testing.assert_allclose(arrows.V, 0.0)


def test_nothing_global_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    plot.sweep(swept(), "steps", gradient=True).figure.savefig(tmp_path / "figure.png")
    plot.sensitivities(found(), 0).figure.savefig(tmp_path / "figure.png")
    assert dict(matplotlib.rcParams) == before


def test_curves_and_tangents():
    ax = plot.sweep(swept(), "rewards", {"y": 20.0, "time": 0.0}, gradient=True)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["0"].get_xydata(), np.stack([X, 3 * X + 10], axis=1))
    np.testing.assert_allclose(lines["1"].get_ydata(), 3 * X + 17)
    assert ax.get_legend().get_title().get_text() == "agent"
    assert ax.get_ylabel() == "rewards"
    thick = [line for line in ax.get_lines() if line.get_linewidth() == 4]
    assert len(thick) == 8
    rise, run = (np.ptp(data) for data in (thick[0].get_ydata(), thick[0].get_xdata()))
    assert rise / run == pytest.approx(3)
    ax = Figure().subplots()
    assert plot.sweep(swept(), "steps", {"x": 1.0}, ax=ax) is ax
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), np.stack([Y, 3 + 0.5 * Y], axis=1))


def test_spacing_tells_which_axes_are_logarithmic():
    values = np.arange(12.0).reshape(3, 4)
    rates, odd = np.array([2e-5, 5e-5, 1e-4]), np.array([1.0, 2.0, 3.0, 5.0])
    data = xarray.Dataset(
        {"rewards": (("agent_rate", "action_cost"), values)},
        {"agent_rate": rates, "action_cost": np.arange(4.0)},
    )
    ax = plot.sweep(data, "rewards", gradient=True)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    mesh, *_, arrows = ax.collections
    # Cells end halfway between the logarithms; arrows go by these.
    edges = np.asarray(mesh.get_coordinates())[0, :, 0]
    np.testing.assert_allclose(edges[1:3], np.sqrt(rates[1:] * rates[:-1]))
    np.testing.assert_allclose(edges[1] * edges[0], rates[0] ** 2 * (edges[1] / edges[0]) ** 0)
    slope = np.gradient(values, rates, axis=0) * rates[:, None] * np.log(rates[-1] / rates[0])
    np.testing.assert_allclose(arrows.U.reshape(4, 3), slope.T)
    np.testing.assert_allclose(arrows.V, 1.0 * 3.0)
    assert to_hex(arrows.get_facecolor()[0]) == "#ffffff"
    assert to_hex(arrows.get_edgecolor()[0]) == "#000000"
    # A curve: its tangents are tangents on the logarithmic axis.
    ax = plot.sweep(data, "rewards", {"action_cost": 0.0}, gradient={"agent_rate": 3.0 / rates})
    assert ax.get_xscale() == "log"
    thick = [line for line in ax.get_lines() if line.get_linewidth() == 4]
    for line in thick:
        assert np.ptp(line.get_ydata()) / np.ptp(np.log(line.get_xdata())) == pytest.approx(3.0)
    linear = data.assign_coords(action_cost=odd - 1)  # zero has no logarithm
    assert plot.sweep(linear, "rewards", {"agent_rate": 5e-5}).get_xscale() == "linear"


@pytest.mark.parametrize("name", ["agent_x", "state_x", "action_x", "time_x", "set_x", "$x$"])
def test_any_name_may_be_swept(name):
    data = swept().rename(x=name)
    ax = plot.sweep(data, "steps", {name: 1.0})
    assert ax.get_title() == f"{name} 1".replace("$", r"\$")
    ax = plot.sweep(data, "steps", {"y": 20.0})
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), X)
    assert ax.get_xlabel() == name.replace("$", r"\$")


@pytest.mark.parametrize(
    ("variable", "options", "message"),
    [
        ("policy", {}, "'policy' is not a variable; those are rewards, steps"),
        ("steps", {"at": {"z": 0}}, "'z' is not a dimension of steps; those are x, y"),
        ("rewards", {}, "found x, y, agent: fix others with at"),
        ("steps", {"at": {"x": 0.0, "y": 20.0}}, "found none"),
        ("steps", {"at": {"y": 10.0}}, r"at: y must be one of 0, 20, 30; found 10\.0"),
        ("steps", {"gradient": {"x": np.zeros((4, 3))}}, "must hold the derivative by y"),
        ("steps", {"gradient": {"x": np.zeros(4)}}, r"derivative by x must have shape \(4, 3\)"),
    ],
)
def test_sweeps_that_cannot_be_drawn(variable, options, message):
    with pytest.raises(ValueError, match=message):
        plot.sweep(swept(), variable, **options)


def found():
    """Derivatives that are known, of two agents with one state and two actions each."""
    learner = ex.QLearning(0.1, 0.0, ex.EpsilonSoftmax(0.3))
    payoffs = (np.eye(2), np.eye(2))
    wrapped = ex.WrappedGame(ex.games.repeated(payoffs, memory=0), [learner] * 2)
    ts = jnp.array([0.0, 5.0])
    table = jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    by = {"rate": jnp.array([[[0.0, 0.0]], [[-6.0, 1.0]]]), "value": jnp.zeros((2, 1, 2, 2))}
    by["value"] = by["value"].at[1, 0, 0].set(jnp.array([0.5, 2.0]))
    derivatives = (by, {name: 10 * leaf for name, leaf in by.items()})
    return ex.Sensitivities(
        wrapped=wrapped,
        ts=ts,
        params=(table, table),
        derivatives=derivatives,
        stats={},
        result=ex.RESULTS.successful,
        end_time=ts[-1],
    )


def bars(ax):
    names = [label.get_text() for label in ax.get_yticklabels()]
    return dict(zip(names, (patch.get_width() for patch in ax.patches), strict=True))


def test_bars_are_sorted_derivatives():
    ax = plot.sensitivities(found(), (0, 0, 0))
    assert list(bars(ax).items()) == [("value[0]", 0.5), ("value[1]", 2.0), ("rate", -6.0)]
    assert len({to_hex(patch.get_facecolor()) for patch in ax.patches}) == 2
    assert ax.get_title() == "agent 0, $Q$(0), t = 5"
    assert ax.get_xlabel() == "derivative"
    assert bars(plot.sensitivities(found(), 2))["rate"] == -60.0
    assert set(bars(plot.sensitivities(found(), 2, time=0.0)).values()) == {0.0}


def test_bars_of_an_observable_and_elasticities():
    def square(params):
        return params[0][0, 0] ** 2 + params[1][0, 1]

    # 2 * 3 * (-6) + 10 * 1, and 2 * 3 * (0.5, 2.0) + 10 * 0.
    expected = {"rate": -26.0, "value[0]": 3.0, "value[1]": 12.0}
    ax = plot.sensitivities(found(), square)
    assert bars(ax) == pytest.approx(expected)
    assert ax.get_title() == "square, t = 5"
    theta = {"rate": 0.5, "value": np.array([2.0, 1.0])}
    ax = plot.sensitivities(found(), square, theta=theta)
    # The observable is 3^2 + 4.
    expected = {"rate": -1.0, "value[0]": 6 / 13, "value[1]": 12 / 13}
    assert bars(ax) == pytest.approx(expected)
    assert ax.get_xlabel() == "elasticity"


@pytest.mark.parametrize(
    ("of", "options", "message"),
    [
        (4, {}, "a coordinate must be 0 to 3, or .*; found 4"),
        (0, {"time": 3.0}, "time must be one of the report times"),
        (0, {"theta": {"rate": 0.5}}, "theta must have 3 entries; found 1"),
        (
            lambda params: params[0],
            {},
            r"of must return one number; found an array of shape \(1, 2\)",
        ),
        (lambda params: 0 * params[0][0, 0], {"theta": np.ones(3)}, "observable is zero"),
    ],
)
def test_bars_that_cannot_be_drawn(of, options, message):
    with pytest.raises(ValueError, match=message):
        plot.sensitivities(found(), of, **options)


def test_responses_to_a_deviation():
    game = ex.games.symmetric()
    shift = np.array([[0, 1, 1, 0]] * 2)
    found = ex.outcomes.deviation_response(
        game, (shift, shift), 1, np.array([1, 0]), 0, before=1, after=3
    )
    ax = plot.deviation_response(found, [2.0, 4.0], deviating=1)
    _, first, second = ax.get_lines()
    np.testing.assert_array_equal(first.get_xdata(), [-1, 0, 1, 2])
    # One of two runs deviates for a step; both defect once, then it is forgotten.
    np.testing.assert_array_equal(first.get_ydata(), [2, 2, 3, 2])
    np.testing.assert_array_equal(second.get_ydata(), [2, 3, 3, 2])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "agent 0",
        "agent 1 (deviates)",
    ]
    with pytest.raises(ValueError, match=r"one number per action, \[A\] or \[2, A\]"):
        plot.deviation_response(found, [1.0])
    with annotations_off(), pytest.raises(ValueError, match="what deviation_response returns"):
        plot.deviation_response(3)
