"""Calvano, Calzolari, Denicolo and Pastorello (2020): do pricing algorithms learn to collude?

Two Q-learners set prices in a logit duopoly, remember the last prices, and explore less and less,
`epsilon = exp(-beta t)`. A session ends when no strategy has changed in any state for 100,000
periods; its outcome is the cycle on which the greedy strategies end.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import xarray

from .. import outcomes
from ..base.checks import check_array, check_count, is_within
from ..base.codes import RESULTS
from ..games import LogitMarket, bertrand
from ..learners import QLearning, initial_values
from ..model.exploration import EpsilonGreedy
from ..model.game import MarkovGame
from ..model.schedules import Exponential
from ..model.wrapped import WrappedGame
from ..results.labels import attributes
from ..simulation.simulate_until import StoppedRuns, simulate_until
from ..simulation.until import greedy_unchanged
from .agreement import Quantity, Replication, mean_of, share_of, statistic_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = (
    "Calvano, Calzolari, Denicolo and Pastorello (2020), Artificial intelligence, algorithmic "
    "pricing, and collusion, American Economic Review 110(10)"
)
RATE, DECAY, DISCOUNT = 0.15, 4e-6, 0.95
UNCHANGED = 100_000
_MOST_PERIODS = 10**9
_PUBLISHED = 1000  # sessions
_SHOWN = 16  # periods of a response
_NO_LOSS = 1e-6  # of value, by rounding

# Table 1, by the cycles on which sessions end: share of sessions, mean and standard deviation of
# the profit gain. Times of convergence are from the same 1000 sessions.
_TABLE = {
    "symmetric": ("0.277", "0.866", 0.115),
    "length 1": ("0.643", "0.860", 0.114),
    "length 2": ("0.238", "0.846", 0.104),
    "length 3 or more": ("0.119", "0.793", 0.097),
}


def learners(game: MarkovGame, rate: float = RATE, decay: float = DECAY) -> WrappedGame:
    """The paper's two learners: they begin from the values against a rival that draws prices."""
    explore = EpsilonGreedy(Exponential(1.0, decay))
    starts = [initial_values(game, agent, "uniform play", discount=DISCOUNT) for agent in range(2)]
    return WrappedGame(game, [QLearning(rate, DISCOUNT, explore, start) for start in starts])


