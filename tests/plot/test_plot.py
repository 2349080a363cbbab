import functools
import subprocess
import sys

import equinox as eqx
import jax
import matplotlib
import matplotlib.figure
import matplotlib.text
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

import comparisons
import ergodax as ex
import refused
from ergodax import plot
from ergodax.plot.coordinates import parameter_index
from ergodax.plot.png import write_png

BLUE, VERMILLION, BLACK = "#0072b2", "#d55e00", "#000000"


def drawn(ax):
    """The lines of an axes by label."""
    return {line.get_label(): line for line in ax.get_lines()}


def check_table(ax, series, state, names):
    """ODE, mean and band of every action of one state."""
    lines = drawn(ax)
    times = comparisons.TIMES
    assert list(lines) == [f"{n}, {kind}" for n in names for kind in ("ODE", "ensemble mean")]
    for action, name in enumerate(names):
        ode, mean = lines[f"{name}, ODE"], lines[f"{name}, ensemble mean"]
        for line, values in ((ode, series.ode), (mean, series.mean)):
            np.testing.assert_array_equal(line.get_xdata(), times)
            np.testing.assert_array_equal(line.get_ydata(), values[:, state, action])
        assert mean.get_linestyle() == "None"
        assert mean.get_marker() not in ("None", None)
        assert ode.get_color() == mean.get_color()

        reach = 2 * np.sqrt(series.variance[:, state, action])
        corners = ax.collections[action].get_paths()[0].vertices
        assert to_hex(ax.collections[action].get_facecolor()[0]) == ode.get_color().lower()
        middle = series.mean[:, state, action]
        for k, t in enumerate(times):
            found = corners[corners[:, 0] == t, 1]
            assert found.min() == pytest.approx(middle[k] - reach[k], rel=1e-14)
            assert found.max() == pytest.approx(middle[k] + reach[k], rel=1e-14)


@pytest.mark.parametrize(("agent", "state", "name"), [(0, 0, "CC"), (1, 2, "DC")])
def test_parameters(agent, state, name):
    c = comparisons.dilemma()
    for given in (state, name):
        ax = plot.parameters(c, agent, given)
        check_table(ax, c.parameter_series[agent], state, "CD")
        assert ax.get_title() == f"agent {agent}, state {name}"
        assert ax.get_xlabel() == "time (unscaled steps)"
        assert ax.get_ylabel() == "$Q(s, a)$"


def test_policies():
    c = comparisons.dilemma()
    ax = plot.policies(c, 1, "DD")
    check_table(ax, c.policy_series[1], 3, "CD")
    assert ax.get_ylabel() == r"$\pi(a \mid s)$"
    assert ax.get_ylim() == pytest.approx((-0.04, 1.04))


def test_many_small_chances_fill_the_axes():
    c = comparisons.dilemma()

    def chances(c):
        return c.policies[1], c.simulation.mean[1][1], c.simulation.variance[1][1]

    ode, mean, variance = chances(c)
    small = eqx.tree_at(chances, c, (ode / 10, mean / 10, variance / 100))
    highest = max(ode.max(), (mean + 2 * np.sqrt(variance)).max()) / 10
    assert plot.policies(small, 1, "DD").get_ylim()[1] == pytest.approx(1.04 * 1.1 * highest)


def test_an_ensemble_far_above_the_ode_is_not_cut_off():
    c = comparisons.dilemma()
    low = eqx.tree_at(lambda c: c.policies[1], c, c.policies[1] / 10)
    assert plot.policies(low, 1, "DD").get_ylim()[1] > c.simulation.mean[1][1].max()


@pytest.mark.slow
def test_the_actor_of_an_actor_critic():
    c = comparisons.market()
    series = c.parameter_series[0]
    assert series.name == "theta"
    ax = plot.parameters(c, 0, "bust")
    check_table(ax, series, 1, ["low", "mid", "high"])
    assert ax.get_ylabel() == "theta"


