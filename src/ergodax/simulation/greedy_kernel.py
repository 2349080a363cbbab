"""Steps of epsilon-greedy learners of large tables, compiled by numba.

XLA reads whole rows of such tables in every step. Here the best action of every row is remembered,
and a row is read only where that may have changed. A few runs are interleaved, so that the
processor works on one while it waits for the table of another. Random numbers, arithmetic and their
order are those of `step`: actions and states are the same, parameters to rounding.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

# Runs that are interleaved, and steps for which their random numbers are drawn at once.
INTERLEAVED, _AHEAD = 4, 64
# Of what is remembered of a row: bits of its best action. Above them, how many are best.
_BITS = 6

U32, U64, I64 = np.uint32, np.uint64, np.int64


def njit(**options: Any) -> Callable[..., Any]:
    """`numba.njit` of the function itself, should a checker of annotations stand around it."""
    return lambda function: numba.njit(**options)(inspect.unwrap(function))


class Form(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        actions: number of actions of every agent.
        on_policy: which agents learn from their next action, as SARSA does.
        states: number of states.
        outcomes: outcomes of a state and joint action.
        dtype: of the parameters.
        compensated: whether additions to them are compensated.
        varying: which of learning rates, discounts and explorations change from step to step.
        tallied: whether visits and rewards are summed up.
        compensated_gains: whether additions to rewards are compensated.
    """

    actions: tuple[int, ...]
    on_policy: tuple[bool, ...]
    states: int
    outcomes: int
    dtype: str
    compensated: bool
    varying: tuple[bool, bool, bool]
    tallied: bool
    compensated_gains: bool

    @property
    def stride(self) -> int:
        """Entries between two rows of a table: a power of two, those after an agent's -inf."""
        return 1 << (max(self.actions) - 1).bit_length()


# Here products and sums become one operation, as XLA has them compiled.
@njit(fastmath={"contract"})
def _target(reward, discount, value):
    return reward + discount * value


@njit(fastmath={"contract"})
def _mixed(share, greedy, explored):
    return share * greedy + explored


@njit(inline="always")
def _mix(x, y, by):
    x = U32(x + y)
    return x, U32(x ^ U32(U32(y << U32(by)) | U32(y >> U32(32 - by))))


@njit(inline="always")
def _mix_even(x, y):
    x, y = _mix(x, y, 13)
    x, y = _mix(x, y, 15)
    x, y = _mix(x, y, 26)
    return _mix(x, y, 6)


@njit(inline="always")
def _mix_odd(x, y):
    x, y = _mix(x, y, 17)
    x, y = _mix(x, y, 29)
    x, y = _mix(x, y, 16)
    return _mix(x, y, 24)


@njit()
def draw_uniforms(first, second, k0, k1, step, pair, count, grain, half):
    """Uniform numbers by `threefry2x32`, those of `uniforms`, for the steps after one."""
    k2 = U32(U32(k0 ^ k1) ^ U32(0x1BD11BDA))
    done = 0
    while done < count:
        start = U64(step) + U64(done + 1)
        low, high = U32(start & U64(0xFFFFFFFF)), U32(start >> U64(32))
        here = min(count - done, I64(2**32) - I64(low))
        tag = U32(U32(U32(high << U32(8)) | U32(pair)) + k1)
        for j in range(here):
            x, y = _mix_even(U32(U32(low + U32(j)) + k0), tag)
            x, y = _mix_odd(U32(x + k1), U32(U32(y + k2) + U32(1)))
            x, y = _mix_even(U32(x + k2), U32(U32(y + k0) + U32(2)))
            x, y = _mix_odd(U32(x + k0), U32(U32(y + k1) + U32(3)))
            x, y = _mix_even(U32(x + k1), U32(U32(y + k2) + U32(4)))
            first[done + j] = np.int32(U32(x + k2) >> U32(9)) * grain + half
            second[done + j] = np.int32(U32(U32(y + k0) + U32(5)) >> U32(9)) * grain + half
        done += here


@njit()
def tick(times, lost, increment, compensated):
    """Fills rows of clocks `[U, T + 1]`, of which the first entry is known, as a step adds to them.

    Args:
        times: what the clocks show.
        lost: what additions to them have lost.
        increment: of one step.
        compensated: whether additions are compensated.
    """
    for u in range(times.shape[0]):
        for t in range(times.shape[1] - 1):
            value = increment - lost[u, t] if compensated else increment
            times[u, t + 1] = times[u, t] + value
            lost[u, t + 1] = (times[u, t + 1] - times[u, t]) - value if compensated else 0


