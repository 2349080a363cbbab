"""`ergodax info`: versions, devices and precision."""

import argparse
import os

from ..base.version import __version__
from .output import fail
from .running import find_devices

# What is known to change devices, precision or the number of threads.
_ENVIRONMENT = (
    *("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_NUM_CPU_DEVICES"),
    *("JAX_COMPILATION_CACHE_DIR", "ERGODAX_CACHE"),
    *("XLA_FLAGS", "NPROC", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
)


def add_to(commands) -> None:
    """Adds the command."""
    info = commands.add_parser(
        "info",
        help="print versions, devices and precision",
        description="Prints versions, devices, precision and cores: what a report of a problem "
        "should hold.",
        allow_abbrev=False,
    )
    info.set_defaults(command=_info)


def _info(options: argparse.Namespace, command: str) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import jax

    usable = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count() or 1
    lines = {"ergodax": __version__}
    lines |= {name: version(name) for name in ("jax", "jaxlib", "equinox", "diffrax", "numpy")}
    try:
        lines["numba"] = f"{version('numba')} (large greedy tables)"
    except PackageNotFoundError:
        lines["numba"] = "none (large greedy tables are simulated by XLA)"
    lines["Python"] = platform.python_version()
    lines["platform"] = platform.platform()
    problem = None
    try:
        lines["devices"] = ", ".join(
            f"{device} ({device.device_kind})" for device in find_devices()
        )
    except RuntimeError as error:
        problem, lines["devices"] = error, "none"
    lines["x64"] = "on" if jax.config.read("jax_enable_x64") else "off (float32 by default)"
    lines["cores"] = f"{len(usable(0)) if usable else cores} of {cores} for this process"
    settings = [name for name in _ENVIRONMENT if name in os.environ]
    lines["environment"] = " ".join(f"{name}={os.environ[name]}" for name in settings) or "-"
    for name, value in lines.items():
        print(f"{name:12} {value}")
    return 0 if problem is None else fail(problem, 1)
