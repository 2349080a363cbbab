"""Which simulations numba carries out, and how: epsilon-greedy learners of large tables.

The same process as the compiled block of XLA, with the same random numbers, executed by another
compiler (`ergodax[numba]`). It is chosen where it is faster: on processors, for Q-learning and
SARSA with epsilon-greedy exploration on tables that are large, if nothing but the recorders of this
package looks at the steps. All of them may have schedules.
"""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..base.compiling import compiled
from ..learners.q_learning import QLearning
from ..learners.sarsa import Sarsa
from ..model.clock import Clocked, ClockedParams, is_schedule
from ..model.exploration import EpsilonGreedy
from .block import Setting
from .inputs import Inputs
from .lanes import is_large
from .recorders import Tally
from .step import Run, cumulative_law
from .until import GreedyUnchanged

# Actions up to which `draw` adds probabilities in the same order.
_MOST_ACTIONS = 32
# Values of schedules that are held at a time: of all runs, and of one.
_VALUES, _MOST_STEPS = 2**20, 2**16
_cumulative_law = compiled(cumulative_law)


def is_installed() -> bool:
    """Whether there is numba."""
    return importlib.util.find_spec("numba") is not None


def fits(inputs: Inputs, recorders: tuple, devices: Any) -> bool:
    """Whether numba can carry out a simulation, and does so faster.

    Args:
        inputs: what the runs start from.
        recorders: what is recorded.
        devices: where it is carried out.
    """
    wrapped = inputs.wrapped
    game, widths = wrapped.game, wrapped.game.num_actions
    return (
        all(device.platform == "cpu" for device in devices)
        and all(map(_is_known, wrapped.learners))
        and all(is_large((game.num_states, width)) for width in widths)
        and max(widths) <= _MOST_ACTIONS
        and all(map(_is_looked_through, recorders))
        and inputs.compensated == (inputs.dtype == np.float32)
        # Schedules are in JAX's precision.
        and (inputs.dtype == jnp.result_type(float) or not any(_varying(wrapped.learners)))
        and is_installed()
    )


def _own(learner: Any) -> Any:
    """A learner without its clock."""
    return learner.learner if isinstance(learner, Clocked) else learner


def _is_known(learner: Any) -> bool:
    own = _own(learner)
    return type(own) in (QLearning, Sarsa) and type(own.exploration) is EpsilonGreedy


def _is_looked_through(recorder: Any) -> bool:
    if type(recorder) is GreedyUnchanged:  # each row is that of the state
        return all(one.rows == tuple(range(len(one.rows or ()))) for one in recorder.watched)
    return type(recorder) is Tally


class Taken(NamedTuple):
    """What has come of a block.

    Attributes:
        runs: the runs, at its end or where they stopped.
        stopped: which of them stopped, `[R]`.
        at: after how many steps, `[R]`.
    """

    runs: Run
    stopped: np.ndarray
    at: Any


def advance(
    setting: Setting,
    keys: Any,
    runs: Run,
    steps: np.ndarray,
    length: int,
    active: np.ndarray,
    left: np.ndarray | None = None,
) -> Taken | None:
    """Advances runs by so many steps; if there is a criterion, each until it is done.

    Args:
        setting: what is simulated.
        keys: key words of the runs, `[R, 2]`.
        runs: the runs, each leaf `[R, ...]`.
        steps: steps that they have taken, `[R]`.
        length: how many more.
        active: which of them to advance, `[R]`.
        left: steps after which a run stops in any case, `[R]`; none do by default.

    Returns:
        What has come of them; None if a number became infinite or NaN, or a schedule left its
        interval: XLA knows what to make of that.
    """
    work = _Work(setting, keys, runs, steps, active, left)
    while True:
        now = min(length - work.done, work.most_steps)
        if not work.advance(now):
            return None
        if work.done >= length or not work.lanes.size:
            return work.taken()