@functools.cache
def kernel(form: Form) -> Callable[..., Any]:
    """Compiles the steps of a form of game and learners.

    Returns:
        A function that advances some runs by at most `length` steps, in place, and returns whether
        all numbers stayed finite.
    """
    real = np.dtype(form.dtype).type
    agents, states, outcomes = len(form.actions), form.states, form.outcomes
    actions, on_policy = form.actions, form.on_policy
    keeps_action, compensated, tallied = any(on_policy), form.compensated, form.tallied
    compensated_gains = form.compensated_gains
    varying_rate, varying_discount, varying_exploration = form.varying
    # The outcome needs no number where there is one.
    pairs = (agents + (outcomes > 1) + 1) // 2
    half, grain, one = real(2.0**-24), real(2.0**-23), real(1.0)
    infinite, none = real(np.inf), real(0.0)
    size, rows, stride = agents * states * form.stride, agents * states, form.stride
    longest = max(actions)
    common = actions[0] if len(set(actions)) == 1 else 0
    low_bits, single = (1 << _BITS) - 1, 1 << _BITS

    @njit(fastmath={"nnan", "nsz"})
    def look(q, row):
        """The first best entry of a row with how many are best, their value, the next smaller."""
        top, second, best = q[U64(row)], -infinite, I64(0)
        for b in range(1, longest):
            value = q[U64(row + b)]
            second = max(second, min(value, top))
            best = b if value > top else best
            top = max(top, value)
        count = I64(1)
        if second == top:
            count = I64(0)
            for b in range(stride):
                count += I64(q[row + b] == top)
        return best | (count << _BITS), top, second

    @njit()
    def choose_slowly(q, row, known, width, uniform, share, explored):
        """An action by the inverse of the distribution function, as `draw` finds it."""
        top = q[row + (known & low_bits)]
        greedy = one / real(known >> _BITS)
        total = _mixed(share, greedy if q[row] == top else none, explored)
        index = 0
        for b in range(1, width):
            own = _mixed(share, greedy if q[row + b] == top else none, explored)
            if uniform >= total and own > 0:
                index = b
            total += own
        return I64(index)

    # Without arrays: numba would count references to them, atomically, in every step.
    @njit(inline="always")
    def choose(known, width, uniform, share, explored):
        """The same without the row; -1 next to a boundary, as probabilities have to be added up."""
        best = known & low_bits
        margin = real(width + 4) * grain  # more than sums of probabilities round
        low = real(best) * explored
        is_best = (low + margin < uniform) & (uniform < low + share + explored - margin)
        if is_best & (known < 2 * single):
            action = best
        else:
            # Without the share of the best action all cells are equal.
            rest = max(min(uniform, low), uniform - share)
            action = I64(rest / max(explored, margin))
            rest -= real(action) * explored
            if not ((margin < rest) & (rest < explored - margin) & (known < 2 * single)):
                action = I64(-1)
        return action

    @njit(nogil=True, error_model="numpy")
    def advance(
        lanes, length, steps, left, keys, where, joint, tables, losts,
        by_run, successors, rewards, cumulative, row_of, rates, discounts, shares, explored,
        inverse_scale, visits, gains, gains_lost, wait, unchanged, changes, at, stopped,
    ):  # fmt: skip
        count = len(lanes)
        order = np.arange(count)
        now = np.empty(count, np.int64)
        first = np.empty(count * pairs * _AHEAD, real)
        second = np.empty(count * pairs * _AHEAD, real)
        # Of every row the best action, its value, and a bound of all others: it is read only below.
        known, marks = np.empty(count * rows, np.int32), np.empty(2 * count * rows, real)
        played, drawn = np.empty(agents, np.int64), np.empty(agents, np.int64)
        sums = np.zeros(count * agents)
        for slot in range(count):
            now[slot] = where[lanes[slot]]
            for i in range(agents):
                for s in range(states):
                    row = lanes[slot] * size + (i * states + s) * stride
                    place = (slot * states + s) * agents + i
                    known[place], marks[2 * place], marks[2 * place + 1] = look(tables, row)
        finite, taken = True, 0
        rate_steps = rates.shape[1] * agents
        discount_steps = discounts.shape[1] * agents
        share_steps = shares.shape[1] * agents
        rate, discount = rates.ravel(), discounts.ravel()
        share, explore = shares.ravel(), explored.ravel()
        while taken < length and count > 0:
            ahead = min(_AHEAD, length - taken)
            for j in range(count):
                slot = order[j]
                lane = lanes[slot]
                for p in range(pairs):
                    here = (slot * pairs + p) * _AHEAD
                    draw_uniforms(
                        first[here : here + _AHEAD], second[here : here + _AHEAD],
                        keys[lane, 0], keys[lane, 1], steps[lane] + taken, p, ahead, grain, half,
                    )  # fmt: skip
            for t in range(ahead):
                time, j = taken + t, 0
                while j < count:
                    slot = order[j]
                    lane = lanes[slot]
                    hyper = row_of[lane]
                    at_rate = hyper * rate_steps + (time * agents if varying_rate else 0)
                    at_discount = hyper * discount_steps + (
                        time * agents if varying_discount else 0
                    )
                    at_share = hyper * share_steps + (time * agents if varying_exploration else 0)
                    words = slot * pairs * _AHEAD + t
                    base, seen = lane * size, slot * rows
                    s = now[slot]
                    seen_here = seen + s * agents
                    event = s
                    if by_run:
                        event += lane * states
                    if keeps_action:
                        for i in range(agents):
                            width = common if common else actions[i]
                            played[i] = joint[lane, i]
                            event = event * width + played[i]
                    else:
                        for i in range(agents):
                            width = common if common else actions[i]
                            uniform = first[U64(words + i // 2 * _AHEAD)]
                            if i % 2:
                                uniform = second[U64(words + i // 2 * _AHEAD)]
                            code = I64(known[U64(seen_here + i)])
                            own, other = share[U64(at_share + i)], explore[U64(at_share + i)]
                            action = choose(code, width, uniform, own, other)
                            if action < 0:
                                row = base + (i * states + s) * stride
                                action = choose_slowly(
                                    tables, row, code, width, uniform, own, other
                                )
                            played[i] = action
                            event = event * width + action
                    outcome = 0
                    if outcomes > 1:
                        uniform = first[U64(words + agents // 2 * _AHEAD)]
                        if agents % 2:
                            uniform = second[U64(words + agents // 2 * _AHEAD)]
                        for k in range(outcomes - 1):
                            outcome += uniform >= cumulative[event, k]
                    event = event * outcomes + outcome
                    following = I64(successors[U64(event)])
                    seen_next = seen + following * agents
                    if keeps_action:
                        for i in range(agents):
                            width = common if common else actions[i]
                            uniform = first[U64(words + i // 2 * _AHEAD)]
                            if i % 2:
                                uniform = second[U64(words + i // 2 * _AHEAD)]
                            code = I64(known[U64(seen_next + i)])
                            own, other = share[U64(at_share + i)], explore[U64(at_share + i)]
                            action = choose(code, width, uniform, own, other)
                            if action < 0:
                                row = base + (i * states + following) * stride
                                action = choose_slowly(
                                    tables, row, code, width, uniform, own, other
                                )
                            drawn[i] = action
                            joint[lane, i] = drawn[i]
                    changed = False
                    for i in range(agents):
                        action, begin = played[i], base + i * states * stride
                        value = marks[U64(2 * (seen_next + i))]
                        if on_policy[i]:
                            value = tables[U64(begin + following * stride + drawn[i])]
                        reward = rewards[U64(event * agents + i)]
                        row = begin + s * stride
                        here = U64(row + action)
                        place = U64(seen_here + i)
                        code = I64(known[place])
                        best = code & low_bits
                        top, bound = marks[U64(2 * place)], marks[U64(2 * place + 1)]
                        old = tables[here]
                        target = _target(reward, discount[U64(at_discount + i)], value)
                        increment = rate[U64(at_rate + i)] * (target - old)
                        increment = real(increment * inverse_scale)
                        if compensated:
                            increment = increment - losts[here]
                            new = old + increment
                            losts[here] = (new - old) - increment
                        else:
                            new = old + increment
                        tables[here] = new
                        finite &= abs(new) < infinite
                        if tallied:
                            sums[U64(slot * agents + i)] += reward
                        # What is best in this row now.
                        is_single = code < 2 * single
                        if (action == best) & is_single & (new > bound):
                            marks[U64(2 * place)] = new
                        elif (action != best) & is_single & (new < top):
                            marks[U64(2 * place + 1)] = max(bound, new)
                        else:
                            found, marks[U64(2 * place)], marks[U64(2 * place + 1)] = look(
                                tables, row
                            )
                            changed |= found != code
                            known[place] = found
                    if tallied:
                        visits[U64(lane * states + s)] += 1
                    now[slot] = following
                    j += 1
                    if wait > 0:
                        unchanged[lane] = 0 if changed else unchanged[lane] + 1
                        changes[lane] += changed
                        if unchanged[lane] >= wait or time + 1 >= left[lane]:
                            stopped[lane], at[lane] = True, time + 1
                            count, j = count - 1, j - 1
                            order[j], order[count] = order[count], order[j]
            taken += ahead
        for slot in range(len(lanes)):
            lane = lanes[slot]
            where[lane] = now[slot]
            if tallied:
                for here in range(lane * agents, (lane + 1) * agents):
                    total = gains[here] + sums[here + (slot - lane) * agents]
                    if compensated_gains:
                        total -= gains_lost[here]
                        gains[here] = total
                        gains_lost[here] = gains[here] - total
                    else:
                        gains[here] = total
        return finite

    return advance
