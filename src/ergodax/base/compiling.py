"""How to compile what runs for milliseconds: quickly."""

import functools
from typing import Any, cast

import equinox as eqx

# Compiles with little optimisation, in half the time.
quickly_compiled = functools.partial(
    cast(Any, eqx.filter_jit),
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