def measure(market: LogitMarket, game: MarkovGame, params: tuple, state: Any) -> xarray.Dataset:
    """What the sessions' greedy strategies are worth and how they answer a deviation.

    Args:
        market: two equal firms.
        game: their game.
        params: action values of both, each `[R, S, A]`.
        state: where every session ended, `[R]`.

    Returns:
        One entry per session, along "session".
    """
    strategies, tied = outcomes.greedy(game, params)
    cycle = jax.device_get(outcomes.play(game, strategies, state))
    policies = tuple(
        jax.nn.one_hot(own, count, dtype=float)
        for own, count in zip(strategies, game.num_actions, strict=True)
    )
    worth = [
        np.asarray(outcomes.action_values(game, policies, DISCOUNT, agent)) for agent in range(2)
    ]
    own = [
        np.take_along_axis(table, np.asarray(chosen)[..., None], -1)[..., 0]
        for table, chosen in zip(worth, strategies, strict=True)
    ]
    loss = np.stack(
        [1 - mine / table.max(axis=-1) for mine, table in zip(own, worth, strict=True)], -1
    )
    prices = np.asarray(market.price_grid(game.num_actions[0]))
    shown = cycle.on_cycle[..., None]
    # States are the last prices, so that those of the cycle are its prices too.
    paid = np.stack(np.unravel_index(np.arange(game.num_states), game.num_actions), axis=-1)
    price = (prices[np.arange(2), paid] * shown).sum(axis=1) / cycle.length[:, None]
    nash = np.asarray(market.profits(market.nash_prices()))
    monopoly = np.asarray(market.profits(market.monopoly_prices()))
    gain = np.asarray(outcomes.profit_gain(cycle.rewards, nash, monopoly)).mean(axis=-1)
    responses, unprofitable = _deviations(game, prices, strategies, cycle, worth, own)
    equilibrium = outcomes.is_equilibrium(game, policies, DISCOUNT, states=cycle.on_cycle)

    def entry(values, text, *dims):
        return ("session", *dims), np.asarray(values), attributes(text)

    return xarray.Dataset(
        {
            "profit_gain": entry(gain, "profit gain, 0 competitive and 1 collusive"),
            "price": entry(price, "mean price on the cycle", "agent"),
            "profit": entry(cycle.rewards, "mean profit on the cycle", "agent"),
            "cycle_length": entry(cycle.length, "periods of the cycle"),
            "symmetric": entry(
                cycle.symmetric & (cycle.length == 1), "both firms always set the same price"
            ),
            "loss_on_path": entry(
                (loss * shown).sum(axis=(1, 2)) / shown.sum(axis=(1, 2)) / 2,
                "share of value lost by not deviating once, on the cycle",
            ),
            "loss_elsewhere": entry(
                (loss * ~shown).sum(axis=(1, 2)) / (~shown).sum(axis=(1, 2)) / 2,
                "the same in the other states",
            ),
            "no_gain_by_one_deviation": entry(
                ((loss < _NO_LOSS) | ~shown).all(axis=(1, 2)), "Nash on the cycle by one deviation"
            ),
            "equilibrium": entry(equilibrium, "Nash on the cycle by full best replies"),
            "deviations_unprofitable": entry(unprofitable, "share of downward deviations"),
            "tied": entry(
                (np.asarray(tied) & shown).any(axis=(1, 2)), "best prices are tied on the cycle"
            ),
            "strategy": entry(
                np.stack(strategies, axis=1), "number of the greedy price", "agent", "state"
            ),
            "response": entry(
                responses, "price around a deviation at time 1", "direction", "firm", "time"
            ),
        },
        {
            "state": list(game.state_names),
            "direction": ["down", "up"],
            "firm": ["deviating", "other"],
            "time": np.arange(_SHOWN),
        },
    )


def _deviations(game, prices, strategies, cycle, worth, own):
    """Responses `[R, 2, 2, T]`, and the share of downward deviations that do not pay, `[R]`.

    Means over both firms and all states of a cycle. Down: the best price against the rival's for
    one period; up: the highest price.
    """
    sessions = len(cycle.length)
    which, states = np.nonzero(cycle.on_cycle)
    per_session = cycle.length[:, None]
    profit = np.asarray((game.probabilities[..., None] * game.rewards).sum(axis=-2))[0]
    total, unprofitable = np.zeros((sessions, 2, 2, _SHOWN)), np.zeros(sessions)
    tables = tuple(np.asarray(table)[which] for table in strategies)
    for agent in range(2):
        best = np.moveaxis(profit[..., agent], agent, 0).argmax(axis=0)[tables[1 - agent]]
        for direction, action in enumerate((best, game.num_actions[agent] - 1)):
            found = outcomes.deviation_response(
                game, tables, agent, action, states, before=1, after=_SHOWN - 1
            )
            for firm, other in enumerate((agent, 1 - agent)):
                shown = prices[other][np.asarray(found.actions)[..., other]]
                np.add.at(total[:, direction, firm], which, shown)
        here = np.arange(len(which))
        deviating = worth[agent][which, states, best[here, states]]
        np.add.at(unprofitable, which, deviating < own[agent][which, states])
    return total / (2 * per_session[..., None, None]), unprofitable / (2 * cycle.length)


