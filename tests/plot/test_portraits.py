"""What is drawn of flows and basins, and over time of results other than comparisons."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

import ergodax as ex
from ergodax import plot
from ergodax.plot import portraits
from ergodax.plot.embedding import with_policy

TIMES = np.linspace(0.0, 40.0, 5)
LEFT = ((0, 0, "L"), (1, 0, "L"))


def coordination(memory=0):
    payoffs = (np.eye(2), np.eye(2))
    game = ex.games.repeated(payoffs, memory=memory, action_names=[["L", "R"]] * 2)
    learner = ex.QLearning(0.1, 0.0, ex.EpsilonSoftmax(0.3), [0.6, 0.4])
    return ex.WrappedGame(game, [learner, learner])


@functools.cache
def solution():
    wrapped = coordination(1)
    return ex.solve(wrapped, wrapped.init(), TIMES)


@functools.cache
def path():
    start = (jnp.array([[0.75, 0.2]]), jnp.array([[0.1, 0.55]]))
    return ex.solve(coordination(), start, TIMES)


@functools.cache
def simulation(observed):
    wrapped = coordination()
    observe = {"observe": wrapped.policies} if observed == "policies" else {}
    return ex.simulate(
        wrapped,
        wrapped.init(),
        TIMES,
        scale=5,
        runs=6,
        key=jax.random.key(0),
        keep_runs=True,
        **observe,
    )


@functools.cache
def triples():
    """Unequal action counts; an actor-critic beside a Q-learner with uniform play mixed in."""
    rng = np.random.default_rng(3)
    game = ex.MarkovGame.from_dense(
        rng.dirichlet(np.ones(2), size=(2, 3, 4)),
        rng.normal(size=(2, 3, 4, 2)),
        state_names=["up", "down"],
        action_names=[["x", "y", "z"], list("abcd")],
    )
    explore = ex.EpsilonSoftmax(0.4, 0.2)
    return ex.WrappedGame(game, [ex.QLearning(0.1, 0.5, explore), ex.ActorCritic(0.1, 0.2)])


def drawn(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def chances(params, agent, state=0):
    """Softmax at temperature 0.3 without JAX, as `coordination` plays."""
    values = np.exp(np.asarray(params[agent])[..., state, :] / 0.3)
    return values / values.sum(axis=-1, keepdims=True)


# Over time


def test_a_solution_is_a_line_without_band():
    flow = solution()
    lines = drawn(plot.parameters(flow, 1, "LR"))
    assert list(lines) == ["L, ODE", "R, ODE"]
    np.testing.assert_array_equal(lines["R, ODE"].get_ydata(), flow.params[1][:, 1, 1])
    ax = plot.policies(flow, 1, "LR")
    assert not ax.collections
    expected = chances(flow.params, 1, state=1)
    np.testing.assert_allclose(drawn(ax)["L, ODE"].get_ydata(), expected[:, 0], rtol=1e-12)
    assert entries(ax) == ["L", "R"]
    lines = drawn(plot.state_distribution(flow))
    assert list(lines) == [f"{name}, ODE" for name in ("LL", "LR", "RL", "RR")]
    np.testing.assert_array_equal(lines["RR, ODE"].get_ydata(), flow.state_distribution[:, 3])


class Propensities(ex.Sarsa):
    """A learner whose table has a letter of its own."""

    symbol = "q"


def test_the_letter_on_axes_is_the_learners():
    learners = tuple(Propensities(*own) for own in [(0.1, 0.0)] * 2)
    flow = eqx.tree_at(lambda flow: flow.wrapped.learners, solution(), learners)
    assert plot.parameters(flow, 1, "LR").get_ylabel() == "$q(s, a)$"
    assert plot.parameters(solution(), 1, "LR").get_ylabel() == "$Q(s, a)$"


@pytest.mark.slow
@pytest.mark.parametrize("observed", ["policies", "parameters"])
def test_policies_of_a_simulation(observed):
    simulated = simulation(observed)
    ax = plot.policies(simulated, 0, 0, sample_runs=2)
    runs = np.asarray(simulation("policies").values[0])[:, :, 0, 0]
    mean = drawn(ax)["L, ensemble mean"]
    np.testing.assert_allclose(mean.get_ydata(), runs.mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(mean.get_xdata(), TIMES)
    assert mean.get_marker() == "o"
    corners = ax.collections[0].get_paths()[0].vertices
    reach = runs.mean(axis=0) + 2 * runs.std(axis=0, ddof=1)
    assert corners[corners[:, 0] == TIMES[-1], 1].max() == pytest.approx(reach[-1], rel=1e-6)
    # Two runs of either action, thin.
    thin = [line for line in ax.get_lines() if line.get_linewidth() < 0.6]
    assert len(thin) == 4
    np.testing.assert_allclose(thin[1].get_ydata(), runs[1], rtol=1e-6)
    assert ax.get_title() == "agent 0"  # the only state needs no name


def test_parameters_of_a_simulation():
    simulated = simulation("parameters")
    lines = drawn(plot.parameters(simulated, 1, 0))
    np.testing.assert_array_equal(lines["R, ensemble mean"].get_ydata(), simulated.mean[1][:, 0, 1])
    with pytest.raises(ValueError, match="did not observe parameters"):
        plot.parameters(simulation("policies"), 1, 0)
    with pytest.raises(ValueError, match="sample_runs must be 0 to 6, the runs kept; found 7"):
        plot.parameters(simulated, 1, 0, sample_runs=7)
    with pytest.raises(ValueError, match="sample_runs must be 0 to 0"):
        plot.parameters(path(), 1, 0, sample_runs=1)


@pytest.mark.slow
def test_every_run_its_own_game():
    rates = jnp.array([0.05, 0.1, 0.2])

    def build(rate):
        learner = ex.QLearning(rate, 0.0, ex.EpsilonSoftmax(0.3), [0.6, 0.4])
        return ex.WrappedGame(coordination().game, [learner, learner])

    start = coordination().init()
    simulated = ex.simulate(
        jax.vmap(build)(rates), start, TIMES, key=jax.random.key(0), keep_runs=True
    )
    found = drawn(plot.policies(simulated, 0, 0))["L, ensemble mean"].get_ydata()
    expected = chances(simulated.values, 0)[..., 0].mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_fluctuations_have_a_band_at_a_scale():
    wrapped = ex.WrappedGame(
        coordination().game, [ex.Sarsa(0.1, 0.0, ex.EpsilonSoftmax(0.3), [0.6, 0.4])] * 2
    )
    found = ex.fluctuations(wrapped, wrapped.init(), TIMES)
    for scale in (10, 40):
        ax = plot.parameters(found, 0, 0, scale=scale)
        np.testing.assert_allclose(
            drawn(ax)["R, ODE"].get_ydata(), found.params[0][:, 0, 1], rtol=1e-12
        )
        corners = ax.collections[1].get_paths()[0].vertices
        ends = corners[corners[:, 0] == TIMES[-1], 1]
        deviation = np.sqrt(found.covariance[-1, 1, 1] / scale)
        assert np.ptp(ends) == pytest.approx(4 * float(deviation), rel=1e-9)
    with pytest.raises(ValueError, match="give scale"):
        plot.parameters(found, 0, 0)
    with pytest.raises(ValueError, match="a Solution has its own scale, or none; found scale 3"):
        plot.policies(path(), 0, 0, scale=3)


# The flow


class Recording(matplotlib.axes.Axes):
    """Axes that remember the field whose streamlines they draw."""

    def streamplot(self, x, y, u, v, **style):
        self.field = {"x": x, "y": y, "u": u, "v": v}
        return super().streamplot(x, y, u, v, **style)


def recording():
    return matplotlib.figure.Figure().add_subplot(axes_class=Recording)


@pytest.mark.slow
def test_streamlines_are_those_of_the_drift_on_the_slice():
    wrapped, at = triples(), triples().init()
    limits = ((-1.0, 1.0), (0.0, 2.0))
    coordinates = ((0, "down", "y"), 6 + 8 + 1)  # the critic's value of the second state
    ax = plot.phase_portrait(wrapped, coordinates, limits=limits, ax=recording())
    given = ax.field
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("agent 0, $Q$(down, y)", "agent 1, V[1]")
    assert (ax.get_xlim(), ax.get_ylim()) == limits
    j, i = 3, 20
    assert -1 < given["x"][0] < given["x"][i] < 1
    moved = (at[0].at[1, 1].set(given["x"][i]), at[1]._replace(V=at[1].V.at[1].set(given["y"][j])))
    drift = ex.drift(wrapped, moved)
    assert given["u"][j, i] == pytest.approx(float(drift[0][1, 1]), rel=1e-9)
    assert given["v"][j, i] == pytest.approx(float(drift[1].V[1]), rel=1e-9)


@pytest.mark.slow
def test_velocity_of_policies_on_the_slice():
    flow = path()
    ax = plot.phase_portrait(flow, LEFT, policy=True, ax=recording())
    given = ax.field
    assert (ax.get_xlim(), ax.get_ylim()) == ((0.0, 1.0), (0.0, 1.0))
    assert ax.get_xlabel() == r"agent 0, $\pi$(L)"
    j, i = 5, 17
    p, q = given["x"][i], given["y"][j]
    # By hand: without discount, F(Q) = 0.1 pi(a) (chance of a match - Q); the mean of Q is kept.
    for own, other, means, found in (
        (p, q, flow.params[0][-1], given["u"]),
        (q, p, flow.params[1][-1], given["v"]),
    ):
        logit = 0.3 * np.log(own / (1 - own))
        values = float(np.mean(means)) + np.array([logit, -logit]) / 2
        drift = 0.1 * np.array([own, 1 - own]) * (np.array([other, 1 - other]) - values)
        velocity = own * (1 - own) * (drift[0] - drift[1]) / 0.3
        assert found[j, i] == pytest.approx(velocity, rel=1e-9)


@pytest.mark.slow
def test_policies_that_cannot_be_are_left_out():
    coordinates = ((0, 0, "x"), (0, 0, "z"))
    given = plot.phase_portrait(triples(), coordinates, policy=True, ax=recording()).field
    x, y = np.meshgrid(given["x"], given["y"])
    least = 0.2 / 3
    possible = (x > least) & (y > least) & (x + y < 1 - least)
    np.testing.assert_array_equal(~given["u"].mask, possible)
    assert 0 < possible.sum() < possible.size


@pytest.mark.slow
def test_paths_runs_and_rest_points_over_the_flow():
    flow, kept = path(), simulation("parameters")
    wrapped = coordination()
    guesses = tuple(jnp.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.25, 0.25]]]) for _ in range(2))
    found = ex.rest_points(wrapped, guesses)
    assert [rest.stability for rest in found] == ["stable", "stable", "unstable"]
    ax = plot.phase_portrait(flow, LEFT, policy=True, rest_points=found, runs=kept)
    lines = drawn(ax)
    np.testing.assert_allclose(
        lines["averaged ODE"].get_xydata(),
        np.stack([chances(flow.params, k)[:, 0] for k in (0, 1)], axis=1),
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        lines["6 runs at scale 5"].get_xdata(), chances(kept.values, 0)[0, :, 0], rtol=1e-5
    )
    stable, unstable = lines["stable rest point"], lines["unstable rest point"]
    assert to_hex(stable.get_markerfacecolor()) == "#000000"
    assert to_hex(unstable.get_markerfacecolor()) == "#ffffff"
    np.testing.assert_allclose(unstable.get_xydata(), [[0.5, 0.5]], atol=1e-9)
    assert entries(ax) == [
        "6 runs at scale 5",
        "averaged ODE",
        "stable rest point",
        "unstable rest point",
    ]
    assert len(ax.collections) == 1  # streamlines, beside their arrowheads
    assert ax.get_title() == "slice through the path's end"
    assert ax.get_box_aspect() == 1
    check_apart(ax)
    given = plot.phase_portrait(wrapped, LEFT, policy=True, at=wrapped.init())
    assert given.get_title() == "slice through the given point"
    assert given.get_legend() is None


def check_apart(ax):
    """Legend, title and labels do not cover each other, and lie in the figure."""
    FigureCanvasAgg(ax.figure).draw()
    renderer = ax.figure.canvas.get_renderer()
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label]
    found = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    found += [ax.get_legend().get_window_extent(renderer), ax.get_window_extent(renderer)]
    for k, box in enumerate(found):
        assert not any(box.overlaps(other) for other in found[k + 1 :])
        assert ax.figure.bbox.x0 <= box.x0 < box.x1 <= ax.figure.bbox.x1
        assert ax.figure.bbox.y0 <= box.y0 < box.y1 <= ax.figure.bbox.y1


def test_limits_hold_everything_drawn():
    flow = path()
    ax = plot.phase_portrait(flow, (0, 1))
    for values, (low, high) in (
        (flow.params[0][:, 0, 0], ax.get_xlim()),
        (flow.params[0][:, 0, 1], ax.get_ylim()),
    ):
        margin = 0.08 * float(np.ptp(values))
        assert low == pytest.approx(float(values.min()) - margin)
        assert high == pytest.approx(float(values.max()) + margin)
    own = matplotlib.figure.Figure().subplots()
    assert plot.phase_portrait(flow, (0, 1), ax=own) is own
    with pytest.raises(ValueError, match="give limits"):
        plot.phase_portrait(coordination(), (0, 1))


@pytest.mark.slow
def test_simplex():
    wrapped = triples()
    flow = ex.solve(wrapped, wrapped.init(), TIMES)
    ax = plot.simplex(flow, 0, "down")
    assert [text.get_text() for text in ax.texts] == ["x", "y", "z"]
    corners = [text.xy for text in ax.texts]
    np.testing.assert_allclose(corners, [(0, 0), (1, 0), (0.5, np.sqrt(0.75))])
    assert ax.get_title() == "agent 0, state down"
    policy = np.asarray(jax.vmap(wrapped.policies)(flow.params)[0][:, 1])
    np.testing.assert_allclose(drawn(ax)["averaged ODE"].get_xydata(), policy @ corners, rtol=1e-9)

    arrows = ax.collections[0]
    feet = np.asarray(arrows.get_offsets())
    # All where the learner can be: every probability is above its least.
    weights = np.linalg.solve(
        np.vstack([np.transpose(corners), np.ones(3)]), np.vstack([feet.T, np.ones(len(feet))])
    )
    assert weights.min() > 0
    # The arrow in the middle points where a short step of the drift leads.
    middle = np.argmin(np.linalg.norm(feet - np.mean(corners, axis=0), axis=1))
    heading = np.array([arrows.U[middle], arrows.V[middle]])
    centre = feet[middle] + heading / 2
    shares = np.linalg.solve(np.vstack([np.transpose(corners), np.ones(3)]), [*centre, 1])
    at = jax.tree.map(lambda leaf: leaf[-1], flow.params)
    row = 0.4 * np.log((shares - 0.2 / 3) / 0.8)
    at = (at[0].at[1].set(row - row.mean() + at[0][1].mean()), at[1])
    step = jax.tree.map(lambda x, f: x + 1e-5 * f, at, ex.drift(wrapped, at))
    before, after = (np.asarray(wrapped.policies(params)[0][1]) for params in (at, step))
    np.testing.assert_allclose(before, shares, rtol=1e-9)
    moved = (after - before) @ corners
    np.testing.assert_allclose(
        heading / np.linalg.norm(heading), moved / np.linalg.norm(moved), atol=1e-4
    )


def test_embedding_of_a_learner_of_ones_own():
    class Propensities(ex.QLearning):
        """Plays in proportion to its positive values."""

        def policy(self, params, state):
            return params[state] / params[state].sum()

    learner = Propensities(0.1, 0.0, ex.EpsilonGreedy(0.1), 1.0)
    wrapped = ex.WrappedGame(coordination().game, [learner, learner])
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), wrapped.init())
    wanted = np.array([[0.3, 0.7], [0.9, 0.1]])

    def embed(own, state, probabilities):
        return own.at[state].set(probabilities * own[state].sum())

    found = with_policy(wrapped, params, 1, 0, wanted, embed)
    np.testing.assert_allclose(found[1][:, 0], 2 * wanted, rtol=1e-12)
    np.testing.assert_array_equal(found[0], params[0])
    with pytest.raises(ValueError, match="is not a softmax of a table of states and actions"):
        with_policy(wrapped, params, 1, 0, wanted, None)
    with pytest.raises(ValueError, match="at the parameters of embed the policy in state - is"):
        with_policy(wrapped, params, 1, 0, wanted, lambda own, state, probabilities: own)


@pytest.mark.slow
def test_basins_and_their_shares():
    wrapped = coordination()
    rng = np.random.default_rng(0)
    starts = tuple(jnp.asarray(rng.uniform(size=(12, 1, 2))) for _ in range(2))
    found = ex.basins(wrapped, starts, 20_000.0)
    ax = plot.basins(found, starts, LEFT, policy=True)
    assert len(found.attractors) == 2
    low, high = found.intervals[0]
    places = [[chances(a.rest.params, k)[0] for k in (0, 1)] for a in found.attractors]
    first = f"stable at ({places[0][0]:.2g}, {places[0][1]:.2g}): {found.shares[0]:.0%}"
    first += f" ({low:.0%} to {high:.0%})"
    assert entries(ax)[0] == first
    assert f"({places[1][0]:.2g}, {places[1][1]:.2g})" in entries(ax)[1] != first
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_box_aspect()) == ((0, 1), (0, 1), 1)
    chosen = found.labels == 0
    np.testing.assert_allclose(
        drawn(ax)[first].get_xydata(),
        np.stack([chances(starts, k)[chosen, 0] for k in (0, 1)], axis=1),
        rtol=1e-9,
    )
    (mark,) = [
        line
        for line in ax.get_lines()
        if line.get_markersize() > 5 and line.get_color() == drawn(ax)[first].get_color()
    ]
    rest = found.attractors[0].rest.params
    np.testing.assert_allclose(
        mark.get_xydata()[0], [chances(rest, k)[0] for k in (0, 1)], rtol=1e-9
    )
    with pytest.raises(ValueError, match="must be the 12 starts of the basins; found 3"):
        plot.basins(found, jax.tree.map(lambda leaf: leaf[:3], starts), LEFT)

    # Two that differ only in what is not shown.
    twice = found.attractors[:1] * 2
    share = np.array([0.5, 0.5])
    interval = np.array([[0.3, 0.7]] * 2)
    same = ex.Basins(wrapped, twice, found.labels, share, interval, starts)
    first, second = entries(plot.basins(same, starts, LEFT, policy=True))
    assert second == first.replace("):", ") #1:", 1)

    # A cycle is closed; starts without an attractor are crosses.
    orbit = (jnp.array([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]]),) * 2
    cycle = ex.Attractor(orbit=orbit, period=3.0, rest=None)
    labels = np.where(np.arange(12) < 3, -1, 0)
    share, interval = np.array([0.75]), np.array([[0.47, 0.91]])
    found = ex.Basins(wrapped, (cycle,), labels, share, interval, starts)
    ax = plot.basins(found, starts, (0, 1))
    assert entries(ax) == ["limit cycle of period 3: 75% (47% to 91%)", "not identified: 25%"]
    closed = [line.get_xydata() for line in ax.get_lines() if line.get_linestyle() == "-"]
    np.testing.assert_array_equal(closed, [[[0, 0], [1, 0], [1, 1], [0, 0]]])
    lost = drawn(ax)["not identified: 25%"]
    np.testing.assert_array_equal(lost.get_xydata(), np.asarray(starts[0])[:3, 0])
    assert lost.get_marker() == "x"


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        ((0, 99), r"a coordinate must be 0 to 15, or \(agent, state, action\); found 99"),
        ((0, 0), "the two coordinates must differ; found 0 twice"),
        ((0, (2, 0, 0)), "agent must be the number of an agent, 0 to 1; found 2"),
        ((0, ("up", 0, 0)), "agent must be the number of an agent, 0 to 1; found 'up'"),
        ((0, (0, 2, 0)), "state 2 is not a state; the states are up, down"),
        ((0, (1, 0, "e")), "action 'e' is not an action of agent 1; the actions of agent 1 are a"),
        ((0, (1, 0)), r"must be \(agent, state, action\); found \(1, 0\)"),
        ((0,), "a plane has two coordinates; found 1"),
    ],
)
def test_coordinates_that_are_not_there(coordinates, message):
    with pytest.raises(ValueError, match=message):
        plot.phase_portrait(triples(), coordinates)


def test_what_has_no_simplex():
    with pytest.raises(ValueError, match="agent 1 must have 3 actions; found 4"):
        plot.simplex(triples(), 1, 0)
    wrapped = triples()
    kept = ex.simulate(wrapped, wrapped.init(), [1.0], key=jax.random.key(0))
    with pytest.raises(ValueError, match="the simulation kept no runs"):
        plot.simplex(wrapped, 0, 0, runs=kept)


def test_lattice_is_inside():
    points = portraits._lattice(5)
    assert len(points) == 6
    np.testing.assert_allclose(points.sum(axis=1), 1)
    assert points.min() > 0
