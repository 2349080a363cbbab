"""The programs that public functions compile.

None calls the host, so that JAX can keep them; and none leaves the precision of a product to the
device, since accelerators then round factors to ten bits.
"""

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


def predicted():
    return ex.fluctuations(*bandit(), TS, bias=True)


class Dense(ex.Sarsa):
    """A learner whose increments are tables."""

    def update(self, params, transition, game, agent):
        own = super().update(params, transition, game, agent)
        return jnp.zeros_like(params).at[own.index].add(own.value)


def of_dense(rate):
    wrapped = ex.WrappedGame(bandit()[0].game, [Dense(rate, 0.9)])
    return ex.solve(wrapped, bandit()[1], jnp.array([1.0])).params[0][-1, 0, 0]


def averages(rate):
    wrapped, params = bandit(rate)
    found = ex.jacobian(wrapped, params), ex.noise_covariance(wrapped, params)
    return sum(map(jnp.sum, found))


def at_rest():
    wrapped, params = bandit()
    return wrapped, ex.rest_point(wrapped, params)


CALLS = {
    "averages": lambda: [f(*bandit()) for f in (ex.drift, ex.jacobian, ex.occupation_measure)],
    "solve": lambda: ex.solve(*bandit(), TS),
    "gradient": lambda: jax.grad(share)(0.1),
    "gradient of averages": lambda: jax.grad(averages)(0.1),
    "gradient, dense": lambda: jax.grad(of_dense)(0.1),
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
    "noise_covariance times a vector": lambda: ex.noise_covariance(*bandit(), vector=jnp.ones(2)),
    "poisson_values": lambda: ex.poisson_values(*bandit()),
    "of fluctuations": lambda: (
        predicted().corrected_mean(10.0),
        predicted().band(bandit()[0].policies, scale=10.0),
        predicted().correlation(0, 0),
    ),
    "required_scale": lambda: ex.required_scale(*bandit(), 1.0, 0.5, paths=100),
    "standard_errors": lambda: ex.standard_errors(
        lambda theta: theta["rate"][None], {"rate": 0.1}, jnp.eye(1)
    ),
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
def test_no_program_calls_the_host_or_rounds_factors(name, tmp_path):
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
    assert not [line for text in programs for line in rounded_products(text)]


def rounded_products(program):
    """Lines of a program that multiply, but not in the precision of their numbers."""
    lines = [line.strip() for line in program.splitlines() if "stablehlo.dot" in line]
    return [line for line in lines if "precision = [HIGHEST, HIGHEST]" not in line]


def test_rounded_products_are_seen():
    def program(precision):
        x = jnp.eye(2)
        return jax.jit(lambda x: jnp.matmul(x, x, precision=precision)).lower(x).as_text()

    assert len(rounded_products(program("default"))) == 1
    assert rounded_products(program("highest")) == []


def test_calls_of_the_host_are_seen(tmp_path):
    jax.config.update("jax_dump_ir_to", str(tmp_path))
    try:
        jax.jit(lambda x: jax.pure_callback(np.sin, x, x))(1.0)
    finally:
        jax.config.update("jax_dump_ir_to", "")
    text = "".join(path.read_text() for path in tmp_path.glob("*.mlir"))
    assert [call for call in re.findall(r"custom_call @(\w+)", text) if "callback" in call]
