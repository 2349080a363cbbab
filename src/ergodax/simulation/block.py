"""A block of simulation: many steps of many runs on all devices, as one compiled program.

Every device carries its own runs, and nothing passes between devices: a run's numbers do not depend
on how many there are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from ..model.wrapped import WrappedGame
from .lanes import batch, from_lanes, to_lanes
from .moments import Moments, of_groups
from .step import Ensemble, Run, cumulative_law, draw, draw_actions, step, words_of
from .streams import uniforms

AXIS = "runs"


class Setting(eqx.Module):
    """What stays the same from block to block.

    Attributes:
        wrapped: the game and its learners; with a leading axis of runs on every array if
            `per_run`.
        inverse_scale: 1/N.
        observe: what to report, a function of one run's parameters; its arrays, if it holds any,
            have a leading axis of runs too if `per_run`.
        compensated: whether additions to the parameters are compensated.
        per_run: whether every run has a wrapped game of its own.
        keep_runs: whether the observable of every run is reported.
        group: runs whose moments are taken together.
        mesh: the devices.
    """

    wrapped: WrappedGame
    inverse_scale: Float[Array, ""]
    observe: Callable[[Any], Any]
    compensated: bool = eqx.field(static=True)
    per_run: bool = eqx.field(static=True)
    keep_runs: bool = eqx.field(static=True)
    group: int = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)


class Record(NamedTuple):
    """What is reported of a stretch of steps.

    Attributes:
        moments: moments of the observable, one entry per group of runs; `total` holds the visits
            of states `[S]`, the summed rewards `[n]` and the number of runs no longer finite.
        values: the observable of every run, each leaf `[R, ...]`; None unless kept.
    """

    moments: Moments
    values: Any


@eqx.filter_jit
def start(setting: Setting, keys: UInt32[Array, "R 2"], params0: Any, law: Float[Array, "R S"]):
    """The runs before their first step; their random numbers are those of step 0.

    Args:
        setting: what is simulated.
        keys: key words of the runs.
        params0: initial parameters, each leaf `[R, ...]`.
        law: law of every run's first state.
    """

    def of_run(key, params, law, own):
        wrapped = own if setting.per_run else setting.wrapped
        draws = uniforms(key, words_of(0), wrapped.game.num_agents + 1, law.dtype)
        state = draw(law, draws[-1])
        joint_action = None
        if wrapped.needs_next_action:
            joint_action = draw_actions(wrapped.learners, params, state, draws)
        compensation = jax.tree.map(jnp.zeros_like, params) if setting.compensated else None
        return Ensemble(params, compensation, state, joint_action)

    own = setting.wrapped if setting.per_run else ()
    return from_lanes(batch(of_run, *to_lanes((keys, params0, law, own))))


# On processors with AVX-512 the compiler would use only half of every vector register.
_COMPILER: dict[str, Any] = {"compiler_options": {"xla_cpu_prefer_vector_width": 512}}


@eqx.filter_jit(**_COMPILER)
def advance(
    setting: Setting,
    keys: UInt32[Array, "R 2"],
    ensemble: Ensemble,
    live: Bool[Array, " R"],
    counter: tuple[UInt32[Array, ""], UInt32[Array, ""]],
    lengths: Int[Array, " B"],
) -> tuple[Ensemble, Record]:
    """Advances all runs over consecutive stretches of steps, reporting at the end of each.

    Args:
        setting: what is simulated.
        keys: key words of the runs.
        ensemble: where the runs stand.
        live: `[R]`, which runs count.
        counter: words of the number of steps already taken.
        lengths: steps of each stretch.

    Returns:
        Where the runs stand at the end, and the records with a leading axis `[B]`.
    """
    wrapped, static = eqx.partition(setting.wrapped, eqx.is_array)
    cumulative = cumulative_law(setting.wrapped.game.probabilities)
    observed, unobserved = eqx.partition(setting.observe, eqx.is_array)
    by_run, everywhere = PartitionSpec(AXIS), PartitionSpec()

    def of_device(keys, ensemble, live, tables, observed, counter, lengths, inverse_scale):
        keys, ensemble = to_lanes((keys, ensemble))
        own = to_lanes(tables) if setting.per_run else ()

        def one_step(_, carry):
            (low, high), run = carry
            low = low + 1
            words = low, high + (low == 0)

            def of_run(key, run, own):
                wrapped, cumulative = own if setting.per_run else tables
                wrapped = eqx.combine(wrapped, static)
                return step(wrapped, cumulative, inverse_scale, key, words, run)

            return words, batch(of_run, keys, run, own)

        def stretch(carry, steps):
            words, ensemble = carry
            run = _before_first_sum(setting, ensemble, live.shape[0])
            words, run = jax.lax.fori_loop(0, steps, one_step, (words, run))
            return (words, run.standing), report(from_lanes(run))

        def report(run):
            def observe(observed, params):
                return eqx.combine(observed, unobserved)(params)

            axes = (0 if setting.per_run else None, 0)
            values = jax.vmap(observe, in_axes=axes)(observed, run.standing.params)
            dtype = jnp.result_type(float)
            leaves = jax.tree.leaves(run.standing.params)
            finite = [jnp.isfinite(leaf).reshape(live.shape[0], -1).all(axis=1) for leaf in leaves]
            lost = ~jnp.stack(finite).all(axis=0)
            total = (run.visits.astype(dtype), run.rewards.astype(dtype), lost.astype(dtype))
            floats = jax.tree.map(lambda v: v.astype(jnp.result_type(v, inverse_scale)), values)
            moments = of_groups(floats, total, live, setting.group)
            return Record(moments, values if setting.keep_runs else None)

        (_, ensemble), records = jax.lax.scan(stretch, (counter, ensemble), lengths)
        return from_lanes(ensemble), records

    return jax.shard_map(
        of_device,
        mesh=setting.mesh,
        in_specs=(
            *(by_run,) * 3,
            *(by_run if setting.per_run else everywhere,) * 2,
            *(everywhere,) * 3,
        ),
        out_specs=(by_run, PartitionSpec(None, AXIS)),
        check_vma=False,
    )(
        keys,
        ensemble,
        live,
        (wrapped, cumulative),
        observed,
        counter,
        lengths,
        setting.inverse_scale,
    )


def _before_first_sum(setting: Setting, ensemble, runs: int):
    """The runs with nothing summed yet, as lanes; sums are in float64 where there is any."""
    dtype, game = jnp.result_type(float), setting.wrapped.game
    rewards = jnp.zeros((runs, game.num_agents), dtype)
    lost = rewards if dtype == jnp.float32 else None
    visits, rewards, lost = to_lanes((jnp.zeros((runs, game.num_states), jnp.int32), rewards, lost))
    return Run(ensemble, visits, rewards, lost)
