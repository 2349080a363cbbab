"""Programs on disk: found again where nothing differs, and only there."""

import functools
import io
import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.base import dependencies, programs
from ergodax.base.compiling import _MAPPINGS, _shape_of, compiled, drop_programs
from ergodax.model import learner
from ergodax.simulation.step import cumulative_law
from helpers import KEEPING, told

LAW = jnp.array([[0.25, 0.75], [0.5, 0.5]])
SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
import ergodax as ex
from ergodax.base import dependencies, programs

dependencies._STARTED = float("inf")  # the files of a checkout may be new
assert str(ex.keep_programs(sys.argv[1])) == sys.argv[1]
traced, policies = 0, ex.WrappedGame.policies

def counted(*args):
    global traced
    traced += 1
    return policies(*args)

ex.WrappedGame.policies = counted
game = ex.games.repeated([[1.0], [1.5]], memory=0)
wrapped = ex.WrappedGame(game, [ex.QLearning(0.1, 0.9)])
flow = ex.solve(wrapped, wrapped.init(), [0.0, 1.0, 2.0])
found = ex.drift(wrapped, wrapped.init())
assert not found[0].committed  # free to go to the other device
print(traced, flow, *(x.hex() for x in flow.params[0].ravel().tolist()))
"""


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder in which programs are kept."""
    monkeypatch.setattr(programs._Kept, "folder", tmp_path / "compiled")
    monkeypatch.setattr(dependencies, "_STARTED", float("inf"))
    monkeypatch.setattr(dependencies, "_seen", set())
    return tmp_path / "compiled"


@pytest.fixture
def made(monkeypatch):
    """The functions that were compiled to be kept."""
    names, compile_ = [], programs._compile

    def noted(trace, *args):
        names.append(trace.__name__)
        return compile_(trace, *args)

    monkeypatch.setattr(programs, "_compile", noted)
    return names


def afresh(*args, function=cumulative_law, **options):
    """Calls a function as another process would, which has compiled nothing."""
    return compiled(function, options)(*args)


def path_of(*args, function="f", **options):
    """Where a program for arguments would be kept."""
    return programs._path_of(function, options, jax.tree.map(_shape_of, args)).name


def test_another_process_neither_traces_nor_differs(tmp_path):
    first, second = (told(SCRIPT, tmp_path) for _ in range(2))
    traced, found = first.stdout.split(" ", 1)
    assert int(traced) > 0
    assert second.stdout == f"0 {found}"
    assert found.startswith("Solution(3 times from 0 to 2: successful)")
    assert (first.stderr, second.stderr) == ("", "")
    # JAX keeps the rest, and no second copy.
    names = [path.name for path in tmp_path.glob("*-cache")]
    assert names
    assert not [name for name in names if "solve" in name or "drift" in name]


MORE = """
TABLE = [[2.0, 0.0], [3.0, 1.0]]

def wrapped(rate):
    game = ex.games.bimatrix(TABLE, TABLE, memory=0)
    return ex.WrappedGame(game, [ex.QLearning(rate, 0.5, ex.EpsilonSoftmax(1.0))] * 2)

def last(rate):
    game = wrapped(rate)
    return ex.solve(game, game.init(), [5.0]).rewards[-1, 0]

game = wrapped(0.1)
found = [
    jax.grad(last)(0.1),
    ex.rest_point(game, game.init()).jacobian,
    ex.fluctuations(game, game.init(), [5.0], bias=True, scale=10).bias,
    ex.simulate(game, game.init(), [5.0], runs=64, key=jax.random.key(0)).variance,
]
for leaf in jax.tree.leaves(found):
    print(*(float(x).hex() for x in leaf.ravel()))
for name in ("_solve_with_path", "_pull", "_begin", "_along"):  # some of them in a thread
    assert sum(name in other for other in names) == int(sys.argv[2]), (name, names)
"""


@pytest.mark.slow
def test_the_same_numbers_however_they_were_compiled(tmp_path):
    """Gradients, results that are modules, and simulations; `off` traces all of it."""
    # How often some programs are compiled: not at all once they are kept.
    runs = [("off", 1), (tmp_path, 1), (tmp_path, 0)]
    off, new, old = (told(KEEPING + MORE, folder, times).stdout for folder, times in runs)
    assert off == new == old
    assert len(list((tmp_path / "compiled").iterdir())) >= 6


def test_the_setting_of_jax_that_compiling_changes_is_as_before(folder, monkeypatch):
    def least():
        return jax.config.jax_persistent_cache_min_compile_time_secs

    seen, before, compile_ = [], least(), jax.stages.Lowered.compile

    def failing(self):
        seen.append(least())
        compile_(self)
        raise MemoryError

    afresh(LAW)  # after which the compiler's options are known
    monkeypatch.setattr(jax.stages.Lowered, "compile", failing)
    with pytest.raises(MemoryError):
        afresh(LAW[:1])
    assert seen == [np.inf]
    assert least() == before < np.inf


