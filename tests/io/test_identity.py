"""Digests of all that a result depends on: told apart where numbers may be, and only there."""

import enum
import functools
import os
import subprocess
import sys
import textwrap
import threading
import types
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
from ergodax.io.identity import identify


def of(value):
    return identify(value, "it")


def define(source, name="f", **given):
    """What a source defines, made anew: at another address, as in another process."""
    given = {"jax": jax, "jnp": jnp, "np": np, "ex": ex, "functools": functools} | given
    exec(textwrap.dedent(source), given)
    return given[name]


def variants():
    """Sources whose results differ, each group under one name."""
    learner = """
        class f(ex.AbstractLearner):
            rate: jax.Array = ex.hyper(0.1)
            {static}
            def init(self, game, agent, *, key):
                return jnp.zeros(())
            def policy(self, x, state):
                return jnp.array([0.5, 0.5])
            def update(self, x, t, game, agent):
                return {gain} * self.rate * t.reward
        """
    return {
        "code": ["f = lambda q: q[0][0, 0]", "f = lambda q: 100 * q[1][3, 1]"],
        "constants": ["def f(q):\n return q + 1", "def f(q):\n return q + 1.0"],
        "inner function": [
            f"def f(q):\n  def g(x):\n    return x {op} 2\n  return g(q)" for op in "+-"
        ],
        "names": ["f = lambda q: jnp.sin(q)", "f = lambda q: jnp.cos(q)"],
        "closure": [
            f"def make(a):\n  return lambda q: a * q\nf = make({a})" for a in (1, 2, "jnp.ones(2)")
        ],
        "default": [f"def f(q, a={a}):\n  return a * q" for a in (1, 2)],
        "keyword default": [f"def f(q, *, a={a}):\n  return a * q" for a in (1, 2)],
        "attribute": [f"def f(q):\n  return f.a * q\nf.a = {a}" for a in (1, 2)],
        "global value": [f"A = {a}\ndef f(q):\n  return A * q" for a in (1, "np.arange(2)")],
        "global function": [
            f"def g(q):\n  return {a} * q\ndef f(q):\n  return g(q)" for a in (1, 2)
        ],
        "global of an inner function": [
            f"A = {a}\ndef f(q):\n  return jax.vmap(lambda x: A * x)(q)" for a in (1, 2)
        ],
        "transformation": ["f = jax.vmap(jnp.sin)", "f = jax.grad(jnp.sin)", "f = jnp.sin"],
        "jit": ["f = jax.jit(lambda q: q)", "f = jax.jit(lambda q: -q)"],
        "cache": [
            "f = functools.lru_cache(lambda q: q)",
            "f = functools.lru_cache(lambda q: -q)",
        ],
        "learner": [learner.format(static="", gain=gain) for gain in (1, 2)]
        + [learner.format(static="scale = 3.0", gain=1)],
        "inherited": [
            f"class A:\n  def __call__(self, q):\n    return {a} * q\nclass f(A):\n  pass"
            for a in (1, 2)
        ],
        "static method": [
            f"class f:\n  @staticmethod\n  def g(q):\n    return {a} * q" for a in (1, 2)
        ],
        "property": [f"class f:\n  @property\n  def g(self):\n    return {a}" for a in (1, 2)],
    }


@pytest.mark.parametrize("what", list(variants()))
def test_sources_that_differ_are_told_apart_and_only_those(what):
    sources = variants()[what]
    digests = [of(define(source)) for source in sources]
    assert len(set(digests)) == len(sources)
    moved = [of(define("\n\n# lower down\n" + textwrap.dedent(source))) for source in sources]
    assert moved == digests


class Pair(NamedTuple):
    first: object
    second: object


class Scaled(eqx.Module):
    factor: jax.Array

    def __call__(self, q):
        return self.factor * q

    def double(self, q):
        return 2 * self(q)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


LARGE = np.zeros(10**5)
OTHER = LARGE.copy()
OTHER[5 * 10**4] = 1  # what `repr` leaves out
KEY = jax.random.key(0)
GAME = ex.games.prisoners_dilemma()


