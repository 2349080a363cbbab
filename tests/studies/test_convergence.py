"""Measured convergence rates, the martingale control variate, and the scale that is required."""

import json

import jax
import numpy as np
import pytest

import ergodax as ex
from ergodax.simulation import job
from ergodax.studies import convergence
from helpers import unflatten

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def example(golden):
    """The paper's example with learning rate 1, and its initial parameters."""
    learners = [ex.QLearning(1.0, 0.9, ex.EpsilonSoftmax(0.5, 0.1)) for _ in range(2)]
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), learners)
    return wrapped, unflatten(wrapped, golden["pd"]["x0"])


def study(example, scales=(64, 256, 1024), runs=1024, t1=8.0, **options):
    options = {"key": jax.random.key(0), "initial_state": 0} | options
    return ex.convergence_study(*example, t1, scales=scales, runs=runs, **options)


@pytest.fixture(scope="module")
def studied(example):
    return study(example)


def test_constants_are_those_of_theory(studied, golden):
    bias = 100 * golden["pd"]["b_t_from_state0"][8]
    np.testing.assert_allclose(studied.bias, bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(studied.weak_theory, 2.6776, atol=5e-5)
    weak, strong, limit = (
        studied.weak_constant,
        studied.strong_constant,
        studied.strong_theory,
    )
    assert abs(weak.value - studied.weak_theory) < 5 * weak.error
    assert weak.error < 0.1
    assert abs(limit.value - 2.46) < 5 * np.hypot(limit.error, 0.01)
    assert abs(strong.value - limit.value) < 5 * np.hypot(strong.error, limit.error)
    assert strong.error < 0.02 * 2.46


def test_control_variate(studied):
    """It takes no mean away, and the standard error at least eight times down at N = 1024."""
    assert studied.plain_error[-1] > 8 * studied.weak_error[-1]
    z = (studied.plain - studied.weak) / np.hypot(studied.plain_error, studied.weak_error)
    assert np.abs(z).max() < 5
    assert (studied.scales * studied.weak_error < 4 / np.sqrt(1024)).all()


near = pytest.mark.filterwarnings("ignore:t1 = 2 is within three standard deviations")


@near
def test_runs_are_those_of_simulate(example):
    """The plain mean at T, from the simulator with the same key."""
    found = study(example, scales=(8, 16, 32), runs=24, t1=2.0, batch_size=16)
    wrapped, start = example
    direction = found.bias / np.linalg.norm(found.bias)
    sim = ex.simulate(
        wrapped, start, [2.0], scale=32, runs=24, key=jax.random.key(0), initial_state=0
    )
    flow = ex.solve(wrapped, start, [2.0], rtol=1e-10, atol=1e-10)
    gap = [np.ravel(m[0] - x[0]) for m, x in zip(sim.mean, flow.params, strict=True)]
    np.testing.assert_allclose(found.plain[2], np.concatenate(gap) @ direction, atol=1e-7)


@near
@pytest.mark.parametrize("blocks", [1, 5])
def test_interrupted_studies_continue(example, tmp_path, monkeypatch, blocks):
    """Three scales of three batches each, of which the first ones are done."""
    path = tmp_path / "study"
    options = dict(scales=(8, 16, 32), runs=160, t1=2.0, batch_size=64)
    whole = study(example, **options)
    run, done = job.Job.run, []

    def interrupted(self):
        for taken in run(self):
            yield taken
            done.append(taken)
            if len(done) == blocks:
                raise KeyboardInterrupt

    monkeypatch.setattr(job.Job, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(example, **options, checkpoint=path)
    continued = study(example, **options, checkpoint=path)
    assert len(done) == 9
    for name in ("weak", "strong", "plain", "weak_error", "strong_error"):
        np.testing.assert_array_equal(getattr(continued, name), getattr(whole, name))
    assert [p.name for p in tmp_path.iterdir()] == ["study"]
    with pytest.raises(ValueError, match="belongs to another"):
        study(example, **options, key=jax.random.key(1), checkpoint=path)
    forged = {"moments": np.zeros((9, 3))}
    monkeypatch.setattr(convergence.Store, "load", lambda self: forged)
    with pytest.raises(ValueError, match="does not hold what was saved for this study"):
        study(example, **options, checkpoint=path)


def test_a_place_that_cannot_be_written_is_refused_at_once(example, tmp_path, monkeypatch):
    def compute(*_, **__):
        raise AssertionError

    monkeypatch.setattr(convergence, "fluctuations", compute)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write in the folder"):
        study(example, scales=(8, 16, 32), runs=64, t1=2.0, checkpoint=tmp_path / "file" / "study")


@near
def test_studies_run_on_the_default_device(example):
    """The numbers do not depend on where and in which batches they are found."""
    options = dict(scales=(8, 16, 32), runs=160, t1=2.0)
    whole = study(example, **options)
    with jax.default_device(jax.devices()[0]):
        found = study(example, **options, batch_size=64)
    np.testing.assert_array_equal(found.weak, whole.weak)
    np.testing.assert_array_equal(found.strong, whole.strong)


def test_lines_without_errors_are_not_fitted():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0])
    for line in (convergence._line(x, y, 0 * y), [convergence._log_slope(x, -y, y)]):
        assert np.isnan(line).all()
    slope, intercept = convergence._line(x, y, np.array([0.1, 0.2, 0.1]))
    np.testing.assert_allclose([slope.value, intercept.value], [2, 1], rtol=1e-12)
    design = np.stack([x, np.ones(3)], axis=1) / np.array([[0.1], [0.2], [0.1]])
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose([slope.error, intercept.error], errors, rtol=1e-12)