def test_a_program_is_kept_once_and_gives_the_same(folder, made):
    expected = cumulative_law(LAW)
    for _ in range(3):
        np.testing.assert_array_equal(afresh(LAW), expected)
    assert made == ["cumulative_law"]
    assert len(list(folder.iterdir())) == 1
    np.testing.assert_array_equal(
        jax.vmap(lambda p: afresh(p))(jnp.stack([LAW] * 2)), jnp.stack([expected] * 2)
    )
    jax.grad(lambda p: afresh(p)[0, 0])(LAW)
    assert len(list(folder.iterdir())) == 1  # what does not stand alone is traced


@pytest.mark.slow
def test_a_program_that_was_dropped_is_read_again(folder, made):
    law = compiled(cumulative_law)
    expected = law(LAW)
    (path,) = folder.iterdir()
    whole = path.stat()
    assert drop_programs(0) or not _MAPPINGS.exists()
    os.utime(path, (0, 0))
    np.testing.assert_array_equal(law(LAW), expected)
    assert made == ["cumulative_law"]
    assert path.stat().st_mtime >= whole.st_mtime or not _MAPPINGS.exists()  # it was read


def test_nothing_is_kept_unless_asked(tmp_path, made):
    assert not programs.are_kept()
    afresh(LAW)
    assert made == []


def test_all_that_a_program_depends_on_tells_it_from_others(folder, monkeypatch):
    x, game = jnp.zeros(3), ex.games.repeated([[1.0], [1.5]], memory=0)
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.1, 0.9)])
    other = ex.WrappedGame(game, [ex.QLearning(0.1, 0.9, ex.EpsilonGreedy(0.1))])
    arguments = [
        *((x,), (x, x), ([x, x],), ((x, x),), ({"a": x},), ({"b": x},), (x[:2],), (x[None],)),
        *((x.astype(jnp.float32),), (jnp.asarray(0.0),), (jnp.asarray(0.0, float),)),
        *((x, 1), (x, 1.0), (x, True), (x, None), (x, "1"), (x, -0.0), (x, 0.0), (x, jnp.sin)),
        *((x, functools.partial(jnp.sin)), (x, jnp.cos), (x, np.dtype(float)), (x, ex.Sarsa)),
        *((wrapped,), (other,), (ex.WrappedGame(game, [ex.Sarsa(0.1, 0.9)]),)),
    ]
    paths = [path_of(*args) for args in arguments]
    paths += [path_of(x, function="g"), path_of(x, option=1), path_of(x, option=2)]
    settings = [
        jax.enable_x64(False),
        jax.default_matmul_precision("float32"),
        jax.numpy_dtype_promotion("standard"),
        jax.default_prng_impl("rbg"),
        jax.default_device(jax.devices()[0]),
    ]
    for setting in settings:
        with setting:
            paths.append(path_of(x))
    monkeypatch.setattr(dependencies, "_installed", lambda: ("another source",))
    paths.append(path_of(x))
    assert len(set(paths)) == len(paths)
    monkeypatch.undo()
    monkeypatch.setattr(programs._Kept, "folder", folder)
    monkeypatch.setattr(dependencies, "_STARTED", float("inf"))
    # Values of arrays count as little as which object it is.
    again = ex.WrappedGame(ex.games.repeated([[2.0], [1.5]], memory=0), [ex.QLearning(0.2, 0.5)])
    assert path_of(again) == path_of(wrapped)
    assert path_of(x + 1) == path_of(x)


class Mine(ex.QLearning):
    """A learner of a user's."""


@functools.wraps(cumulative_law)
def _disguised(probabilities):
    return -cumulative_law(probabilities)


@pytest.mark.parametrize(
    "value",
    [
        Mine(0.1, 0.9),
        Mine,
        lambda x: x,
        _disguised,
        functools.partial(_disguised, 1),
        functools.partial(functools.partial, afresh),
        object(),
        path_of,
        type("QLearning", (), {"__module__": learner.__name__}),
    ],
)
def test_what_is_of_the_user_is_not_known(folder, value):
    with pytest.raises(dependencies.UnknownError):
        path_of(jnp.zeros(3), value)


def test_programs_of_own_learners_and_functions_are_traced(folder, made):
    game = ex.games.repeated([[1.0], [1.5]], memory=0)
    wrapped = ex.WrappedGame(game, [Mine(0.1, 0.9)])
    assert np.isfinite(ex.drift(wrapped, wrapped.init())[0]).all()
    np.testing.assert_array_equal(afresh(jnp.ones(2), function=lambda x: 2 * x), [2, 2])
    np.testing.assert_array_equal(afresh(LAW, function=_disguised), -cumulative_law(LAW))
    assert made == []


