"""The same numbers on a GPU as on the CPU.

Every test runs twice: with the GPU as the other device, if there is one, and with the CPU itself,
so that the tests are known to work where there is none. What is drawn from the random streams alone
must agree bit for bit, float64 to rounding (or to the solver's tolerance, where its steps may
differ), float32 in distribution.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
from ergodax.simulation.capacity import bytes_of_run, limits_of, width_of
from ergodax.simulation.inputs import check_inputs
from ergodax.simulation.streams import run_keys, threefry2x32, uniforms
from helpers import KEEPING, assert_close, told

TS = np.array([0.0, 10.0, 60.0])
# A normal variable is beyond this with probability 1e-9.
SIGMAS = 6.2


# Between the CPU and itself it is only the tests that are tested, by request.
@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param("gpu", marks=pytest.mark.gpu),
    ]
)
def device(request):
    """The device that is compared with the CPU."""
    try:
        device = jax.devices(request.param)[0]
    except RuntimeError as error:
        pytest.skip(f"no GPU: {error}")
    if request.param == "gpu":
        request.getfixturevalue("optimised")
    return device


def both(device, function):
    """What a function of nothing returns on the device and on the CPU, as NumPy arrays."""

    def on(device):
        with jax.default_device(device):
            found = function()
        for leaf in jax.tree.leaves(found):
            assert not isinstance(leaf, jax.Array) or leaf.devices() == {device}
        return jax.device_get(found)

    return on(device), on(jax.devices("cpu")[0])


def assert_all_close(found, expected, tolerance):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in pairs:
        assert_close(np.asarray(one), np.asarray(other), tolerance)


def assert_all_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def build(theta):
    """Two smooth learners in the dilemma, by four quantities; tables read by selections."""
    game = ex.games.prisoners_dilemma(theta.get("g", 1.5))
    tau = theta.get("tau", 0.5)
    first = ex.Sarsa(theta.get("alpha", 0.1), 0.8, ex.EpsilonSoftmax(tau, 0.1), [12.0, 10.0])
    second = ex.ActorCritic(0.05, 0.1, theta.get("gamma", 0.7), ex.EpsilonSoftmax(1.0, 0.1))
    wrapped = ex.WrappedGame(game, [first, second])
    return wrapped, wrapped.init()


def large():
    """Two learners in a game of nine states; tables so large that their rows are gathered."""
    rng = np.random.default_rng(0)
    game = ex.games.repeated(rng.normal(size=(3, 3, 2)))
    learners = [
        ex.QLearning(0.1, 0.8, ex.EpsilonSoftmax(0.5, 0.1), rng.normal(size=(9, 3))),
        ex.CounterfactualQLearning(0.1, 0.8, ex.EpsilonSoftmax(0.5, 0.1), rng.normal(size=(9, 3))),
    ]
    wrapped = ex.WrappedGame(game, learners)
    return wrapped, wrapped.init()


def test_random_streams_are_the_same_bit_for_bit(device):
    def draw():
        keys = run_keys(jax.random.key(3), jnp.arange(100, dtype=jnp.uint32))
        low = jnp.array([0, 1, 2**32 - 1], jnp.uint32)
        high = jnp.array([0, 0, 2**24 - 1], jnp.uint32)

        def of_step(key, low, high):
            words = threefry2x32((key[0], key[1]), (low, high))
            return words, [uniforms(key, (low, high), 3, dtype) for dtype in (np.float32, float)]

        by_step = jax.vmap(of_step, in_axes=(None, 0, 0))
        return keys, jax.jit(jax.vmap(by_step, in_axes=(0, None, None)))(keys, low, high)

    assert_all_equal(*both(device, draw))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_states_drawn_from_the_streams_are_the_same_bit_for_bit(device, dtype):
    """Learners that learn nothing and choose between two actions with probability 1/2."""

    def simulate():
        learner = ex.QLearning(0.0, 0.9)
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])
        ran = ex.simulate(
            wrapped, wrapped.init(), [7.0, 300.0], runs=130, key=jax.random.key(0), dtype=dtype
        )
        return ran.state_frequency, ran.rewards, ran.final.state

    assert_all_equal(*both(device, simulate))


@pytest.mark.parametrize("case", [lambda: build({}), large], ids=["small", "large"])
def test_float64_trajectories_agree_to_rounding(device, case):
    """With 64 runs of 60 steps a uniform number within a rounding error of a boundary is a
    matter of one in 10^4 at most."""

    def simulate():
        ran = ex.simulate(*case(), TS, runs=64, key=jax.random.key(1), keep_runs=True)
        return ran.values, ran.final.state, ran.mean, ran.variance, ran.state_frequency[1:]

    assert_all_close(*both(device, simulate), 1e-9)


@pytest.mark.filterwarnings("ignore:.*did not meet the criterion")
@pytest.mark.parametrize("case", [lambda: build({}), large], ids=["small", "large"])
def test_runs_stop_at_the_same_steps(device, case):
    def simulate():
        until, options = ex.until.settled(0.5, 20), {"max_steps": 200, "runs": 70}
        ran = ex.simulate_until(*case(), until, key=jax.random.key(1), **options)
        return ran.steps, ran.final.params

    assert_all_close(*both(device, simulate), 1e-9)


def test_each_run_may_have_its_own_game(device):
    def simulate():
        wrapped, params0 = jax.vmap(lambda g: build({"g": g}))(jnp.linspace(1.2, 1.8, 70))
        ran = ex.simulate(wrapped, params0, TS, key=jax.random.key(2))
        return ran.mean, ran.variance, ran.final.params

    assert_all_close(*both(device, simulate), 1e-9)


@pytest.mark.parametrize("case", [lambda: build({}), large], ids=["small", "large"])
def test_float32_ensembles_agree_in_distribution(device, case):
    """Independent ensembles: another key on each device."""

    def simulate(seed, device):
        return ex.simulate(
            *case(),
            TS[1:],
            scale=2,
            runs=1024,
            key=jax.random.key(seed),
            dtype="float32",
            devices=[device],
        )

    found, expected = simulate(1, device), simulate(2, jax.devices("cpu")[0])
    differences = jax.tree.map(
        lambda a, b, s, t: np.abs(a - b) / np.sqrt(s**2 + t**2 + 1e-12),
        found.mean,
        expected.mean,
        found.standard_error,
        expected.standard_error,
    )
    assert np.max(ravel_pytree(differences)[0]) < SIGMAS
    assert any(np.any(leaf > 0) for leaf in jax.tree.leaves(differences))  # other numbers
    assert_close(found.state_frequency, expected.state_frequency, 0.05)


@pytest.mark.parametrize("case", [lambda: build({}), large], ids=["small", "large"])
def test_averages_agree_to_rounding(device, case):
    def look():
        wrapped, params = case()
        return (
            ex.stationary_distribution(wrapped, params),
            ex.drift(wrapped, params),
            ex.jacobian(wrapped, params),
            ex.occupation_measure(wrapped, params),
        )

    assert_all_close(*both(device, look), 1e-12)


def test_solutions_agree(device):
    def solve():
        solution = ex.solve(*large(), TS)
        return solution.params, solution.state_distribution, solution.rewards

    assert_all_close(*both(device, solve), 1e-7)


def test_reverse_mode_gradients_agree(device):
    @jax.jit
    def gradient(theta):
        return jax.grad(lambda theta: ex.solve(*build(theta), TS).params[0][-1, 0, 0])(theta)

    def of_gradient():
        return gradient({"tau": jnp.asarray(0.5), "gamma": jnp.asarray(0.7)})

    assert_all_close(*both(device, of_gradient), 1e-5)


def test_sensitivities_agree(device):
    def derivatives():
        theta = {"alpha": jnp.asarray(0.1), "g": jnp.asarray(1.5)}
        return ex.sensitivities(build, theta, TS).derivatives

    assert_all_close(*both(device, derivatives), 1e-5)


def test_rest_points_agree(device):
    def rest():
        # Without an actor-critic, whose preferences grow for ever.
        game = ex.games.prisoners_dilemma()
        learners = [ex.Sarsa(0.1, d, ex.EpsilonSoftmax(0.5, 0.1), 10.0) for d in (0.8, 0.7)]
        wrapped = ex.WrappedGame(game, learners)
        return ex.rest_point(wrapped, wrapped.init()).params

    assert_all_close(*both(device, rest), 1e-7)


def test_sweeps_agree(device):
    thetas = {"tau": np.linspace(0.4, 0.6, 3), "g": np.array([1.4, 1.6])}

    def sweep():
        data = ex.sweep(build, thetas, TS)
        return {name: data[name].values for name in ("rewards", "state_distribution", "end_time")}

    assert_all_close(*both(device, sweep), 1e-7)


def test_sweeps_of_simulations_agree(device):
    thetas = {"tau": np.linspace(0.4, 0.6, 3), "g": np.array([1.4, 1.6])}
    simulation = {"key": jax.random.key(0), "runs": 20, "scale": 2}

    def sweep():
        data = ex.sweep(build, thetas, [5.0], simulation=simulation)
        return [data[name].values for name in ("state_frequency", "rewards", "policy")]

    assert_all_close(*both(device, sweep), 1e-9)


def test_batches_suit_the_memory_of_an_accelerator():
    """A card is stood in for: all that is asked of it is its memory."""

    def limits(memory):
        return limits_of(SimpleNamespace(platform="gpu", memory_stats=lambda: memory))

    wrapped, params0 = large()
    inputs = check_inputs(wrapped, params0, None, None, 2**30, "float32")
    size = 2 * 9 * 3 * 4
    width = width_of(None, bytes_of_run(inputs), inputs.runs, 1, limits({"bytes_limit": 2**30}))
    assert width * size <= 2**26 < 2 * width * size


KEPT = """
game = ex.games.repeated([[1.0], [1.5]], memory=0)
wrapped = ex.WrappedGame(game, [ex.QLearning(0.1, 0.9)])
start, ts = wrapped.init(), [0.0, 7.0]
found = [
    ex.simulate(wrapped, start, ts, runs=64, key=jax.random.key(0)).mean,
    ex.solve(wrapped, start, ts).params,
    ex.rest_point(wrapped, start).params,
    ex.fluctuations(wrapped, start, ts).covariance,
]
print(jax.default_backend(), *names)
for leaf in jax.tree.leaves(found):
    print(*(float(x).hex() for x in leaf.ravel()))
"""


def test_another_process_compiles_nothing_and_differs_in_no_bit(device, tmp_path):
    platforms = {"JAX_PLATFORMS": "cpu"} if device.platform == "cpu" else {}
    runs = [told(KEEPING + KEPT, tmp_path, **platforms) for _ in range(2)]
    first, second = (run.stdout.splitlines() for run in runs)
    compiled, again = (set(lines[0].split()) for lines in (first, second))
    large = {f"jit({name})" for name in ("advance", "_solve", "_root_from", "_along")}
    assert {device.platform, *large} <= compiled
    assert device.platform in again
    assert not large & again
    assert second[1:] == first[1:]
