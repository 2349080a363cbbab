"""Programs are dropped before they are too many, and threads take their caller's settings."""

import functools
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.base import compiling
from ergodax.base.compiling import compiled, drop_programs, in_this_context
from ergodax.studies import compare


@compiled
def powers(x):
    return [x**k for k in range(len(x))]


def count():
    return compiling._MAPPINGS.read_bytes().count(b"\n")


@pytest.mark.slow
@pytest.mark.skipif(not compiling._MAPPINGS.exists(), reason="mappings are counted on Linux")
def test_programs_are_dropped_before_they_are_too_many(monkeypatch, tmp_path):
    jax.clear_caches()
    start = count()
    limit = (start + 300) * 4 // 3
    (tmp_path / "limit").write_text(str(limit))
    monkeypatch.setattr(compiling, "_LIMIT", tmp_path / "limit")
    monkeypatch.setattr(compiling._Watch, "warned", False)
    made, before = 0, start
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in range(2, 200):
            found = powers(jnp.full(size, 2.0))
            assert found[-1][0] == 2.0 ** (size - 1)
            made, before = made + max(count() - before, 0), count()
            assert before < limit
            if start + made > limit + 200:
                break
    assert start + made > limit + 200  # so many would have been too many
    assert [str(one.message)[:32] for one in caught] == ["this process has compiled nearly"]


def test_compiler_options_hold_where_a_program_stands_alone():
    function = functools.partial(compiled, compiler_options={"xla_backend_optimization_level": 0})(
        lambda x: jnp.sum(x**2)
    )
    x, other = jnp.arange(3.0), jnp.arange(4.0)
    assert function(x) == 5
    assert jax.jit(lambda x: function(x) + function(other))(x) == 19
    np.testing.assert_array_equal(jax.grad(function)(x), 2 * x)
    assert jax.vmap(function)(x[:, None]).tolist() == [0, 1, 4]
    assert jax.lax.scan(lambda carry, _: (carry + function(other), None), 0.0, length=2)[0] == 28


def test_what_the_compiler_does_not_know_is_left_out():
    function = functools.partial(compiled, compiler_options={"xla_of_another_day": True})(jnp.sin)
    assert function(0.0) == 0
    assert not compiling._takes("xla_of_another_day", True)
    assert compiling._takes("xla_backend_optimization_level", 0)


def test_few_programs_are_kept():
    assert not drop_programs()


def test_a_function_takes_the_settings_of_its_context_to_other_threads():
    def settings():
        return jnp.ones(()).dtype, jax.config.jax_default_matmul_precision

    found = []
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        for function in (settings, in_this_context(settings)):
            thread = threading.Thread(target=lambda function=function: found.append(function()))
            thread.start()
            thread.join()
    assert found == [(np.float64, None), (np.float32, "highest")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:solving in float32")
def test_predictions_take_the_settings_of_the_caller(monkeypatch):
    seen = []

    def predict(*_):
        seen.append(jnp.ones(()).dtype)
        return "not computed"

    monkeypatch.setattr(compare, "_predict", predict)
    with jax.enable_x64(False):
        learner = ex.QLearning(0.1, 0.0, ex.EpsilonSoftmax(1.0, 0.2))
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [learner] * 2)
        ex.compare(wrapped, wrapped.init(), [0.0, 1.0], scale=5, runs=4, key=jax.random.key(0))
    assert seen == [np.float32]
