"""Programs are dropped before they are too many, and threads take their caller's settings."""

import functools
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.averaged import solution
from ergodax.base import compiling
from ergodax.base.compiling import ahead, compiled, drop_programs, in_this_context
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
    assert function(jnp.zeros(())) == 0
    known = ("xla_backend_optimization_level", 0)
    assert compiling._known((("xla_of_another_day", True), known)) == dict([known])


@pytest.mark.parametrize("options", [{}, {"xla_backend_optimization_level": 0}])
def test_what_is_compiled_ahead_is_not_compiled_again(options):
    traced = []

    @functools.partial(compiled, compiler_options=options)
    def function(x, y, *, power):
        traced.append(threading.current_thread())
        return x**power + y

    with jax.enable_x64(False):
        given = jnp.arange(3.0), jnp.asarray(1)
        ahead(function, *given, power=2)
        assert function(*given, power=2).tolist() == [1, 2, 5]
    assert [thread is threading.main_thread() for thread in traced] == [False]
    ahead(function, 0.0, "what cannot be added", power=2)
    with pytest.raises(TypeError):
        function(0.0, "what cannot be added", power=2)


def test_threads_that_call_and_compile_ahead_do_not_trip_over_each_other():
    follows = compiled(lambda x: x - 1)
    function = compiled(lambda x: x + 1, then=lambda found, x: ahead(follows, found))

    def work(size):
        return follows(function(jnp.zeros(size))).tolist()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, [1, 2, 3, 4] * 20)) == [[0.0] * k for k in [1, 2, 3, 4] * 20]


def test_what_follows_begins_once_and_only_where_a_program_stands_alone():
    begun = []

    @functools.partial(compiled, then=lambda found, x: begun.append((found.shape, x.shape)))
    def function(x):
        return jnp.outer(x, x)

    for size in (2, 2, 3):
        function(jnp.ones(size))
    jax.jit(function)(jnp.ones(4))
    jax.grad(lambda x: function(x).sum())(jnp.ones(5))
    assert begun == [((2, 2), (2,)), ((3, 3), (3,))]


def test_the_transpose_of_a_solution_is_compiled_once_beside_it(monkeypatch):
    wrapped = ex.WrappedGame(ex.games.stag_hunt(), [ex.QLearning(0.1, 0.5)] * 2)
    begun = []
    monkeypatch.setattr(solution, "ahead", lambda *a, **k: (begun.append(1), ahead(*a, **k)))
    threads, pull = [], solution._Known.tangent
    monkeypatch.setattr(
        solution._Known,
        "tangent",
        lambda *a: (threads.append(threading.current_thread()), pull(*a))[1],
    )

    def last(params):
        return ex.solve(wrapped, params, jnp.linspace(0, 1, 3)).rewards[-1, 0]

    finished = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, fun_name="", **rest: (
            finished.append(fun_name) if event.endswith("backend_compile_duration") else None
        )
    )
    for shift in (0.0, 1.0):
        params = jax.tree.map(lambda leaf, shift=shift: leaf + shift, wrapped.init())
        jax.grad(last)(params)
    jax.monitoring.clear_event_listeners()
    assert sum("_pull" in name for name in finished) == 1
    assert begun == [1]
    assert [thread is threading.main_thread() for thread in threads] == [False]


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
