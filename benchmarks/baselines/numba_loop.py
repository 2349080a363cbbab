"""Simulation of tabular epsilon-softmax Q-learners in a Markov game, as fast as numba gets.

The rescaled process X_{k+1} = X_k + f(X_k, g_k) / N of several Q-learners, each with its own
hyper-parameters, in a game given by a look-up table or a dense kernel. The policy that draws
a_{k+1} reads X_{k+1}. Two kernels, both compiled with the action counts as constants:

* ``"generic"``: any number of agents, states and actions; a few runs are interleaved in the inner
  loop, so that the out-of-order core overlaps their dependency chains.
* ``"lanes"``: two agents, two actions, at most four states, look-up transitions. Sixteen runs side
  by side in straight-line code without indirect addressing (every look-up is a select), which
  LLVM turns into SIMD code. ``variant="auto"`` takes it where it applies.

Each run has its own xoshiro128++ stream, seeded by splitmix64 from (seed, run): its numbers depend
neither on the number of runs nor on the threads, and both kernels use the same ones. One uniform
number per draw: 24 bits in float32, 32 bits in float64. Plain float32 tables lose increments below
half a unit in the last place: use float64 at large scale.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, DTypeLike, NDArray

# No re-association and NaN/inf-free code: rounding tricks and increments stay as written.
FAST = {"nnan", "ninf", "nsz", "arcp", "contract"}
LANES = 16  # runs side by side in the "lanes" kernel: one AVX-512 register of float32
INTERLEAVED = 4  # runs side by side in the "generic" kernel

U32 = np.uint32
U64 = np.uint64
I32 = np.int32
I64 = np.int64
F32 = np.float32
F64 = np.float64


class Simulation(NamedTuple):
    """Ensemble averages of a simulation.

    Attributes:
        times: k / scale of the steps really taken, [K].
        mean: mean table of each agent over the runs, each [K, S, A_i].
        variance: variance over the runs (ddof 0), each [K, S, A_i].
        visits: visits to each state, over all runs, in the interval ending at each time, [K, S].
        seconds: wall time of the run, without compilation.
        compile_seconds: wall time of compilation, 0 if this process had compiled the kernel.
        steps_per_second: joint steps (all agents act once) of all runs per second.
        variant: kernel used, "generic" or "lanes".
    """

    times: NDArray[np.float64]
    mean: tuple[NDArray[np.float64], ...]
    variance: tuple[NDArray[np.float64], ...]
    visits: NDArray[np.int64]
    seconds: float
    compile_seconds: float
    steps_per_second: float
    variant: str


# ----------------------------------------------------------------------------- scalar functions
_C32 = tuple(F32(math.log(2.0) ** k / math.factorial(k)) for k in range(7))
_C64 = tuple(F64(math.log(2.0) ** k / math.factorial(k)) for k in range(13))


@njit(inline="always", fastmath=FAST)
def _exp2_32(x):  # relative error about 2e-7
    x = min(max(x, F32(-126.0)), F32(126.0))
    n = np.floor(x + F32(0.5))
    f = x - n
    p = _C32[6]
    p = p * f + _C32[5]
    p = p * f + _C32[4]
    p = p * f + _C32[3]
    p = p * f + _C32[2]
    p = p * f + _C32[1]
    p = p * f + _C32[0]
    return p * I32((I32(n) + I32(127)) << I32(23)).view(np.float32)


@njit(inline="always", fastmath=FAST)
def _exp2_64(x):  # relative error about 4e-16
    x = min(max(x, F64(-1022.0)), F64(1022.0))
    n = np.floor(x + F64(0.5))
    f = x - n
    p = _C64[12]
    p = p * f + _C64[11]
    p = p * f + _C64[10]
    p = p * f + _C64[9]
    p = p * f + _C64[8]
    p = p * f + _C64[7]
    p = p * f + _C64[6]
    p = p * f + _C64[5]
    p = p * f + _C64[4]
    p = p * f + _C64[3]
    p = p * f + _C64[2]
    p = p * f + _C64[1]
    p = p * f + _C64[0]
    return p * I64((I64(n) + I64(1023)) << I64(52)).view(np.float64)


@njit(inline="always")
def _uniform_32(bits):
    return F32(I32(bits >> U32(8))) * F32(2.0**-24)


@njit(inline="always")
def _uniform_64(bits):
    return F64(bits) * F64(2.0**-32)


@njit(inline="always")
def _rotl(x, k):
    return U32(U32(x << U32(k)) | U32(x >> U32(32 - k)))


@njit(inline="always")
def _xoshiro(r0, r1, r2, r3):
    """One step of xoshiro128++: the draw and the new state."""
    bits = U32(_rotl(U32(r0 + r3), 7) + r0)
    t = U32(r1 << U32(9))
    r2 = U32(r2 ^ r0)
    r3 = U32(r3 ^ r1)
    r1 = U32(r1 ^ r2)
    r0 = U32(r0 ^ r3)
    r2 = U32(r2 ^ t)
    r3 = _rotl(r3, 11)
    return bits, r0, r1, r2, r3


@njit(inline="always")
def _splitmix(z):
    z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


@njit
def _seed_lanes(state, seed, first, lanes):
    """Fills rows 0 to 3 of ``state`` [rows * lanes] for the runs first, first + 1, ..."""
    for lane in range(lanes):
        for half in range(2):
            count = U64(2) * U64(first + lane) + U64(half + 1)
            z = _splitmix(_splitmix(U64(seed)) + count * U64(0x9E3779B97F4A7C15))
            state[(2 * half) * lanes + lane] = U32(z & U64(0xFFFFFFFF))
            state[(2 * half + 1) * lanes + lane] = U32(z >> U64(32))


# ------------------------------------------------------------------------------ generic kernel
@cache
def _generic_kernel(
    actions: tuple[int, ...], is_dense: bool, is_greedy: bool, name: str
) -> Callable[..., None]:
    """Compiles the kernel for any game with these action counts."""
    real = np.dtype(name).type
    exp2 = _exp2_32 if name == "float32" else _exp2_64
    uniform = _uniform_32 if name == "float32" else _uniform_64
    agents = len(actions)
    widest = max(actions)
    lanes = INTERLEAVED
    one = real(1.0)

    @njit(inline="always", fastmath=FAST)
    def choose(q, row, count, draw, inv_tau, eps, scratch):
        """Own action by inverse CDF of (1 - eps) softmax + eps / count; inv_tau = 1/(tau ln 2)."""
        if count == 1:
            return 0
        share = eps / real(count)
        if count == 2:  # 1 iff draw >= (1 - eps) / (1 + E) + eps / 2, without a division
            ratio = exp2((q[row + 1] - q[row]) * inv_tau)
            return 1 if (draw - share) * (one + ratio) >= one - eps else 0
        top = q[row]
        for b in range(1, count):
            top = max(top, q[row + b])
        total = real(0.0)
        for b in range(count):
            scratch[b] = exp2((q[row + b] - top) * inv_tau)
        for b in range(count):
            total += scratch[b]
        level = draw * total
        below = real(0.0)
        action = 0
        for b in range(count - 1):
            below += (one - eps) * scratch[b] + share * total
            action += 1 if below <= level else 0
        return action

    @njit(inline="always")
    def successor(table, cdf, joint, states, draw):
        if not is_dense:
            return I64(table[joint])
        start = joint * states
        if states <= 16:
            t = 0
            for j in range(states - 1):
                t += 1 if cdf[start + j] <= draw else 0
            return t
        low = 0
        high = states - 1
        while low < high:
            middle = (low + high) >> 1
            if cdf[start + middle] <= draw:
                low = middle + 1
            else:
                high = middle
        return low

    @njit(inline="always")
    def rescan(q, row, count):
        best = 0
        for b in range(1, count):
            if q[row + b] > q[row + best]:
                best = b
        return best

    @njit(fastmath=FAST)
    def advance_greedy(
        q, best, rng, where, visits, steps, count, states, table, cdf, rewards, hyper
    ):
        """As ``advance``, epsilon-greedy; ``best`` remembers the best action of every row."""
        entry = np.empty(agents, np.int64)
        rows = np.empty(agents, np.int64)
        size = q.shape[0] // lanes
        for _ in range(steps):
            for lane in range(count):
                r0 = rng[lane]
                r1 = rng[lanes + lane]
                r2 = rng[2 * lanes + lane]
                r3 = rng[3 * lanes + lane]
                s = where[lane]
                visits[s] += 1
                joint = s
                offset = lane * size
                for i in range(agents):
                    width = actions[i]
                    bits, r0, r1, r2, r3 = _xoshiro(r0, r1, r2, r3)
                    rows[i] = (lane * agents + i) * states
                    draw = uniform(bits)
                    if draw < hyper[3, i]:
                        a = min(width - 1, I64(draw / hyper[3, i] * width))
                    else:
                        a = I64(best[rows[i] + s])
                    entry[i] = a
                    joint = joint * width + a
                draw = real(0.0)
                if is_dense:
                    bits, r0, r1, r2, r3 = _xoshiro(r0, r1, r2, r3)
                    draw = uniform(bits)
                t = successor(table, cdf, joint, states, draw)
                offset = lane * size
                for i in range(agents):
                    width = actions[i]
                    here = offset + s * width
                    a = entry[i]
                    old = q[here + a]
                    top = q[offset + t * width + I64(best[rows[i] + t])]
                    gain = rewards[joint * agents + i] + hyper[1, i] * top - old
                    new = old + hyper[0, i] * gain
                    q[here + a] = new
                    known = I64(best[rows[i] + s])
                    if a == known:
                        if new < old:
                            best[rows[i] + s] = rescan(q, here, width)
                    elif new > q[here + known]:
                        best[rows[i] + s] = a
                    offset += states * width
                where[lane] = t
                rng[lane] = r0
                rng[lanes + lane] = r1
                rng[2 * lanes + lane] = r2
                rng[3 * lanes + lane] = r3

    @njit(fastmath=FAST)
    def advance(q, best, rng, where, visits, steps, count, states, table, cdf, rewards, hyper):
        """Moves ``count`` interleaved runs on by ``steps`` steps."""
        scratch = np.empty(widest, real)
        entry = np.empty(agents, np.int64)
        size = q.shape[0] // lanes
        for _ in range(steps):
            for lane in range(count):
                r0 = rng[lane]
                r1 = rng[lanes + lane]
                r2 = rng[2 * lanes + lane]
                r3 = rng[3 * lanes + lane]
                s = where[lane]
                visits[s] += 1
                joint = s
                offset = lane * size
                for i in range(agents):
                    width = actions[i]
                    bits, r0, r1, r2, r3 = _xoshiro(r0, r1, r2, r3)
                    row = offset + s * width
                    a = choose(q, row, width, uniform(bits), hyper[2, i], hyper[3, i], scratch)
                    entry[i] = row + a
                    joint = joint * width + a
                    offset += states * width
                draw = real(0.0)
                if is_dense:
                    bits, r0, r1, r2, r3 = _xoshiro(r0, r1, r2, r3)
                    draw = uniform(bits)
                t = successor(table, cdf, joint, states, draw)
                offset = lane * size
                for i in range(agents):
                    width = actions[i]
                    row = offset + t * width
                    top = q[row]
                    for b in range(1, width):
                        top = max(top, q[row + b])
                    e = entry[i]
                    old = q[e]
                    gain = rewards[joint * agents + i] + hyper[1, i] * top - old
                    q[e] = old + hyper[0, i] * gain
                    offset += states * width
                where[lane] = t
                rng[lane] = r0
                rng[lanes + lane] = r1
                rng[2 * lanes + lane] = r2
                rng[3 * lanes + lane] = r3

    move = advance_greedy if is_greedy else advance

    @njit(parallel=True)
    def drive(x0, s0, saves, runs, seed, table, cdf, rewards, hyper, sums, squares, visits):
        groups = sums.shape[0]
        states = visits.shape[2]
        size = x0.shape[0]
        blocks = (runs + lanes - 1) // lanes
        for g in prange(groups):
            q = np.empty(lanes * size, real)
            best = np.empty(lanes * agents * states if is_greedy else 1, np.int8)
            rng = np.empty(4 * lanes, np.uint32)
            where = np.empty(lanes, np.int64)
            seen = np.empty(states, np.int64)
            for block in range(g, blocks, groups):
                count = min(lanes, runs - block * lanes)
                _seed_lanes(rng, seed, block * lanes, lanes)
                for lane in range(lanes):
                    where[lane] = s0
                    for e in range(size):
                        q[lane * size + e] = x0[e]
                    if is_greedy:
                        row = lane * size
                        for i in range(agents):
                            for s in range(states):
                                best[(lane * agents + i) * states + s] = rescan(q, row, actions[i])
                                row += actions[i]
                done = 0
                for j in range(saves.shape[0]):
                    for s in range(states):
                        seen[s] = 0
                    move(
                        q, best, rng, where, seen, saves[j] - done, count, states,
                        table, cdf, rewards, hyper,
                    )  # fmt: skip
                    done = saves[j]
                    for s in range(states):
                        visits[g, j, s] += seen[s]
                    for lane in range(count):
                        for e in range(size):
                            change = F64(q[lane * size + e]) - F64(x0[e])
                            sums[g, j, e] += change
                            squares[g, j, e] += change * change

    return drive


# -------------------------------------------------------------------------------- lanes kernel
@cache
def _lanes_kernel(name: str) -> Callable[..., None]:
    """Compiles the SIMD kernel for 2 agents, 2 actions, up to 4 states, look-up transitions."""
    real = np.dtype(name).type
    exp2 = _exp2_32 if name == "float32" else _exp2_64
    uniform = _uniform_32 if name == "float32" else _uniform_64
    n = LANES
    one = real(1.0)
    half = real(0.5)

    # Rows of w (n lanes each): 0-7 Q of agent 0 at 2 s + a, 8-15 Q of agent 1, 16-19 both agents'
    # rows at the current state. Rows of v: 0-3 generator, 4 state, 5 visits, 8 bits a state.
    @njit(fastmath=FAST)
    def advance(w, v, steps, rewards, packed, hyper):
        alpha_a, alpha_b = hyper[0, 0], hyper[0, 1]
        gamma_a, gamma_b = hyper[1, 0], hyper[1, 1]
        inv_tau_a, inv_tau_b = hyper[2, 0], hyper[2, 1]
        low_a, low_b = half * hyper[3, 0], half * hyper[3, 1]
        high_a, high_b = one - hyper[3, 0], one - hyper[3, 1]
        for _ in range(steps):
            for j in range(n):
                r0, r1, r2, r3 = v[j], v[n + j], v[2 * n + j], v[3 * n + j]
                s = v[4 * n + j]
                bits, r0, r1, r2, r3 = _xoshiro(r0, r1, r2, r3)
                draw_a = uniform(bits)
                bits, r0, r1, r2, r3 = _xoshiro(r0, r1, r2, r3)
                draw_b = uniform(bits)
                v[j] = r0
                v[n + j] = r1
                v[2 * n + j] = r2
                v[3 * n + j] = r3

                # Actions: 1 iff draw >= (1 - eps) / (1 + exp((q1 - q0) / tau)) + eps / 2.
                qa0, qa1 = w[16 * n + j], w[17 * n + j]
                qb0, qb1 = w[18 * n + j], w[19 * n + j]
                ratio_a = exp2((qa1 - qa0) * inv_tau_a)
                ratio_b = exp2((qb1 - qb0) * inv_tau_b)
                a = U32(1) if (draw_a - low_a) * (one + ratio_a) >= high_a else U32(0)
                b = U32(1) if (draw_b - low_b) * (one + ratio_b) >= high_b else U32(0)

                # Successor from 16 two-bit fields of one word, rewards by a chain of selects.
                joint = U32(U32(s << U32(2)) | U32(a << U32(1)) | b)
                t = U32(U32(packed >> U32(joint << U32(1))) & U32(3))
                v[4 * n + j] = t
                v[5 * n + j] = U32(v[5 * n + j] + U32(U32(1) << U32(s << U32(3))))
                reward_a = rewards[0]
                reward_b = rewards[1]
                for e in range(1, 16):
                    reward_a = rewards[2 * e] if joint == U32(e) else reward_a
                    reward_b = rewards[2 * e + 1] if joint == U32(e) else reward_b

                a0, a1, a2, a3 = w[j], w[n + j], w[2 * n + j], w[3 * n + j]
                a4, a5, a6, a7 = w[4 * n + j], w[5 * n + j], w[6 * n + j], w[7 * n + j]
                b0, b1, b2, b3 = w[8 * n + j], w[9 * n + j], w[10 * n + j], w[11 * n + j]
                b4, b5, b6, b7 = w[12 * n + j], w[13 * n + j], w[14 * n + j], w[15 * n + j]
                bit0 = U32(t & U32(1)) != U32(0)
                bit1 = U32(t & U32(2)) != U32(0)
                x = a2 if bit0 else a0
                y = a6 if bit0 else a4
                next_a0 = y if bit1 else x
                x = a3 if bit0 else a1
                y = a7 if bit0 else a5
                next_a1 = y if bit1 else x
                x = b2 if bit0 else b0
                y = b6 if bit0 else b4
                next_b0 = y if bit1 else x
                x = b3 if bit0 else b1
                y = b7 if bit0 else b5
                next_b1 = y if bit1 else x

                old_a = qa1 if a == U32(1) else qa0
                old_b = qb1 if b == U32(1) else qb0
                new_a = old_a + alpha_a * (reward_a + gamma_a * max(next_a0, next_a1) - old_a)
                new_b = old_b + alpha_b * (reward_b + gamma_b * max(next_b0, next_b1) - old_b)

                at_a = U32(U32(s << U32(1)) | a)
                at_b = U32(U32(s << U32(1)) | b)
                w[j] = new_a if at_a == U32(0) else a0
                w[n + j] = new_a if at_a == U32(1) else a1
                w[2 * n + j] = new_a if at_a == U32(2) else a2
                w[3 * n + j] = new_a if at_a == U32(3) else a3
                w[4 * n + j] = new_a if at_a == U32(4) else a4
                w[5 * n + j] = new_a if at_a == U32(5) else a5
                w[6 * n + j] = new_a if at_a == U32(6) else a6
                w[7 * n + j] = new_a if at_a == U32(7) else a7
                w[8 * n + j] = new_b if at_b == U32(0) else b0
                w[9 * n + j] = new_b if at_b == U32(1) else b1
                w[10 * n + j] = new_b if at_b == U32(2) else b2
                w[11 * n + j] = new_b if at_b == U32(3) else b3
                w[12 * n + j] = new_b if at_b == U32(4) else b4
                w[13 * n + j] = new_b if at_b == U32(5) else b5
                w[14 * n + j] = new_b if at_b == U32(6) else b6
                w[15 * n + j] = new_b if at_b == U32(7) else b7
                t0 = U32(t << U32(1))
                t1 = U32(t0 | U32(1))
                w[16 * n + j] = new_a if at_a == t0 else next_a0
                w[17 * n + j] = new_a if at_a == t1 else next_a1
                w[18 * n + j] = new_b if at_b == t0 else next_b0
                w[19 * n + j] = new_b if at_b == t1 else next_b1

    @njit(parallel=True)
    def drive(x0, s0, saves, runs, seed, packed, rewards, hyper, sums, squares, visits):
        groups = sums.shape[0]
        states = visits.shape[2]
        blocks = (runs + n - 1) // n
        for g in prange(groups):
            w = np.zeros(20 * n, real)
            v = np.zeros(6 * n, np.uint32)
            for block in range(g, blocks, groups):
                count = min(n, runs - block * n)
                _seed_lanes(v, seed, block * n, n)
                for j in range(n):
                    v[4 * n + j] = s0
                    for e in range(2 * states):
                        w[e * n + j] = x0[e]
                        w[(8 + e) * n + j] = x0[2 * states + e]
                    for b in range(2):
                        w[(16 + b) * n + j] = x0[2 * s0 + b]
                        w[(18 + b) * n + j] = x0[2 * (states + s0) + b]
                done = 0
                for k in range(saves.shape[0]):
                    while done < saves[k]:
                        steps = min(255, saves[k] - done)  # the visit counters have 8 bits
                        for j in range(n):
                            v[5 * n + j] = 0
                        advance(w, v, steps, rewards, packed, hyper)
                        done += steps
                        for j in range(count):
                            for s in range(states):
                                visits[g, k, s] += I64((v[5 * n + j] >> U32(8 * s)) & U32(255))
                    for e in range(4 * states):
                        row = e if e < 2 * states else 8 + e - 2 * states
                        for j in range(count):
                            change = F64(w[row * n + j]) - F64(x0[e])
                            sums[g, k, e] += change
                            squares[g, k, e] += change * change

    return drive


# ----------------------------------------------------------------------------------- interface
def simulate(
    rewards: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike,
    tau: ArrayLike,
    eps: ArrayLike,
    q0: Sequence[ArrayLike],
    times: ArrayLike,
    *,
    kernel: ArrayLike | None = None,
    next_state: ArrayLike | None = None,
    scale: float = 1.0,
    runs: int = 1,
    seed: int = 0,
    initial_state: int = 0,
    dtype: DTypeLike = np.float32,
    num_threads: int = 1,
    variant: str = "auto",
) -> Simulation:
    """Simulates an ensemble of runs and averages it.

    Args:
        rewards: R[S, A_1, ..., A_n, n].
        alpha: learning rates, one per agent or one for all; likewise gamma, tau and eps.
        gamma: discount factors.
        tau: softmax temperatures; 0 for all is greedy, ties going to the first action.
        eps: probabilities of a uniform action.
        q0: initial tables, one [S, A_i] per agent.
        times: increasing save times in unscaled updates; step k = floor(scale * time).
        kernel: T[S, A_1, ..., A_n, S]; give this or ``next_state``.
        next_state: integers [S, A_1, ..., A_n], for deterministic transitions.
        scale: N of the rescaled process; 1 is the original algorithm.
        runs: number of independent runs.
        seed: seed of all streams.
        initial_state: state in which every run starts.
        dtype: float32 or float64, of tables and arithmetic; averages are float64.
        num_threads: threads over which the runs are shared.
        variant: "auto", "generic" or "lanes".

    Returns:
        Averages, visit counts and timings.
    """
    if (kernel is None) == (next_state is None):
        raise ValueError("give exactly one of kernel and next_state")
    real: Any = np.dtype(dtype).type
    tables = [np.asarray(table, dtype=np.float64) for table in q0]
    agents = len(tables)
    states = tables[0].shape[0]
    actions = tuple(table.shape[1] for table in tables)
    reward_table = np.asarray(rewards, dtype=real)
    if reward_table.shape != (states, *actions, agents):
        raise ValueError(f"rewards have shape {reward_table.shape}")
    if not 0 <= initial_state < states:
        raise ValueError(f"initial_state {initial_state} is not a state")
    rates, discounts, taus, epsilons = (
        np.broadcast_to(np.asarray(value, dtype=np.float64), (agents,))
        for value in (alpha, gamma, tau, eps)
    )
    is_greedy = not taus.any()
    taus = np.where(is_greedy, 1.0, taus)
    hyper = np.stack([rates / scale, discounts, 1.0 / (taus * math.log(2.0)), epsilons])
    hyper = hyper.astype(real)

    table = np.zeros(1, np.int32)
    cdf = np.zeros(1, real)
    if next_state is not None:
        table = np.ascontiguousarray(next_state, dtype=np.int32).ravel()
        if table.size != reward_table.size // agents or table.min() < 0 or table.max() >= states:
            raise ValueError("next_state must hold one state per state and joint action")
    else:
        dense = np.asarray(kernel, dtype=np.float64).reshape(-1, states)
        if len(dense) != reward_table.size // agents:
            raise ValueError("kernel must hold one law per state and joint action")
        # From the last possible successor on the CDF is 2: rounding never picks an impossible one.
        remaining = np.cumsum(dense[:, ::-1], axis=1)[:, ::-1] - dense
        cdf = np.where(remaining > 0.0, np.cumsum(dense, axis=1), 2.0).astype(real).ravel()

    fits = not is_greedy and next_state is not None and actions == (2, 2) and states <= 4
    if variant == "auto":
        variant = "lanes" if fits and runs >= 4 else "generic"
    if variant not in ("lanes", "generic") or (variant == "lanes" and not fits):
        raise ValueError(f"variant {variant!r} does not apply")

    targets = np.asarray(times, dtype=np.float64) * scale
    nearest = np.rint(targets)
    saves = np.where(np.abs(targets - nearest) < 1e-9, nearest, np.floor(targets)).astype(np.int64)
    if saves.min() < 0 or (np.diff(saves) < 0).any():
        raise ValueError("times must be non-negative and increasing")

    x0 = np.concatenate([t.ravel() for t in tables]).astype(real)
    width = LANES if variant == "lanes" else INTERLEAVED
    groups = min(-(-runs // width), 16 * num_threads)
    sums = np.zeros((groups, saves.size, x0.size))
    squares = np.zeros_like(sums)
    visits = np.zeros((groups, saves.size, states), dtype=np.int64)
    game: tuple[Any, ...]
    if variant == "lanes":
        drive = _lanes_kernel(np.dtype(dtype).name)
        word = sum(int(t) << (2 * j) for j, t in enumerate(table))
        padded = np.zeros(32, real)
        padded[: reward_table.size] = reward_table.ravel()
        game = (U32(word), padded, hyper)
    else:
        drive = _generic_kernel(actions, kernel is not None, is_greedy, np.dtype(dtype).name)
        game = (table, cdf, np.ascontiguousarray(reward_table).ravel(), hyper)

    previous = numba.get_num_threads()
    numba.set_num_threads(num_threads)
    try:
        compiled = len(drive.signatures)  # type: ignore[attr-defined]
        start = time.perf_counter()
        drive(x0, initial_state, saves[:0], 1, seed, *game, sums, squares, visits)
        fresh = len(drive.signatures) > compiled  # type: ignore[attr-defined]
        compile_seconds = time.perf_counter() - start if fresh else 0.0
        start = time.perf_counter()
        drive(x0, initial_state, saves, runs, seed, *game, sums, squares, visits)
        seconds = time.perf_counter() - start
    finally:
        numba.set_num_threads(previous)

    change = sums.sum(axis=0) / runs
    mean = x0.astype(np.float64) + change
    variance = np.maximum(squares.sum(axis=0) / runs - change**2, 0.0)
    ends = np.cumsum([states * a for a in actions])[:-1]

    def unflatten(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        parts = np.split(flat, ends, axis=1)
        return tuple(p.reshape(-1, states, a) for p, a in zip(parts, actions, strict=True))

    return Simulation(
        times=saves / scale,
        mean=unflatten(mean),
        variance=unflatten(variance),
        visits=visits.sum(axis=0),
        seconds=seconds,
        compile_seconds=compile_seconds,
        steps_per_second=runs * int(saves[-1]) / seconds,
        variant=variant,
    )