def test_actions_differ_in_colour_line_style_and_marker():
    lines = drawn(plot.parameters(comparisons.market(), 0, 0))
    names = ("low", "mid", "high")
    assert [lines[f"{n}, ODE"].get_color().lower() for n in names] == [BLUE, VERMILLION, "#009e73"]
    assert len({lines[f"{n}, ODE"].get_linestyle() for n in names}) == 3
    assert len({lines[f"{n}, ensemble mean"].get_marker() for n in names}) == 3


def test_state_distribution():
    c = comparisons.dilemma()
    ax = plot.state_distribution(c)
    lines = drawn(ax)
    assert len(lines) == 8
    for state, name in enumerate(("CC", "CD", "DC", "DD")):
        ode, simulated = lines[f"{name}, ODE"], lines[f"{name}, simulated"]
        np.testing.assert_array_equal(ode.get_xdata(), comparisons.TIMES)
        np.testing.assert_array_equal(ode.get_ydata(), c.solution.state_distribution[:, state])
        np.testing.assert_array_equal(simulated.get_xdata(), [2.5, 7.5, 12.5, 17.5])
        np.testing.assert_array_equal(
            simulated.get_ydata(), c.simulation.state_frequency[1:, state]
        )
        assert max(ode.get_ydata().max(), simulated.get_ydata().max()) < ax.get_ylim()[1]
    assert len({line.get_color() for line in lines.values()}) == 4
    assert ax.get_ylim()[0] == 0


def test_one_state_is_black():
    lines = drawn(plot.state_distribution(comparisons.dilemma(), "DC"))
    assert list(lines) == ["DC, ODE", "DC, simulated"]
    assert {line.get_color() for line in lines.values()} == {BLACK}


def test_axes_given_are_used():
    ax = matplotlib.figure.Figure().subplots()
    c = comparisons.dilemma()
    assert plot.parameters(c, 0, 0, ax=ax) is ax
    assert plot.policies(c, 0, 0, ax=ax) is ax
    assert plot.state_distribution(c, 0, ax=ax) is ax
    assert len(ax.get_lines()) == 4 + 4 + 2


def grid(figure):
    rows = figure.axes[0].get_gridspec().nrows
    return np.array(figure.axes).reshape(rows, -1)


def test_comparison_figure():
    c = comparisons.dilemma()
    axes = grid(plot.comparison(c))
    assert axes.shape == (5, 4)
    for column in range(4):
        check_table(axes[0, column], c.parameter_series[0], column, "CD")
        check_table(axes[1, column], c.policy_series[0], column, "CD")
        check_table(axes[2, column], c.parameter_series[1], column, "CD")
        check_table(axes[3, column], c.policy_series[1], column, "CD")
        name = ("CC", "CD", "DC", "DD")[column]
        assert list(drawn(axes[4, column])) == [f"{name}, ODE", f"{name}, simulated"]
    titles = [ax.get_title() for ax in axes.ravel()]
    assert titles == ["state CC", "state CD", "state DC", "state DD"] + 16 * [""]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == [
        "agent 0\n$Q(s, a)$",
        "agent 0\n$\\pi(a \\mid s)$",
        "agent 1\n$Q(s, a)$",
        "agent 1\n$\\pi(a \\mid s)$",
        "share of steps",
    ]
    assert {ax.get_ylabel() for ax in axes[:, 1:].ravel()} == {""}
    for row in axes:
        assert len({ax.get_ylim() for ax in row}) == 1
    assert len({ax.get_xlim() for ax in axes.ravel()}) == 1
    assert axes[0, 0].figure.get_supxlabel() == "time (unscaled steps)"


@pytest.mark.slow
def test_comparison_figure_without_tables():
    figure = plot.comparison(comparisons.untabulated())
    assert [ax.get_ylabel() for ax in grid(figure)[:, 0]] == [
        "agent 0\n$\\pi(a \\mid s)$",
        "agent 1\n$\\pi(a \\mid s)$",
    ]  # one state alone has no share worth drawing


