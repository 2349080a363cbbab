"""The rescaled stochastic process: X_{k+1} = X_k + f(X_k, s_k, a_k, s_{k+1}) / N, in batches.

One trajectory step is written for one run: draw every agent's action from one uniform number by the
inverse of its policy's distribution function, draw the successor the same way, add every agent's
increment. It is vmapped over the runs of a batch and looped over the steps between report times;
the host drives blocks of it, batch by batch.

In float32 an increment f/N far below the spacing of numbers around X would be lost, so parameters
and summed rewards carry a compensation (Kahan 1965). Float64 needs none.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Real
from tqdm import tqdm

from .clock import check_scale, check_times, steps_at
from .kernel import Ensemble, Run, cumulative_law, draw, draw_actions, step, words_of
from .results import RESULTS
from .streams import run_keys, uniforms
from .wrapped import WrappedGame

_BLOCK = 32


def _parameters(params):
    return params


class Simulation(eqx.Module):
    """An ensemble of simulated learning trajectories.

    Attributes:
        ts: the times really reported, `k / scale`, `[K]`, in unscaled steps.
        steps: the steps k taken by then, `[K]`.
        mean: mean over runs of the observable (by default the parameters), each leaf `[K, ...]`.
        variance: its variance over runs (divisor runs - 1), each leaf `[K, ...]`.
        values: the observable of every run, each leaf `[R, K, ...]`; None unless `keep_runs`.
        state_frequency: share of steps spent in each state since the previous time, mean over runs,
            `[K, S]`; NaN where no step was taken.
        rewards: mean reward per step since the previous time, mean over runs, `[K, n]`; NaN where
            no step was taken.
        final: where all runs stand after the last step.
        scale: N.
        runs: R.
        compile_seconds: time spent compiling.
        run_seconds: time spent simulating.
        result: one of `RESULTS`.
    """

    ts: Float[np.ndarray, " K"]
    steps: Int[np.ndarray, " K"]
    mean: Any
    variance: Any
    values: Any
    state_frequency: Float[np.ndarray, "K S"]
    rewards: Float[np.ndarray, "K n"]
    final: Ensemble
    scale: float
    runs: int
    compile_seconds: float
    run_seconds: float
    result: RESULTS

    @property
    def standard_error(self) -> Any:
        """Standard error of `mean`, each leaf `[K, ...]`."""
        return jax.tree.map(lambda v: np.sqrt(v / self.runs), self.variance)

    @property
    def steps_per_second(self) -> float:
        """Steps of single trajectories per second, compilation apart."""
        return self.runs * int(self.steps[-1]) / self.run_seconds


def simulate(
    wrapped: WrappedGame,
    params0: Any,
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    scale: Real[ArrayLike, ""] = 1,
    runs: int | np.integer = 1,
    key: Array,
    initial_state: int | np.integer | str | None = None,
    observe: Callable[[Any], Any] = _parameters,
    keep_runs: bool = False,
    dtype: Any = None,
    batch_size: int | np.integer = 512,
    progress: bool = False,
) -> Simulation:
    """Simulates independent runs of the rescaled learning process.

    Time t is step `floor(scale t)`. A run's random numbers depend on `key`, its number and the step
    alone: not on `runs`, `batch_size` or `ts`. They have 23 bits in either precision: an action
    of probability below 6e-8 may never be drawn.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0, the same in every run.
        ts: times at which to report, increasing, in unscaled steps; may start at 0.
        scale: N: updates are N times smaller and N times as many. 1 is the original algorithm.
        runs: number of independent runs R.
        key: a JAX random key.
        initial_state: the first state, by number or name; drawn from the game's initial law by
            default.
        observe: what to report, a function of one run's parameters, e.g. `wrapped.policies`; the
            parameters themselves by default. A function compiles once: define it outside loops.
        keep_runs: also return the observable of every run.
        dtype: float32 or float64; that of `params0` by default. Float32 additions are compensated.
        batch_size: runs simulated together; a few hundred suit a CPU's cache.
        progress: show a progress bar.

    Returns:
        The ensemble's moments, state frequencies and rewards at `ts`, and where its runs ended.

    Raises:
        ValueError: if an argument does not fit.

    Warns:
        UserWarning: if runs became infinite or NaN; `result` says so too.
    """
    check_times(ts)
    wrapped.check_structure(params0)
    wrapped.check_finite(params0)
    scale = check_scale(scale)
    steps, times = steps_at(ts, scale)
    intervals = np.diff(steps, prepend=0)
    if intervals.max() >= 2**31:
        raise ValueError(
            f"{intervals.max()} steps between two report times are too many (2^31 - 1 at most); "
            "add report times."
        )
    runs, batch_size = _check_count("runs", runs), _check_count("batch_size", batch_size)
    dtype = _check_dtype(dtype, params0)
    law = _initial_law(wrapped, initial_state)
    wrapped, params0, law, inverse_scale = _cast(
        (wrapped, params0, law, jnp.asarray(1 / scale)), dtype
    )

    cumulative = cumulative_law(wrapped.game.probabilities)

    # Batches of one width, in multiples of 16: whole vector registers round every run alike.
    width = min(16 * -(-batch_size // 16), 16 * -(-runs // 16))
    # Blocks of one length, filled up with empty intervals.
    block = min(len(steps), _BLOCK)
    blocks = np.pad(intervals, (0, -len(steps) % block)).astype(np.int32).reshape(-1, block)

    def start(first):
        keys = run_keys(key, jnp.arange(first, first + width, dtype=jnp.uint32))
        return keys, _start(wrapped, params0, keys, law)

    def advance(ensemble, keys, step, lengths, live):
        fixed = (wrapped, cumulative, observe, keys, inverse_scale, np.int32(live), keep_runs)
        return _advance(ensemble, words_of(step), lengths, *fixed)

    before = time.perf_counter()
    keys, ensemble = start(0)
    # A block of empty intervals takes as long as its compilation.
    jax.block_until_ready(advance(ensemble, keys, 0, 0 * blocks[0], width))
    compiled = time.perf_counter()

    moments: Any = None
    nonfinite = np.zeros(len(steps), dtype=int)
    kept, finals = [], []
    total = runs * int(steps[-1])
    with tqdm(total=total, unit="step", unit_scale=True, disable=not progress) as bar:
        for first in range(0, runs, width):
            live = min(width, runs - first)
            keys, ensemble = start(first)
            step, records = 0, []
            for lengths in blocks:
                ensemble, record = advance(ensemble, keys, step, lengths, live)
                records.append(jax.device_get(record))
                taken = int(lengths.sum(dtype=np.int64))
                step += taken
                bar.update(live * taken)
            record = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(steps)], *records)
            with np.errstate(invalid="ignore", over="ignore"):
                moments = _merge(moments, record.moments)
            nonfinite += record.nonfinite
            if keep_runs:
                values = jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 1), record.values)
                kept.append(_first(live, values))
            finals.append(_first(live, jax.device_get(ensemble)))
    finished = time.perf_counter()

    result: Any = RESULTS.successful
    if nonfinite[-1]:
        result = RESULTS.nonfinite
        k = int(np.argmax(nonfinite > 0))
        warnings.warn(
            f"{nonfinite[-1]} of {runs} runs became infinite or NaN, the first by t = "
            f"{times[k]:.6g}: are the updates too large for their scale?",
            stacklevel=2,
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        return Simulation(
            ts=times,
            steps=steps,
            mean=moments.mean,
            variance=jax.tree.map(lambda square: square / (runs - 1.0), moments.square),
            values=jax.tree.map(lambda *parts: np.concatenate(parts), *kept) if keep_runs else None,
            state_frequency=moments.visits / (runs * intervals[:, None]),
            rewards=moments.rewards / (runs * intervals[:, None]),
            final=jax.tree.map(lambda *parts: np.concatenate(parts), *finals),
            scale=scale,
            runs=runs,
            compile_seconds=compiled - before,
            run_seconds=finished - compiled,
            result=result,
        )


class _Moments(NamedTuple):
    """Sums over runs at every report time, mergeable across batches."""

    count: Any
    origin: Any
    mean: Any
    square: Any
    visits: Any
    rewards: Any


class _Record(NamedTuple):
    moments: _Moments
    nonfinite: Any
    values: Any


@eqx.filter_jit
def _start(wrapped, params0, keys, law):
    """The runs of a batch before their first step; their draws are those of step 0."""

    def start(key):
        draws = uniforms(key, words_of(0), wrapped.game.num_agents + 1, law.dtype)
        state = draw(law, draws[-1])
        joint_action = None
        if wrapped.needs_next_action:
            joint_action = draw_actions(wrapped.learners, params0, state, draws)
        single = law.dtype == jnp.float32
        compensation = jax.tree.map(jnp.zeros_like, params0) if single else None
        return Ensemble(params0, compensation, state, joint_action)

    return jax.vmap(start)(keys)


@eqx.filter_jit
def _advance(
    ensemble,
    counter,
    intervals,
    wrapped,
    cumulative,
    observe,
    keys,
    inverse_scale,
    live,
    keep_runs,
):
    """Advances a batch over consecutive intervals of steps, reporting at the end of each."""
    game, dtype = wrapped.game, inverse_scale.dtype
    is_live = jnp.arange(keys.shape[0]) < live

    def sum_live(leaf):
        return jnp.sum(jnp.where(is_live.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0), axis=0)

    def next_words(words):
        low = words[0] + 1
        return low, words[1] + (low == 0)

    def one_step(_, carry):
        words, run = carry
        words = next_words(words)

        def of_run(key, run):
            return step(wrapped, cumulative, inverse_scale, key, words, run)

        return words, jax.vmap(of_run)(keys, run)

    def interval(carry, steps):
        words, ensemble = carry
        lanes = keys.shape[0]
        sums = jnp.zeros((lanes, game.num_agents), dtype)
        run = Run(
            ensemble,
            jnp.zeros((lanes, game.num_states), jnp.int32),
            sums,
            None if ensemble.compensation is None else sums,
        )
        words, run = jax.lax.fori_loop(0, steps, one_step, (words, run))
        values = jax.vmap(observe)(run.standing.params)
        # Distances from the first run, whose sums round less than those of the values themselves.
        observed = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(leaf, dtype)), values)
        origin = _first(1, observed)
        distances = jax.tree.map(jnp.subtract, observed, origin)
        mean = jax.tree.map(lambda leaf: sum_live(leaf) / live, distances)
        square = jax.tree.map(lambda leaf, m: sum_live((leaf - m) ** 2), distances, mean)
        origin = jax.tree.map(lambda leaf: leaf[0], origin)
        visits, rewards = sum_live(run.visits.astype(dtype)), sum_live(run.rewards)
        finite = jnp.stack(
            [
                jnp.isfinite(leaf).reshape(lanes, -1).all(axis=1)
                for leaf in jax.tree.leaves(run.standing.params)
            ]
        ).all(axis=0)
        record = _Record(
            _Moments(live, origin, mean, square, visits, rewards),
            sum_live(~finite),
            values if keep_runs else None,
        )
        return (words, run.standing), record

    (_, ensemble), records = jax.lax.scan(interval, (counter, ensemble), intervals)
    return ensemble, records


def _merge(a: Any, b: _Moments) -> _Moments:
    """Moments of two groups of runs together (Chan, Golub and LeVeque 1983), in float64."""
    b = jax.tree.map(lambda leaf: leaf.astype(float), b)
    b = b._replace(origin=None, mean=jax.tree.map(np.add, b.origin, b.mean))
    if a is None:
        return b
    count = a.count + b.count

    def share(leaf):
        return (b.count / count).reshape(-1, *(1,) * (leaf.ndim - 1))

    mean = jax.tree.map(lambda x, y: x + share(x) * (y - x), a.mean, b.mean)
    square = jax.tree.map(
        lambda p, q, x, y: p + q + a.count[0] * share(x) * (y - x) ** 2,
        a.square,
        b.square,
        a.mean,
        b.mean,
    )
    return _Moments(count, None, mean, square, a.visits + b.visits, a.rewards + b.rewards)


def _first(count: int, tree):
    return jax.tree.map(lambda leaf: leaf[:count], tree)


def _cast(tree, dtype):
    """The same pytree with all floating-point leaves in one precision."""

    def cast(leaf):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return leaf  # a function, say
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def _check_count(name: str, count) -> int:
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"{name} must be a positive integer; found {count!r}.")
    return int(count)


def _check_dtype(dtype, params0):
    found = jnp.result_type(*jax.tree.leaves(params0)) if dtype is None else dtype
    try:
        found = np.dtype(found)
    except TypeError:
        raise ValueError(f"dtype must be float32 or float64; found {dtype!r}.") from None
    if found not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64; found {found}.")
    if found == jnp.float64 and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            'dtype float64 needs jax.config.update("jax_enable_x64", True) before any computation.'
        )
    return found


def _initial_law(wrapped: WrappedGame, initial_state) -> Float[Array, " S"]:
    game = wrapped.game
    if initial_state is None:
        return game.initial
    if isinstance(initial_state, str):
        if initial_state not in game.state_names:
            raise ValueError(
                f"initial_state {initial_state!r} is not a state; the states are "
                f"{', '.join(game.state_names)}."
            )
        initial_state = game.state_names.index(initial_state)
    if not isinstance(initial_state, int | np.integer) or not 0 <= initial_state < game.num_states:
        raise ValueError(
            f"initial_state must be a state, 0 to {game.num_states - 1}; found {initial_state}."
        )
    return jnp.zeros(game.num_states).at[initial_state].set(1.0)
