"""The programs that public functions compile: none calls the host, so that JAX can keep them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex

TS = [0.0, 1.0, 2.0]


def bandit(rate=0.1):
    """One agent, one state, two actions: Q-learning, whose maximum is a kink."""
    payoffs = jnp.stack([jnp.asarray(1.0), jnp.asarray(1.5)])[:, None]
    wrapped = ex.WrappedGame(ex.games.repeated(payoffs, memory=0), [ex.QLearning(rate, 0.9)])
    return wrapped, (jnp.array([[0.0, 1.0]]),)


def build(theta):
    return bandit(theta["rate"])


def share(rate):
    return ex.solve(*bandit(rate), jnp.array([1.0])).rewards[-1, 0]


def spread(rate):
    return ex.fluctuations(*bandit(rate), TS, bias=True).covariance[-1, 0, 0]


def at_rest():
    wrapped, params = bandit()
    return wrapped, ex.rest_point(wrapped, params)


CALLS = {
    "averages": lambda: [f(*bandit()) for f in (ex.drift, ex.jacobian, ex.occupation_measure)],
    "solve": lambda: ex.solve(*bandit(), TS),
    "gradient": lambda: jax.grad(share)(0.1),
    "sensitivities": lambda: ex.sensitivities(build, {"rate": 0.1}, TS),
    "kinks": lambda: ex.kinks(*bandit(), TS),
    "rest_point": at_rest,
    "rest_points": lambda: ex.rest_points(
        bandit()[0], jax.tree.map(lambda x: x[None], bandit()[1])
    ),
    "basins": lambda: ex.basins(bandit()[0], jax.tree.map(lambda x: x[None], bandit()[1]), 3000.0),
    "fluctuations": lambda: ex.fluctuations(*bandit(), TS, bias=True),
    "gradient of fluctuations": lambda: jax.grad(spread)(0.1),
    "stationary_covariance": lambda: ex.stationary_covariance(*at_rest()),
    "noise_covariance": lambda: ex.noise_covariance(*bandit()),
    "simulate": lambda: ex.simulate(*bandit(), TS, scale=5, runs=4, key=jax.random.key(0)),
    "compare": lambda: ex.compare(*bandit(), TS, scale=5, runs=4, key=jax.random.key(0)),
    "convergence_study": lambda: ex.convergence_study(
        *bandit(), 1.0, scales=(8, 16, 32), runs=8, key=jax.random.key(0)
    ),
    "sweep": lambda: ex.sweep(build, {"rate": [0.1, 0.2]}, TS),
    "fit": lambda: ex.fit(lambda theta: (theta["rate"] - 0.2) ** 2, {"rate": 0.1}, max_steps=2),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the attractors of")
@pytest.mark.parametrize("name", CALLS)
def test_no_program_calls_the_host(name, tmp_path):
    jax.clear_caches()
    jax.config.update("jax_dump_ir_to", str(tmp_path))
    try:
        jax.block_until_ready(jax.tree.leaves(CALLS[name]()))
    finally:
        jax.config.update("jax_dump_ir_to", "")
    programs = [path.read_text() for path in tmp_path.glob("*.mlir")]
    assert programs
    called = {call for text in programs for call in re.findall(r"custom_call @(\w+)", text)}
    assert not [call for call in called if "callback" in call]


def test_calls_of_the_host_are_seen(tmp_path):
    jax.config.update("jax_dump_ir_to", str(tmp_path))
    try:
        jax.jit(lambda x: jax.pure_callback(np.sin, x, x))(1.0)
    finally:
        jax.config.update("jax_dump_ir_to", "")
    text = "".join(path.read_text() for path in tmp_path.glob("*.mlir"))
    assert [call for call in re.findall(r"custom_call @(\w+)", text) if "callback" in call]