def test_sarsa_has_a_control_variate_too():
    """Core states with actions, events with next actions."""
    learners = [ex.Sarsa(1.0, 0.9, ex.EpsilonSoftmax(0.5, 0.1))] * 2
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), learners)
    found = ex.convergence_study(
        wrapped, wrapped.init(), 2.0, scales=(32, 64, 128), runs=2048, key=jax.random.key(0)
    )
    assert found.plain_error[-1] > 3 * found.weak_error[-1]
    z = (found.plain - found.weak) / np.hypot(found.plain_error, found.weak_error)
    assert np.abs(z).max() < 5
    misfit = found.weak_constant.value - found.weak_theory
    assert abs(misfit) < 5 * found.weak_constant.error


def test_table_data_and_figure(studied, tmp_path):
    scales = ", ".join(f"{scale:g}" for scale in studied.scales)
    assert repr(studied) == (
        f"ConvergenceStudy({studied.runs} runs at scales {scales}, up to t = {studied.t1:g})"
    )
    text = str(studied)
    for words in ("sqrt(N) strong", "theory", str(studied.weak_constant), "2.6776"):
        assert words in text
    data = studied.to_xarray()
    np.testing.assert_array_equal(data.weak, studied.weak)
    assert data.attrs["weak_theory"] == studied.weak_theory
    json.dumps(data.attrs)
    ax = ex.plot.convergence(studied)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(drawn["$|b| / N$, theory"], studied.weak_theory / studied.scales)


def test_required_scale_is_that_of_simulation(example):
    """Share of runs that stay within the tolerance at the scale found."""
    wrapped, start = example
    tolerance, runs = 0.6, 1024
    scale = ex.required_scale(wrapped, start, 8.0, tolerance, initial_state=0)
    assert ex.required_scale(wrapped, start, 8.0, tolerance, initial_state=0) == scale
    ts = np.arange(int(8 * scale) + 1) / scale
    flow = ex.solve(wrapped, start, ts)
    sim = ex.simulate(
        wrapped,
        start,
        ts,
        scale=scale,
        runs=runs,
        key=jax.random.key(0),
        initial_state=0,
        keep_runs=True,
    )
    gaps = [
        np.abs(values - np.asarray(path)).max(axis=(1, 2, 3))
        for values, path in zip(sim.values, flow.params, strict=True)
    ]
    share = np.mean(np.max(gaps, axis=0) <= tolerance)
    assert abs(share - 0.95) < 5 * np.sqrt(0.95 * 0.05 / runs) + 0.01, (scale, share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (1, 2)}, "at least three different"),
        ({"scales": (1, 2, -3)}, "scales must be a list of positive numbers"),
        ({"runs": 1}, "runs must be an integer, at least 2"),
        ({"initial_state": 9}, "initial_state must be a state, 0 to 3"),
    ],
)
def test_bad_input(example, options, message):
    with pytest.raises(ValueError, match=message):
        study(example, **options)


def test_bad_tolerance(example):
    with pytest.raises(ValueError, match="tolerance must be a positive number"):
        ex.required_scale(*example, 8.0, 0.0)
    with pytest.raises(ValueError, match="probability must be a number in"):
        ex.required_scale(*example, 8.0, 1.0, probability=1.0)