@pytest.mark.parametrize(
    ("make", "columns", "labels"),
    [
        ("dilemma", 3, ["mean of 64 runs at scale 10", "action C", "action D"]),
        (
            "market",
            1,
            ["mean of 32 runs at scale 5"]
            + [f"agent 0, action {name}" for name in ("low", "mid", "high")]
            + [f"agent 1, action {name}" for name in ("in", "out")],
        ),
    ],
)
def test_one_legend(make, columns, labels):
    figure = plot.comparison(getattr(comparisons, make)())
    (legend,) = figure.legends
    assert not any(ax.get_legend() for ax in figure.axes)
    found = [text.get_text() for text in legend.get_texts()]
    theory = "$x + b/N \\pm 2 (C/N)^{1/2}$, theory"
    wanted = ["averaged ODE", labels[0], "mean ± 2 standard deviations", theory, *labels[1:]]
    assert found == [label for k in range(columns) for label in wanted[k::columns]]


def boxes(figure):
    """Where the axes with all their labels, and the legend, are drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    legend = figure.legends[0].get_window_extent(renderer)
    return [ax.get_tightbbox(renderer) for ax in figure.axes], legend


@pytest.mark.parametrize("make", ["dilemma", "market", "untabulated"])
def test_nothing_overlaps(make):
    figure = plot.comparison(getattr(comparisons, make)())
    axes, legend = boxes(figure)
    everything = [*axes, legend]
    for k, box in enumerate(everything):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in everything[k + 1 :])


def test_the_legend_stands_above_wide_figures_and_beside_narrow_ones():
    axes, legend = boxes(plot.comparison(comparisons.dilemma()))
    assert legend.y0 > max(box.y1 for box in axes)
    axes, legend = boxes(plot.comparison(comparisons.market()))
    assert legend.x0 > max(box.x1 for box in axes)


def test_states_of_the_figure(monkeypatch):
    c = comparisons.dilemma()
    titles = [ax.get_title() for ax in grid(plot.comparison(c, states=["DD", 1]))[0]]
    assert titles == ["state DD", "state CD"]
    # With too many states: the most frequent at the end, in the game's order.
    monkeypatch.setattr(plot.time_series, "_MOST_STATES", 2)
    frequent = np.sort(np.argsort(c.solution.state_distribution[-1])[-2:])
    titles = [ax.get_title() for ax in grid(plot.comparison(c))[0]]
    assert titles == [f"state {('CC', 'CD', 'DC', 'DD')[s]}" for s in frequent]


@functools.cache
def odd_game():
    """One state, actions that matplotlib reads in its own way, times that grow, one wide band."""
    game = ex.games.repeated(
        (np.eye(2) * 9, np.eye(2) * 9), memory=0, action_names=[["$1.00", "_$2$"]] * 2
    )
    learners = [ex.QLearning(0.9, 0.0, ex.EpsilonSoftmax(1.0, 0.02))] * 2
    wrapped = ex.WrappedGame(game, learners)
    ts = [0.0, 1.0, 4.0, 16.0, 64.0]
    return ex.compare(wrapped, wrapped.init(), ts, runs=16, key=jax.random.key(0))


def texts(figure):
    """All that is written in a figure, as it is drawn."""
    FigureCanvasAgg(figure).draw()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


@pytest.mark.slow
def test_names_are_drawn_as_they_are():
    for figure in (
        plot.comparison(odd_game()),
        plot.policies(odd_game(), 0, 0).figure,
        plot.parameters(odd_game(), 0, 0).figure,
    ):
        found = texts(figure)
        assert any(r"\$1.00" in text for text in found)
        assert any(r"_\$2\$" in text for text in found)
        assert not any("$1.00" in text.replace(r"\$", "") for text in found)


@pytest.mark.slow
def test_one_state_has_no_name_and_the_figure_no_blank_half():
    figure = plot.comparison(odd_game())
    assert [ax.get_title() for ax in figure.axes] == [""] * 4
    axes, legend = boxes(figure)
    assert legend.y0 > max(box.y1 for box in axes)
    assert min(box.width for box in axes) > 0.9 * figure.bbox.width
    everything = [*axes, legend]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in everything)
    assert not any(a.overlaps(b) for k, a in enumerate(everything) for b in everything[k + 1 :])


def test_times_that_grow_are_on_a_logarithmic_axis():
    for ax in (plot.policies(odd_game(), 0, 0), plot.state_distribution(odd_game())):
        assert ax.get_xscale() == "symlog"
    assert plot.policies(comparisons.dilemma(), 0, 0).get_xscale() == "linear"
    later = odd_game().solution
    later = eqx.tree_at(
        lambda s: (s.ts, s.params),
        later,
        (later.ts[1:], jax.tree.map(lambda leaf: leaf[1:], later.params)),
    )
    assert plot.parameters(later, 0, 0).get_xscale() == "log"


def test_bands_of_policies_are_chances():
    series = odd_game().policy_series[0]
    reach = series.mean + 2 * np.sqrt(series.variance)
    assert reach.max() > 1
    ax = plot.policies(odd_game(), 0, 0)
    for band in ax.collections:
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() >= 0
        assert heights.max() <= 1
    assert max(band.get_paths()[0].vertices[:, 1].max() for band in ax.collections) == 1


def test_files_are_those_of_matplotlib_and_nothing_global_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    written, saved = (plot.comparison(comparisons.dilemma()) for _ in range(2))
    write_png(written, tmp_path / "a.png")
    saved.savefig(tmp_path / "b.png", dpi=150)
    places = [[ax.get_position().extents for ax in figure.axes] for figure in (written, saved)]
    np.testing.assert_allclose(*places, atol=0.01)
    # Where axes stand is settled by then.
    written.savefig(tmp_path / "c.png", dpi=150)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda c: plot.parameters(c, 2, 0),
            "the number of an agent, 0 to 1; found 2",
        ),
        (
            lambda c: plot.policies(c, -1, 0),
            "the number of an agent, 0 to 1; found -1",
        ),
        (lambda c: plot.policies(c, 0, 4), "state 4 is not a state; the states are CC, CD, DC, DD"),
        (lambda c: plot.state_distribution(c, "XY"), "state 'XY' is not a state"),
        (lambda c: plot.comparison(c, states=[-1]), "state -1 is not a state"),
    ],
)
def test_what_is_not_there(draw, message):
    with pytest.raises(ValueError, match=message):
        draw(comparisons.dilemma())


def test_parameters_without_a_table():
    with pytest.raises(ValueError, match="agent 1 hold no table of states and actions"):
        plot.parameters(comparisons.untabulated(), 1, 0)


def test_importing_the_package_is_light():
    code = """if True:
        import sys, ergodax
        from jax._src import xla_bridge
        assert callable(ergodax.compare) and callable(ergodax.plot.comparison)
        print(sorted({"matplotlib", "xarray"} & set(sys.modules)))
        print(xla_bridge.backends_are_initialized())
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", "False"]
    assert ex.plot is plot


def test_tables_of_agents_that_see_less_are_drawn_in_every_state():
    game, q = ex.games.stag_hunt(), ex.QLearning(0.1, 0.5)
    blind = ex.Observing(ex.QLearning(0.1, 0.5), [0, 1, 1, 0])
    wrapped = ex.WrappedGame(game, [blind, q])
    values = np.arange(8.0).reshape(2, 2, 2), np.zeros((2, 4, 2))
    solution = refused.blank(ex.Solution, wrapped=wrapped, ts=np.array([0.0, 1.0]), params=values)
    for state, row in enumerate(blind.observation):
        lines = plot.parameters(solution, 0, state).get_lines()
        shown = np.transpose([line.get_ydata() for line in lines])
        np.testing.assert_array_equal(shown, values[0][:, row])
    assert parameter_index(wrapped, tuple(v[0] for v in values), "coordinates", (0, 2, 1)) == 3
