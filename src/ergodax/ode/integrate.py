"""Solves dx/dt = F(x) by steps with error control: the one place that calls diffrax to solve."""

from collections.abc import Callable
from typing import Any

import diffrax

from ..base.checks import check_count, check_number, check_type

MAX_STEPS = 16**4


def check_solver(
    rtol: Any,
    atol: Any,
    max_steps: Any = None,
    solver: Any = None,
    adjoint: Any = None,
) -> tuple[Any, Any]:
    """Checks how an ODE shall be solved; returns both tolerances, as floats or traced.

    Raises:
        ValueError: if one is not positive, or another argument does not fit.
    """
    if max_steps is not None:
        check_count("max_steps", max_steps)
    if solver is not None:
        kind = diffrax.AbstractSolver
        check_type("solver", solver, kind, "a solver of diffrax, e.g. diffrax.Tsit5()")
    if adjoint is not None:
        check_type("adjoint", adjoint, diffrax.AbstractAdjoint, "an adjoint of diffrax")
    return check_number("rtol", rtol, "(0, inf)"), check_number("atol", atol, "(0, inf)")


def integrate(
    field: Callable,
    start: Any,
    end: Any,
    args: Any = None,
    *,
    saveat: diffrax.SaveAt,
    rtol: Any,
    atol: Any,
    begin: Any = 0.0,
    first_step: Any = None,
    solver: diffrax.AbstractSolver | None = None,
    controller: diffrax.AbstractStepSizeController | None = None,
    event: diffrax.Event | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = MAX_STEPS,
) -> diffrax.Solution:
    """The solution of dx/dt = field(x, args) from a start; never raises, see its `result`.

    Args:
        field: a function of `(x, args)` that returns dx/dt, structured like x.
        start: x at the time `begin`.
        end: until when.
        args: a pytree that the field depends on.
        saveat: what is kept.
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        begin: from when.
        first_step: length of the first step. Choosing it compiles the field twice more.
        solver: a diffrax solver; `Tsit5` by default.
        controller: of the steps' lengths, instead of one by the tolerances.
        event: ends the solution early.
        adjoint: how its steps are differentiated; in forward mode by default.
        max_steps: the largest number of steps.
    """
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, args: field(x, args)),
        diffrax.Tsit5() if solver is None else solver,
        t0=begin,
        t1=end,
        dt0=first_step,
        y0=start,
        args=args,
        saveat=saveat,
        stepsize_controller=controller or diffrax.PIDController(rtol=rtol, atol=atol),
        event=event,
        adjoint=diffrax.ForwardMode() if adjoint is None else adjoint,
        max_steps=max_steps,
        throw=False,
    )
