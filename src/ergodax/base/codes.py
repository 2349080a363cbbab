"""Result codes: how a computation ended, reported by kernels that cannot raise."""

from typing import Any

import diffrax
import jax
import numpy as np


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """The codes of diffrax and those of learning dynamics."""

    reducible = (
        "The state chain became numerically reducible, so that the stationary distribution is not "
        "defined to working precision."
    )
    interrupted = "The computation was interrupted: what is returned was complete by then."
    resting = (
        "The flow rests on a kink: there the fluctuations are not Gaussian and the bias is of "
        "order 1 / sqrt(N), so that covariance and bias do not hold."
    )
    kinks = (
        "More kinks are crossed than tracked: the flow slides along a kink, or nearly so, and the "
        "theory of fluctuations does not hold; if not, raise max_kinks."
    )
    invalid_policy = (
        "A policy became negative, did not sum to one, or was not a number, so that what followed "
        "is no play of the game."
    )
    unbounded = (
        "An entry of the parameters grew without bound: there is no solution beyond, and no number "
        "of steps helps."
    )
    vanishing = (
        "The drift vanishes only as what is learnt from becomes ever rarer: there is no rest point."
    )
    unreached = (
        "Some runs did not meet their criterion within max_steps steps: they are returned as they "
        "stood then."
    )


def is_one_of(result: Any, *codes: Any) -> bool:
    """Whether a concrete result is one of some codes, told on the host: nothing is compiled."""
    (number,) = jax.device_get(jax.tree.leaves(result))
    return any(np.array_equal(number, code) for code in jax.tree.leaves(codes))
