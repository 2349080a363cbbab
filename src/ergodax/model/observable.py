"""Observables: functions of the parameters that say what they return."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from .wrapped import WrappedGame


class Observable(eqx.Module):
    """A function of the parameters of all agents, with names for what it returns.

    Attributes:
        function: of one run's parameters.
        names: what it returns: `"parameters"` or `"policy"` of all agents, or `"observable"` for
            anything else; several names are those of the members of a tuple.
    """

    function: Callable[[Any], Any]
    names: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, function: Callable[[Any], Any]) -> "Observable":
        """The observable that a function is; of plain ones `wrapped.policies` is known."""
        if isinstance(function, Observable):
            return function
        known = getattr(function, "__func__", None) is WrappedGame.policies
        return cls(function, ("policy",) if known else ("observable",))

    def __call__(self, params: Any) -> Any:
        """The values at the parameters of one run."""
        return self.function(params)


def named(names: tuple[str, ...], values: Any) -> dict[str, Any]:
    """What an observable returned, or moments of it, by its names."""
    return dict(zip(names, values if len(names) > 1 else (values,), strict=True))


def _identity(params):
    return params


def _with_policies(wrapped, params):
    with jax.numpy_dtype_promotion("standard"):  # simulated in another precision than the learners'
        return params, wrapped.policies(params)


PARAMETERS = Observable(_identity, ("parameters",))


def parameters_and_policies(wrapped: WrappedGame) -> Observable:
    """Parameters and policies of all agents."""
    # A partial is a pytree, so that one compiled simulation serves all games.
    return Observable(eqx.Partial(_with_policies, wrapped), ("parameters", "policy"))