def test_nothing_is_kept_of_files_that_may_have_changed(folder, monkeypatch):
    newest = max(path.stat().st_ctime for path in dependencies._SOURCE.rglob("*.py"))
    monkeypatch.setattr(dependencies, "_STARTED", newest)
    np.testing.assert_array_equal(afresh(LAW), cumulative_law(LAW))
    assert not folder.exists()
    monkeypatch.setattr(dependencies, "_STARTED", newest + 60)
    afresh(LAW)
    assert folder.exists()
    # A file may change until it is imported; what is loaded stays as it is.
    monkeypatch.setattr(dependencies, "_STARTED", newest)
    path_of(LAW)
    dependencies._seen.clear()
    with pytest.raises(dependencies.UnknownError, match="may have changed"):
        path_of(LAW)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:45] + bytes([data[45] ^ 1]) + data[46:],
    ],
)
def test_damaged_files_are_passed_over(folder, made, damage):
    expected = afresh(LAW)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(afresh(LAW), expected)
    assert len(made) == 2
    assert programs._read(path, 1) is not None  # it was written anew


def test_files_of_other_programs_are_passed_over(folder, made):
    afresh(LAW)
    (path,) = folder.iterdir()
    other = folder / path_of(LAW, function="f")
    path.rename(other)
    assert programs._read(other, 1) is None
    afresh(LAW)
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_is_no_error(folder, made):
    folder.parent.joinpath("compiled").write_text("a file")
    np.testing.assert_array_equal(afresh(LAW), cumulative_law(LAW))
    assert made == ["cumulative_law"]


class _Calls:
    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize("content", [_Calls(), Path, ex.solve, jax.jit, Mine(0.1, 0.9), int])
def test_only_classes_of_results_are_read(folder, content):
    afresh(LAW)
    (path,) = folder.iterdir()
    text = pickle.dumps((content, [0], False))
    path.write_bytes(programs._digest(path, text) + len(text).to_bytes(8) + text)
    assert programs._read(path, 1) is None
    with pytest.raises(pickle.UnpicklingError, match="is no class of results"):
        programs._Reader(io.BytesIO(text)).load()


def test_a_program_that_cannot_be_loaded_is_compiled(folder, made):
    afresh(LAW)
    (path,) = folder.iterdir()
    head = pickle.dumps((programs._Place(0), [0], False))
    for rest in (head, head + b"no program", head + pickle.dumps(1)):
        path.write_bytes(programs._digest(path, rest) + len(head).to_bytes(8) + rest)
        assert programs._read(path, 1) is None
        np.testing.assert_array_equal(afresh(LAW), cumulative_law(LAW))
    assert len(made) == 4


@pytest.mark.parametrize("device", jax.devices())
def test_results_lie_where_those_of_any_program_do(folder, made, device):
    free, key = jnp.full(3, 2.0), jax.random.key(0)
    tied = jax.device_put(free, device)
    for given in (free, tied):
        for _ in range(2):  # compiled, and read
            found = afresh(given, np.arange(3.0), function=jax.lax.mul)
            assert found.committed == given.committed
            assert found.sharding == given.sharding
            np.testing.assert_array_equal(found, [0.0, 2.0, 4.0])
    for _ in range(2):
        assert afresh(key, 1, function=jax.random.fold_in).dtype == key.dtype
        weak = afresh(jnp.asarray(1.0), jnp.asarray(2.0), function=jax.lax.add)
        assert weak.weak_type
    assert made == ["mul", "mul", "fold_in", "add"]


def test_arrays_tied_to_other_places_have_programs_of_their_own(folder):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "runs")
    places = [
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        *(
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))
            for axis in (None, "runs")
        ),
    ]
    x = jnp.zeros(2)
    assert len({path_of(x), *(path_of(jax.device_put(x, place)) for place in places)}) == 4


LAPACK = """
import sys
import jax.numpy as jnp
import ergodax as ex
from ergodax.base import dependencies, programs
from ergodax.base.compiling import compiled

dependencies._STARTED = float("inf")
ex.keep_programs(sys.argv[1])
compile_ = programs._compile
programs._compile = lambda *given: (print("compiled"), compile_(*given))[1]
print(compiled(jnp.linalg.inv)(2 * jnp.eye(3)))
"""


def test_programs_that_call_lapack_find_it_in_another_process(tmp_path):
    first, second = (told(LAPACK, tmp_path).stdout for _ in range(2))
    assert first == "compiled\n" + second
    assert second.replace(" ", "") == "[[0.50.0.]\n[0.0.50.]\n[0.0.0.5]]\n"


def test_faults_of_functions_are_raised_as_ever(folder):
    with pytest.raises(TypeError):
        afresh(LAW, LAW)


def test_the_oldest_programs_are_dropped(folder):
    folder.mkdir()
    for k in range(5):
        (folder / str(k)).write_bytes(bytes(10))
        os.utime(folder / str(k), (k, k if k else 10))
    programs._drop_oldest(folder.iterdir(), 35)
    assert sorted(path.name for path in folder.iterdir()) == ["0", "3", "4"]
