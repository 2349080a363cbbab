"""Set-up of all tests: float64, run-time checks of every annotation, reproducible examples."""

import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# A worker process has processors of its own: threads that wait for work keep those of the other
# worker busy, which makes loops of small operations three times slower.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    _worker = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    _workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _all = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, _all[_worker % _workers % len(_all) :: _workers])  # at least one

# What one test has compiled another need not: a cache on disk, which worker processes share, and
# which holds no program of an earlier run.
_kept = tempfile.TemporaryDirectory(prefix="ergodax-programs-")
if os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _kept.name) == _kept.name:
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# What a test replaces in ergodax must not be passed over, so that nothing is kept that was traced.
os.environ["ERGODAX_CACHE"] = "off"

# A third of the time of compiling goes to a switch that later versions have no more.
if version("jaxlib").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}".strip()

import jax

# Tracing makes many objects, few of them garbage.
gc.set_threshold(100_000, 20, 20)
jax.config.update("jax_enable_x64", True)
# Most tests run many small programs once each, and spend their time compiling.
jax.config.update("jax_disable_most_optimizations", True)
# The threads that compile would each keep memory of their own; read when worker processes start.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")

import hypothesis
import jaxtyping
import numpy as np
import pytest

jaxtyping.install_import_hook("ergodax", "beartype.beartype")  # before ergodax is imported

import helpers
from ergodax.base.compiling import drop_programs

hypothesis.settings.register_profile(
    "ergodax",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ergodax")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """All notebooks but the first are slow; what takes minutes begins first, lest it end last."""
    for item in items:
        if item.path.suffix == ".ipynb" and not item.path.name.startswith("01"):
            item.add_marker("slow")
    long = ("test_public_results", "test_docs")
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.path.stem not in long)


# Pages and programs do as users may.
_MIXED = ("tests", "notebooks")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Neither types nor ranks are mixed unawares, but in `_MIXED`."""
    strict = item.path.parent.name not in _MIXED
    jax.config.update("jax_numpy_dtype_promotion", "strict" if strict else "standard")
    jax.config.update("jax_numpy_rank_promotion", "raise" if strict else "allow")


@pytest.fixture(autouse=True)
def bounded_mappings():
    """Forgets compiled programs before they hold much memory, and long before they are too many."""
    yield
    drop_programs(5_000)


@pytest.fixture(scope="module")
def optimised():
    """Compiles as users do: for modules where optimisation could do harm."""
    # JAX would use a program again that was compiled the other way.
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture(scope="session")
def golden():
    """Golden values by case and name: `golden["pd"]["T"]`."""
    values = {}
    with np.load(Path(__file__).parent / "data" / "golden.npz") as archive:
        for key in archive.files:
            case, name = key.split("/")
            values.setdefault(case, {})[name] = archive[key]
    return values


@pytest.fixture(scope="session")
def wrapped_games(golden):
    """The wrapped games of the golden cases, by name."""
    return {case: helpers.golden_game(golden, case) for case in golden}


@pytest.fixture(scope="session")
def pd(wrapped_games):
    return wrapped_games["pd"]


@pytest.fixture(scope="session")
def random(wrapped_games):
    return wrapped_games["random"]


@pytest.fixture(scope="session")
def mixed(wrapped_games):
    return wrapped_games["mixed"]


@pytest.fixture(scope="session")
def actor_critic(wrapped_games):
    return wrapped_games["actor_critic"]