@pytest.mark.parametrize(
    "values",
    [
        [0, 0.0, -0.0, False, None, "0", b"0", 0j, (), [], {}, frozenset(), ...],
        [np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)), np.zeros(2, int), np.array([])],
        [(1, (2,)), (1, 2), [1, 2], Pair(1, 2), {1: 2}, {1, 2}, "12"],
        [KEY, jax.random.key(1), jax.random.key(0, impl="rbg"), jax.random.key_data(KEY)],
        [functools.partial(jnp.add, LARGE), functools.partial(jnp.add, OTHER)],
        [jax.tree_util.Partial(jnp.add, LARGE), jax.tree_util.Partial(jnp.add, OTHER)],
        [functools.partial(jnp.add, x=1.0), functools.partial(jnp.add, y=1.0)],
        [jnp.tanh, jnp.sin, jax.nn.relu, jax.nn.softmax, np.add, np.sum, print, "a".join],
        [Scaled(jnp.ones(2)), Scaled(jnp.zeros(2)), Scaled],
        [Scaled(jnp.ones(2)).double, Scaled(jnp.zeros(2)).double, Scaled.double],
        [Colour.RED, Colour.BLUE, Colour],
        [ex.QLearning(0.1), ex.QLearning(0.2), ex.Sarsa(0.1), ex.QLearning],
        [ex.EpsilonSoftmax(1.0), ex.EpsilonGreedy(0.1)],
        [GAME, ex.games.prisoners_dilemma(1.6)],
        [jax.tree.structure((1, 2)), jax.tree.structure([1, 2]), jax.tree.structure(Pair(1, 2))],
        [ravel_pytree((LARGE, 1.0))[1], ravel_pytree((1.0, LARGE))[1]],
        [np.random.default_rng(0), np.random.default_rng(1)],
    ],
)
def test_values_that_differ_are_told_apart(values):
    digests = [of(value) for value in values]
    assert len(set(digests)) == len(values)
    assert [of(value) for value in values] == digests


def test_what_makes_no_difference_is_not_told_apart():
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})
    assert of(np.arange(6).reshape(2, 3).T) == of(np.arange(6).reshape(2, 3).T.copy())
    assert of(jnp.arange(3)) == of(np.arange(3))
    doubled = define("def f(q):\n  return 2 * q")
    digest = of(doubled)
    doubled(jnp.ones(3))
    assert of(doubled) == digest
    learner = ex.QLearning(0.1)
    digest = of(ex.WrappedGame(GAME, [learner] * 2).policies)
    assert of(ex.WrappedGame(GAME, [ex.QLearning(0.1)] * 2).policies) == digest


def test_a_module_of_the_users_counts_by_what_is_used():
    def using(**held):
        module = types.ModuleType("mine")
        exec("def g(q):\n  return q", vars(module))
        vars(module).update(held)
        return of(define("def f(q):\n  return mine.g(q) * mine.rate", mine=module))

    assert using(rate=1) == using(rate=1, unused=threading.Lock())
    assert using(rate=1) != using(rate=2)
    assert using(rate=1) != using(rate=1, g=jnp.sin)


def test_what_refers_to_itself_has_a_digest():
    source = "def f(n):\n  return {base} if n < 2 else n * g(n - 1)\ndef g(n):\n  return f(n)"
    assert of(define(source.format(base=1))) == of(define(source.format(base=1)))
    assert of(define(source.format(base=1))) != of(define(source.format(base=2)))
    ring = [1]
    ring.append(ring)
    assert of(ring) != of([1, [1]])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda q: q + len(str(LOCK)), "<lambda> of it: LOCK cannot be identified: .*lock"),
        ({"a": [0, threading.Lock()]}, r"it\['a'\]\[1\] cannot be identified: .*lock"),
        ((k for k in range(3)), "it cannot be identified: .*generator"),
        (np.array([None]), "it is an array of Python objects"),
        (np.frompyfunc(abs, 1, 1), "it cannot be identified"),
    ],
)
def test_what_has_no_contents_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        of(value)


LOCK = threading.Lock()


def test_traced_values_are_refused():
    with pytest.raises(ValueError, match="it is being traced by JAX"):
        jax.jit(lambda x: [of(x), x][1])(1.0)


SCRIPT = """
import functools
import jax
import jax.numpy as jnp
import equinox as eqx
import ergodax as ex
from ergodax.io.identity import identify

class Mine(ex.QLearning):
    kinds = frozenset({"a", "b", "c", ("d", 1.5)})
    bend: object = eqx.field(static=True, default=jnp.tanh)

    def policy(self, params, state):
        return jax.nn.softmax(self.bend(super().policy(params, state)))

def scaled(factor):
    return lambda q: factor * q[0]

@jax.jit
def observe(q, names={"x", "y", "z"}):
    return helper(q) + len(names)

def helper(q):
    return scaled(3.0)(q) * recursive(3)

def recursive(n):
    return 1 if n < 2 else n * recursive(n - 1)

wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [Mine(0.1), ex.Sarsa(0.1)])
for value in (
    wrapped, observe, wrapped.policies, functools.partial(scaled(2), wrapped), jnp.sin,
    jax.random.key(0), eqx.filter_jit(helper), jax.vmap(helper), Mine, ex.simulate,
):
    print(identify(value, "it"))
"""


@pytest.mark.slow
def test_another_process_finds_the_same_digests():
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT]
        found.append(subprocess.check_output(command, env=environment, text=True).split())
    assert len(set(found[0])) == 10
    assert found[0] == found[1]
