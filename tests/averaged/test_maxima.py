import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
from ergodax.averaged.drift import flat_drift
from ergodax.averaged.maxima import Maxima, changes, crossings, owners
from ergodax.ode.path import Path
from helpers import assert_close


def of_actions(*num_actions, num_states=2):
    """Q-learners with these numbers of actions."""
    successors = np.zeros((num_states, *num_actions), int)
    rewards = np.random.default_rng(0).normal(size=(*successors.shape, len(num_actions)))
    game = ex.MarkovGame.deterministic(successors, rewards)
    return ex.WrappedGame(game, [ex.QLearning(0.3, 0.8)] * len(num_actions))


def waves(seed, size):
    """A path on which all parameters are waves, and its values at any times."""
    rng = np.random.default_rng(seed)
    height, pace, phase = rng.normal(size=size), rng.uniform(1, 3, size), rng.uniform(0, 6, size)
    times = np.sort(rng.uniform(0, 4, 60))
    times[0], times[-1] = 0, 4

    def at(t, order=0):
        angle = pace * np.asarray(t)[..., None] + phase + order * np.pi / 2
        return height * pace**order * np.sin(angle)

    padding = [(0, 5), (0, 0)]
    values = (jnp.asarray(np.pad(at(times, k), padding)) for k in range(3))
    return Path(jnp.pad(times, padding[0], constant_values=np.inf), *values, len(times)), at


def test_owners_and_best_two_leave_out_padding():
    wrapped = of_actions(3, 1, 2)
    owned = owners(wrapped)
    np.testing.assert_array_equal(owned.agent, [0, 0, 2, 2])
    np.testing.assert_array_equal(owned.row, [0, 1, 0, 1])
    np.testing.assert_array_equal(owned.entries, [3, 3, 2, 2])
    params = (-jnp.arange(1.0, 7).reshape(2, 3), jnp.ones((2, 1)), -jnp.array([[9.0, 7], [1, 4]]))
    x, unravel = ravel_pytree(params)
    gaps, places = Maxima(wrapped, unravel).best_two(x)
    np.testing.assert_allclose(gaps, [1, 1, 2, 3])
    np.testing.assert_array_equal(places, [[0, 1], [0, 1], [1, 0], [0, 1]])


@pytest.mark.parametrize("seed", range(3))
def test_crossings_of_a_path_are_those_of_a_fine_grid(seed):
    wrapped = of_actions(3, 2)
    start, unravel = ravel_pytree(wrapped.init())
    path, at = waves(seed, start.size)
    maxima = Maxima(wrapped, unravel)
    found, lost = jax.jit(lambda path: crossings(maxima, path, 50))(path)
    assert not lost
    grid = np.linspace(0, 4, 200_001)
    expected = []
    for row, columns in enumerate(np.split(np.arange(start.size), [3, 6, 8])):
        owner = at(grid)[:, columns].argmax(axis=1)
        for k in np.flatnonzero(np.diff(owner)):
            expected.append((grid[k], row, owner[k], owner[k + 1]))
    expected = np.array(sorted(expected))
    assert len(expected) > 5
    count = len(expected)
    assert np.all(np.asarray(found.maximum)[count:] == -1)
    np.testing.assert_allclose(found.time[:count], expected[:, 0], atol=4e-5)
    places = np.stack([found.maximum, found.old, found.new], axis=1)[:count]
    np.testing.assert_array_equal(places, expected[:, 1:])
    few, lost = jax.jit(lambda path: crossings(maxima, path, count - 1))(path)
    assert lost
    np.testing.assert_allclose(few.time, found.time[: count - 1])


@pytest.mark.slow
def test_the_drift_jumps_by_what_is_said():
    wrapped = of_actions(3, 2, num_states=1)
    rng = np.random.default_rng(1)
    x, unravel, field = flat_drift(wrapped.init())
    x = jnp.asarray(rng.normal(size=x.size)).at[:3].set(jnp.array([1.0, 1.0, 0.0]))
    normal = jnp.zeros(x.size).at[:2].set(jnp.array([-1.0, 1.0]))
    maxima = Maxima(wrapped, unravel)
    kink = jax.jit(lambda x: maxima.kink(lambda x: field(x, wrapped), x, 0, 0, 1))(x + 0.1 * normal)
    assert_close(kink.gap, 0.2, 1e-12)
    assert_close(kink.normal, normal, 1e-12)
    assert_close(kink.drift, field(x, wrapped), 1e-9)
    after, before = (ex.jacobian(wrapped, unravel(x + s * 1e-9 * normal)) for s in (1, -1))
    assert_close(jnp.outer(kink.change, normal), after - before, 1e-7)
    assert_close(kink.jump, np.linalg.norm(after - before, 2), 1e-7)


def test_changes_of_owners_between_times():
    wrapped = of_actions(2, num_states=1)
    table = jnp.array([[2.0, 1.0], [2.0, 1.5], [2.0, 2.0], [2.0, 3.0], [2.0, 1.0]])[:, None]
    np.testing.assert_array_equal(changes(wrapped, (table,)), [False, False, False, False, True])
    smooth = ex.WrappedGame(wrapped.game, [ex.Sarsa()])
    assert not changes(smooth, (table,)).any()