def _table(data: xarray.Dataset) -> tuple[Quantity, ...]:
    """Table 1 and the text's further numbers."""
    gain, length = data["profit_gain"].values, data["cycle_length"].values
    millions = _millions(data)
    columns = {
        "symmetric": data["symmetric"].values,
        "length 1": length == 1,
        "length 2": length == 2,
        "length 3 or more": length >= 3,
    }
    quantities = [
        mean_of("profit gain", "0.849", gain, 0.112, _PUBLISHED),
        statistic_of("profit gain, s.d.", "0.112", gain, _deviation, _PUBLISHED),
        mean_of("million periods to convergence", "1.751", millions, 0.293, _PUBLISHED),
        statistic_of("the same, s.d.", "0.293", millions, _deviation, _PUBLISHED),
        statistic_of("the same, median", "1.702", millions, np.median, _PUBLISHED),
    ]
    for name, chosen in columns.items():
        share, mean, spread = _TABLE[name]
        quantities.append(share_of(f"share of cycles: {name}", share, chosen, _PUBLISHED))
        if chosen.any():
            others = round(float(share) * _PUBLISHED)
            quantities.append(mean_of(f"profit gain: {name}", mean, gain[chosen], spread, others))
    for name, published, variable in (
        ("share in equilibrium by one deviation", "0.505", "no_gain_by_one_deviation"),
        ("share in equilibrium by best replies", None, "equilibrium"),
    ):
        quantities.append(share_of(name, published, data[variable].values, _PUBLISHED))
    for name, published, variable in (
        ("loss of value on the cycle", "0.002", "loss_on_path"),
        ("loss of value elsewhere", "0.018", "loss_elsewhere"),
        ("deviations that do not pay", "0.936", "deviations_unprofitable"),
    ):
        values = data[variable].values
        quantities.append(mean_of(name, published, values, values.std(), _PUBLISHED))
    return tuple(quantities)


def _millions(data: xarray.Dataset) -> np.ndarray:
    """Million periods to convergence of the sessions that converged."""
    return data["periods"].values[data["converged"].values] / 1e6


def _deviation(values: np.ndarray, axis: int = -1) -> Any:
    return np.std(values, axis=axis, ddof=1)