class _Work:
    """Runs in the form in which the kernel takes them.

    Attributes:
        done: steps of the block so far.
        lanes: the runs still under way.
    """

    def __init__(self, setting: Setting, keys, runs: Run, steps, active, left):
        self._setting, self._runs, count = setting, runs, len(steps)
        self._keys, self._steps, self.done = np.asarray(keys), np.asarray(steps, np.int64), 0
        standing = runs.standing
        self._compensated = standing.compensation is not None
        parts = [standing.params, *[standing.compensation] * self._compensated]
        self._widths = setting.wrapped.game.num_actions
        self._tables = _side_by_side([_table(own) for own in parts[0]], -np.inf)
        self._lost = self._tables  # not read then
        if self._compensated:
            self._lost = _side_by_side([_table(own) for own in parts[1]], 0.0)
        self._where, self._joint = np.array(standing.state), np.array(standing.joint_action)
        if standing.joint_action is None:
            self._joint = np.zeros((1, len(self._widths)), np.int32)
        self._clocks = {
            agent: [np.array(part[agent].time) for part in parts]
            for agent, own in enumerate(standing.params)
            if isinstance(own, ClockedParams)
        }
        self.lanes = np.flatnonzero(active)
        self._left = np.full(count, 2**62) if left is None else np.asarray(left, np.int64)
        self._take_records(count)
        self._take_game(count)

    def _take_records(self, count: int) -> None:
        """The states of recorders, or arrays that nobody reads."""
        agents = len(self._widths)
        self._tally: Any = np.zeros((1, 1), np.int32), *[np.zeros((1, agents))] * 2
        self._watch: Any = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._tallied, self._wait = False, 0
        for recorder, state in zip(self._setting.recorders, self._runs.recorded, strict=True):
            if isinstance(recorder, Tally):
                visits, gains, lost = (None if part is None else np.array(part) for part in state)
                self._tally, self._tallied = (visits, gains, gains if lost is None else lost), True
            elif isinstance(recorder, GreedyUnchanged):
                self._watch, self._wait = tuple(map(np.array, state)), recorder.steps
        self._at, self._stopped = np.zeros(count, np.int64), np.zeros(count, bool)
        if self._wait:
            self._stopped[self.lanes] = (self._watch[0] >= self._wait)[self.lanes]
            self._stopped[self.lanes] |= self._left[self.lanes] <= 0
            self.lanes = self.lanes[~self._stopped[self.lanes]]

    def _take_game(self, count: int) -> None:
        """The tables of the game and of hyper-parameters, and the kernel for their form."""
        wrapped = self._setting.wrapped
        game, own = wrapped.game, [_own(learner) for learner in wrapped.learners]
        laws = np.asarray(_cumulative_law(game.probabilities))
        self._game = (
            self._setting.per_run,
            np.asarray(game.successors).reshape(-1),
            np.asarray(game.rewards).reshape(-1),
            laws.reshape(-1, laws.shape[-1]) if laws.size else np.zeros((1, 1), laws.dtype),
        )
        self._varies = any(_varying(wrapped.learners))
        dtype = self._tables.dtype
        self._inverse_scale = dtype.type(1 / np.asarray(self._setting.scale))
        form = _numba().Form(
            actions=game.num_actions,
            on_policy=tuple(isinstance(one, Sarsa) for one in own),
            states=game.num_states,
            outcomes=game.num_successors,
            dtype=dtype.name,
            compensated=self._compensated,
            varying=_varying(wrapped.learners),
            tallied=self._tallied,
            compensated_gains=self._tally[1] is not self._tally[2],
        )
        self._kernel = _numba().kernel(form)
        self._find_rows()

    def _find_rows(self) -> None:
        """Which runs have hyper-parameters of their own: by their learners, or by their clocks."""
        count = len(self._steps)
        self._first, self._row_of = np.arange(count), np.arange(count)
        if self._setting.per_run:
            return
        self._first, self._row_of = np.zeros(1, int), np.zeros(count, int)
        if self._clocks and self.lanes.size:
            columns = [part[self.lanes] for clock in self._clocks.values() for part in clock]
            _, first, row_of = np.unique(
                np.stack(columns), axis=1, return_index=True, return_inverse=True
            )
            # Padded, so that few programs are compiled.
            self._first = self.lanes[np.resize(first, 1 << (len(first) - 1).bit_length())]
            self._row_of[self.lanes] = row_of.reshape(-1)

    @property
    def most_steps(self) -> int:
        """Steps for which the values of all schedules can be held."""
        if not self._varies:
            return 2**31 - 1
        return max(1, min(_VALUES // len(self._first), _MOST_STEPS))

    def advance(self, length: int) -> bool:
        """Advances the runs that have not stopped; returns whether all numbers are valid."""
        clocks = self._clocks_ahead(length)
        times = {agent: times[:, :-1] for agent, (times, _) in clocks.items()}
        values = _values(self._setting.wrapped, times, self._setting.per_run)
        values = [np.asarray(value) for value in values]
        shares, explored = values[2:]
        if not ((shares >= 0) & (explored >= 0)).all():
            return False
        at, stopped = np.zeros_like(self._at), np.zeros_like(self._stopped)

        def work(lanes):
            return self._kernel(
                *(lanes, length, self._steps, self._left - self.done, self._keys, self._where),
                *(self._joint, self._tables.reshape(-1), self._lost.reshape(-1), *self._game),
                *(self._row_of, *values, self._inverse_scale),
                *(part.reshape(-1) for part in self._tally),
                *(self._wait, *self._watch, at, stopped),
            )

        size = _numba().INTERLEAVED
        lanes = self.lanes if length else np.zeros(1, int)  # then it is only compiled
        groups = [lanes[k : k + size] for k in range(0, len(lanes), size)]
        threads = self._setting.mesh.devices.size
        if threads == 1:
            finite = all([work(group) for group in groups])
        else:
            with ThreadPoolExecutor(threads) as pool:
                finite = all(list(pool.map(work, groups)))
        taken = np.zeros(len(at), np.int64)
        taken[self.lanes] = np.where(stopped, at, length)[self.lanes]
        for agent, ahead in clocks.items():
            kept = ahead[: 1 + self._compensated]
            self._clocks[agent] = [part[self._row_of, taken] for part in kept]
        self._at[stopped] = self.done + at[stopped]
        self._stopped |= stopped
        self.lanes = self.lanes[~stopped[self.lanes]]
        self._steps = self._steps + length
        self.done += length
        self._find_rows()
        return finite

    def _clocks_ahead(self, length: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """What the clock of each agent that has one will show, and lose, `[rows, steps + 1]`."""
        ahead = {}
        for agent, parts in self._clocks.items():
            shape = len(self._first), 1 + (1 << max(length - 1, 0).bit_length())
            times, lost = (np.zeros(shape, self._tables.dtype) for _ in range(2))
            for table, part in zip((times, lost), parts, strict=False):
                table[:, 0] = part[self._first]
            _numba().tick(times, lost, self._inverse_scale, self._compensated)
            ahead[agent] = times, lost
        return ahead

    def taken(self) -> Taken:
        """The runs as they are now."""
        standing, records = self._runs.standing, []

        def of_agents(tables, part):
            return tuple(
                ClockedParams(table, self._clocks[agent][part]) if agent in self._clocks else table
                for agent, table in enumerate(
                    np.ascontiguousarray(tables[:, agent, :, :width])
                    for agent, width in enumerate(self._widths)
                )
            )

        for recorder, state in zip(self._setting.recorders, self._runs.recorded, strict=True):
            new = self._tally if isinstance(recorder, Tally) else self._watch
            fields = zip(state._fields, state, new, strict=True)
            records.append(
                state._replace(**{name: None if old is None else a for name, old, a in fields})
            )
        standing = standing._replace(
            params=of_agents(self._tables, 0),
            compensation=of_agents(self._lost, 1) if self._compensated else None,
            state=self._where,
            joint_action=None if standing.joint_action is None else self._joint,
        )
        runs = self._runs._replace(standing=standing, recorded=tuple(records))
        return Taken(runs, self._stopped, self._at)


def _numba() -> Any:
    """The module that needs numba."""
    from . import greedy_kernel

    return greedy_kernel


def _side_by_side(tables: list, beyond: float) -> np.ndarray:
    """Tables of all agents, `[R, n, S, stride]`, filled up along each row."""
    stride = 1 << (max(table.shape[-1] for table in tables) - 1).bit_length()
    runs, states, _ = tables[0].shape
    found = np.full((runs, len(tables), states, stride), beyond, tables[0].dtype)
    for agent, table in enumerate(tables):
        found[:, agent, :, : table.shape[-1]] = table
    return found


def _table(own: Any) -> Any:
    """The table of an agent's parameters."""
    return own.params if isinstance(own, ClockedParams) else own


def _fields(own: Any) -> tuple:
    """What of a learner may be a schedule."""
    return own.learning_rate, own.discount, own.exploration.epsilon


@compiled
def _values(wrapped: Any, times: dict, by_run: bool) -> tuple:
    """Learning rates, discounts, and the probabilities of the best action and of every action.

    XLA computes them as it does in a step, so that they are the same.

    Args:
        wrapped: the game and its learners, with a leading axis of runs if `by_run`.
        times: what the clock of each agent that has one shows, `[U, T]`.
        by_run: whether every row has learners of its own.

    Returns:
        Arrays `[U, T, n]`, or `[U, 1, n]` of what does not change.
    """
    width = max((clock.shape[1] for clock in times.values()), default=1)

    def of_row(learners, times):
        found = []
        for agent, (learner, count) in enumerate(
            zip(learners, wrapped.game.num_actions, strict=True)
        ):

            def at(time, learner=learner, count=count):
                own = learner if time is None else learner.at(time)
                rate, discount, epsilon = _fields(own)
                return rate, discount, 1 - epsilon, epsilon / count

            clock = times.get(agent)
            own = at(None) if clock is None else jax.vmap(at)(clock)
            found.append([jnp.broadcast_to(value, width) for value in own])
        return tuple(jnp.stack(values, axis=-1) for values in zip(*found, strict=True))

    learners = wrapped.learners
    varies = _varying(learners)
    rows = next(iter(times.values())).shape[0] if times else 1
    if by_run:
        values = eqx.filter_vmap(of_row)(learners, times)
    else:
        values = eqx.filter_vmap(of_row, in_axes=(None, 0), axis_size=rows)(learners, times)
    return tuple(
        value if changes else value[:, :1]
        for value, changes in zip(values, (*varies, varies[-1]), strict=True)
    )


def _varying(learners: tuple) -> tuple[bool, bool, bool]:
    """Whether learning rates, discounts and exploration change with time, of any agent."""
    of_agents = [_fields(_own(learner)) for learner in learners]
    rate, discount, epsilon = (
        any(map(is_schedule, values)) for values in zip(*of_agents, strict=True)
    )
    return rate, discount, epsilon
