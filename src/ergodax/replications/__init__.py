"""Numbers of published studies, found anew: `replicate(name)` and `ergodax replicate NAME`.

One module per paper, each with a table of published numbers and a function that finds them.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .agreement import Quantity, Replication

# Names with what they are about.
PAPERS = {
    "banchio-skrzypacz": "bids of Q-learners: what a seller earns in two kinds of auction",
    "calvano2020": "pricing by Q-learning in a logit duopoly: Table 1",
    "den-boer": "two-price duopoly: when learnt strategies are equilibria",
    "goll": "Boltzmann Q-learning in the prisoner's dilemma: bifurcations",
    "kaisers-tuyls": "Boltzmann Q-learning in a coordination game: pitchfork",
    "klein2021": "pricing in turns: share of sessions in equilibrium",
}


def replicate(name: str, **options: Any) -> Replication:
    """Finds the numbers of a paper anew.

    Args:
        name: one of `replications.PAPERS`.
        options: what its module's `replicate` takes: `sessions`, `seed`, `progress` where the paper
            simulates, and for "calvano2020" also `grid` and `checkpoint`.

    Returns:
        The numbers beside the published ones, with data and figure.

    Raises:
        ValueError: for an unknown paper, an option that it does not have, or in single precision.

    Example:
        >>> print(ex.replications.replicate("kaisers-tuyls").agrees)
        True
    """
    function = _find(name)
    known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no options"
            raise ValueError(f"{name} has no {option}: {takes}.")
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "numbers are found anew in float64: jax.config.update('jax_enable_x64', True) first."
        )
    return function(**options)


def takes(name: str, option: str) -> bool:
    """Whether the replication of a paper has an option."""
    return option in inspect.signature(_find(name)).parameters


def _find(name: str) -> Callable[..., Replication]:
    if not isinstance(name, str) or name not in PAPERS:
        near = difflib.get_close_matches(str(name), PAPERS, 1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{name!r} is not replicated: {hint}the names are {', '.join(PAPERS)}.")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return module.replicate


__all__ = ["PAPERS", "Quantity", "Replication", "replicate", "takes"]