def replicate(
    sessions: int = 40,
    *,
    seed: int = 0,
    grid: Sequence[Sequence[float]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Replication:
    """Table 1 at the baseline, or profit gains over a grid of learning rates and decays.

    Args:
        sessions: how many, at each point of a grid; the paper has 1000.
        seed: of the random numbers.
        grid: learning rates alpha, and decays beta of exploration.
        checkpoint: a file to continue from; over a grid, one for every point is made of its name.
        progress: whether to show a bar.
    """
    sessions = check_count("sessions", sessions, least=2)
    rates, decays = ((RATE,), (DECAY,)) if grid is None else _check_grid(grid)
    market = LogitMarket()
    game = bertrand(market)
    points, seconds, steps = {}, 0.0, 0
    for rate in rates:
        for decay in decays:
            file = None if checkpoint is None else Path(checkpoint)
            if file is not None and grid is not None:
                file = file.with_name(f"{file.stem}-{rate:g}-{decay:g}{file.suffix}")
            runs = _simulate(game, rate, decay, sessions, seed, file, progress)
            seconds, steps = seconds + runs.run_seconds, steps + runs.steps_taken
            points[rate, decay] = _outcome(market, game, runs)
    data = xarray.concat(points.values(), "point", data_vars="all", coords="minimal")
    data = data.assign_coords(
        learning_rate=("point", [rate for rate, _ in points]),
        decay=("point", [decay for _, decay in points]),
    )
    data = data.isel(point=0) if len(points) == 1 else data
    notes = [f"{steps:.3g} steps in {seconds:.0f} s: {steps / seconds / 1e6:.1f} million steps/s."]
    notes += [note for point, found in points.items() for note in _exceptions(point, found)]
    baseline = points.get((RATE, DECAY))
    quantities = _table(baseline) if grid is None and baseline is not None else _over_grid(points)
    shown = next(iter(points.values())) if grid is None else None
    draw: Callable[[], Any] | None = None if shown is None else lambda: draw_sessions(market, shown)
    return Replication(SOURCE, quantities, data, tuple(notes), draw)


def _check_grid(grid: Any) -> tuple[tuple[float, ...], ...]:
    if not isinstance(grid, Sequence) or len(grid) != 2:
        raise ValueError(f"grid must be learning rates and decays, two lists; found {grid}.")
    found = tuple(np.ravel(check_array("grid", values)) for values in grid)
    for name, values, interval in zip(
        ("learning rates", "decays"), found, ("(0, 1]", "(0, inf)"), strict=True
    ):
        if not values.size or not is_within(values, interval):
            raise ValueError(f"grid: {name} must be in {interval}; found {values}.")
    return tuple(tuple(map(float, values)) for values in found)


def _simulate(game, rate, decay, sessions, seed, checkpoint, progress) -> StoppedRuns:
    wrapped = learners(game, rate, decay)
    runs = simulate_until(
        wrapped,
        wrapped.init(),
        greedy_unchanged(UNCHANGED),
        max_steps=_MOST_PERIODS,
        runs=sessions,
        key=jax.random.key(seed),
        checkpoint=checkpoint,
        progress=progress,
    )
    if runs.result == RESULTS.interrupted:
        raise KeyboardInterrupt
    return runs


def _outcome(market, game, runs: StoppedRuns) -> xarray.Dataset:
    tables = tuple(np.asarray(own.params) for own in runs.final.params)
    data = measure(market, game, tables, runs.final.state)
    data["periods"] = (
        "session",
        runs.steps_to_convergence,
        attributes("periods before the strategies stayed as they are; NaN if they did not"),
    )
    data["converged"] = "session", runs.reached, attributes("whether strategies stayed")
    return data


def _exceptions(point: tuple[float, float], data: xarray.Dataset) -> list[str]:
    """What is named of a point: sessions that did not converge, and ties."""
    place = f"alpha = {point[0]:g}, beta = {point[1]:g}"
    notes = []
    for text, chosen in (
        ("did not converge, and are counted as they stood", ~data["converged"].values),
        ("have tied best prices on their cycle, of which the lowest is taken", data["tied"].values),
    ):
        if chosen.any():
            listed = ", ".join(map(str, np.flatnonzero(chosen)[:10]))
            more = ", .." if chosen.sum() > 10 else ""
            notes.append(f"{place}: {chosen.sum()} sessions {text}: {listed}{more}.")
    return notes


def _over_grid(points: dict[tuple[float, float], xarray.Dataset]) -> tuple[Quantity, ...]:
    """Profit gains and times at every point; published at the baseline."""
    quantities = []
    for (rate, decay), data in points.items():
        known = (rate, decay) == (RATE, DECAY)
        place = f"alpha {rate:g}, beta {decay:g}"
        for name, published, values in (
            ("profit gain", "0.849", data["profit_gain"].values),
            ("million periods", "1.751", _millions(data)),
        ):
            told = published if known else None
            quantities.append(mean_of(f"{name}, {place}", told, values, values.std(), _PUBLISHED))
    return tuple(quantities)


def draw_sessions(
    market: LogitMarket, data: xarray.Dataset, figure: "Figure | None" = None
) -> "Figure":
    """Distributions of prices and profit gains, and the responses to both deviations.

    Args:
        market: of the sessions.
        data: what `measure` found.
        figure: where to draw; a new one by default.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from ..plot.style import GREY, WIDTH, legend, look

    figure = figure or Figure(figsize=(2 * WIDTH, 4.6), layout="constrained")
    axes = figure.subplots(2, 2)
    nash, monopoly = float(market.nash_prices()[0]), float(market.monopoly_prices()[0])
    lines = {"Nash": (nash, 0.0, (0, (1, 1))), "monopoly": (monopoly, 1.0, (0, (4, 2)))}
    for ax, values, text, place in (
        (axes[0, 0], data["price"].values.ravel(), "price on the cycle", 0),
        (axes[0, 1], data["profit_gain"].values, "profit gain on the cycle", 1),
    ):
        ax.hist(values, bins=20, color=look(0).colour, alpha=0.6)
        for name, (price, gain, dashes) in lines.items():
            ax.axvline((price, gain)[place], color=GREY, linestyle=dashes, label=name)
        ax.set_xlabel(text)
        ax.set_ylabel("sessions" if place else "firms")
        legend(ax)
    for ax, direction in zip(axes[1], ("down", "up"), strict=True):
        response = data["response"].sel(direction=direction).mean("session")
        for price, _, dashes in lines.values():
            ax.axhline(price, color=GREY, linestyle=dashes)
        for index, firm in enumerate(("deviating", "other")):
            ax.plot(response["time"], response.sel(firm=firm), label=firm, **look(index).joined)
        ax.set_xlabel(f"periods around a deviation {direction}wards")
        ax.set_ylabel("mean price")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(ax, where="above")
    for ax in axes.flat:
        ax.tick_params(labelsize="small")
    return figure
