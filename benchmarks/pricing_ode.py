"""Fifteen prices through the equation: two firms, 225 states, 6750 action values.

The path from values against uniform play and its profit gain, and the gradient of that gain by
learning rate, discount, temperature, substitutability and cost: processor and wall seconds of the
first call and of a later one, which compiles nothing, and the most memory that the process has had.

Usage: python benchmarks/pricing_ode.py [--periods T] [--prices M] [--quick]
"""

import argparse
import resource
import time

import jax

import ergodax as ex
from _common import machine, table

THETA = {"rate": 0.15, "discount": 0.95, "temperature": 0.05, "substitutability": 0.25, "cost": 1.0}
EPSILON, TOLERANCE = 0.05, 1e-6


def gain(theta: dict, num_prices: int, periods: float):
    """The mean profit gain after so many periods, and how many steps the solver took."""
    market = ex.games.LogitMarket(cost=theta["cost"], differentiation=theta["substitutability"])
    game = market.game(market.price_grid(num_prices))
    explore = ex.EpsilonSoftmax(theta["temperature"], EPSILON)
    learners = []
    for firm in (0, 1):
        start = ex.initial_values(game, firm, "uniform play", discount=theta["discount"])
        learners.append(ex.QLearning(theta["rate"], theta["discount"], explore, start))
    wrapped = ex.WrappedGame(game, learners)
    path = ex.solve(wrapped, wrapped.init(), [0.0, periods], rtol=TOLERANCE, atol=TOLERANCE)
    policies = wrapped.policies(jax.tree.map(lambda x: x[-1], path.params))
    nash, monopoly = market.profits(market.nash_prices()), market.profits(market.monopoly_prices())
    profit = ex.outcomes.mean_rewards(game, policies)
    return ex.outcomes.profit_gain(profit, nash, monopoly).mean(), path.stats["num_steps"]


def measured(name: str, call) -> list[list[str]]:
    """Rows of a first and a later call."""
    rows = []
    for when in ("first", "later"):
        wall, processor = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(call())
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        text = " ".join(f"{value:.4g}" for value in jax.tree.leaves(found))
        rows.append([name, when, f"{processor:.1f}", f"{wall:.1f}", f"{peak:.2f}", text])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    """Measures the path, then the gradient."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--periods", type=float, default=20_000.0, help="periods of learning")
    parser.add_argument("--prices", type=int, default=15, help="prices of each firm")
    parser.add_argument("--quick", action="store_true", help="five prices, 1000 periods")
    options = parser.parse_args()
    prices, periods = (5, 1000.0) if options.quick else (options.prices, options.periods)
    jax.config.update("jax_enable_x64", True)
    rows = measured("path and profit gain; steps", lambda: gain(THETA, prices, periods))
    slopes = jax.grad(lambda theta: gain(theta, prices, periods)[0])
    rows += measured(f"gradient by {', '.join(sorted(THETA))}", lambda: slopes(THETA))
    print(f"\n{prices} prices, {periods:g} periods, tolerance {TOLERANCE:g}.\n{machine()}\n")
    print(table(["what", "call", "processor s", "wall s", "peak GiB", "found"], rows))


if __name__ == "__main__":
    main()
