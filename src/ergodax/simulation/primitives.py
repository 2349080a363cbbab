"""JAX's operations by what they do with the entries of arrays."""

from collections.abc import Callable

import jax.numpy as jnp

# Calls of other programs, and where these stand.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
}
ELEMENTWISE = frozenset(
    """
    abs add and atan2 cbrt ceil clamp convert_element_type cos div eq erf exp exp2 expm1 floor ge gt
    integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow rem round
    rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sqrt square
    stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)
ALONG_OTHER_AXES = frozenset(
    """
    argmax argmin copy cumlogsumexp cummax cummin cumprod cumsum reduce_and reduce_max reduce_min
    reduce_or reduce_prod reduce_sum squeeze
    """.split()  # noqa: SIM905
)
FOLDS: dict[str, Callable] = {
    "reduce_and": jnp.logical_and,
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
    "reduce_or": jnp.logical_or,
    "reduce_sum": jnp.add,
}
READS = frozenset(("dynamic_slice", "gather"))
SCATTERS = frozenset(("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul"))
