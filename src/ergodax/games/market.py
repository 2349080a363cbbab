"""Markets of firms that set prices, and their prices under competition and collusion."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from ..base.checks import check_array, check_count, check_number, is_concrete
from ..base.compiling import lightly_compiled
from ..model.game import MarkovGame
from ..model.hyper import HyperModule, Scalar, hyper
from .matrix import check_states, repeated


class AbstractMarket(HyperModule):
    """A market: subclass it, give it a field `cost` (`[n]` or one number) and write `demand`.

    Attributes:
        num_firms: n.
    """

    num_firms: eqx.AbstractVar[int]  # the first field of all; others are declared by markets alone

    def __check_init__(self):
        count = check_count("num_firms", self.num_firms)
        for name in ("quality", "cost"):
            value = getattr(self, name, None)
            if isinstance(value, jax.Array) and value.shape not in ((), (count,)):
                raise ValueError(
                    f"{type(self).__name__}.{name} must be one number or one per firm, [{count}]; "
                    f"found an array of shape {value.shape}."
                )

    @abc.abstractmethod
    def demand(self, prices: Float[Array, " n"]) -> Float[Array, " n"]:
        """Returns the quantity that each firm sells at the prices of all firms.

        Pure and written in JAX, as its prices and the market's own arrays are traced.
        """

    def profits(self: Any, prices: Float[Array, " n"]) -> Float[Array, " n"]:
        """Returns each firm's profit, `(price - cost) demand`."""
        return (prices - self.cost) * self.demand(prices)

    def nash_prices(self) -> Float[Array, " n"]:
        """Returns the prices of the one-shot Nash equilibrium, by its first-order conditions.

        Raises:
            ValueError: if no such prices are found (NaN where traced by JAX).
        """
        return self._prices(collude=False)

    def monopoly_prices(self) -> Float[Array, " n"]:
        """Returns the prices that maximise the joint profit, by their first-order conditions.

        Raises:
            ValueError: if no such prices are found (NaN where traced by JAX).
        """
        return self._prices(collude=True)

    def _prices(self, collude: bool) -> Float[Array, " n"]:
        prices = _best_prices(self, jnp.asarray(collude))
        if is_concrete(prices) and not jnp.isfinite(prices).all():
            name = "monopoly" if collude else "Nash"
            raise ValueError(f"{self} has no {name} prices that its first-order conditions find.")
        return prices

    def price_grid(
        self, num_prices: int = 15, extension: Real[ArrayLike, ""] = 0.1
    ) -> Float[Array, "n m"]:
        """Returns equally spaced prices, `[n, m]`, from below Nash to above monopoly prices.

        The interval between both is extended by `extension` times its length on either side
        (Calvano, Calzolari, Denicolo and Pastorello 2020).
        """
        extension = check_number("extension", extension)
        nash, monopoly = self.nash_prices(), self.monopoly_prices()
        margin = extension * (monopoly - nash)
        count = check_count("num_prices", num_prices)
        return jnp.linspace(nash - margin, monopoly + margin, count, axis=-1)

    def payoffs(self, prices: Real[ArrayLike, "n m"] | Sequence) -> Float[Array, "*m n"]:
        """Returns the profits of every combination of prices, `[m, .., m, n]`.

        Args:
            prices: the prices that each firm can set, `[n, m]`.

        Raises:
            ValueError: if prices do not have one row per firm, or demand is negative or not finite
                at some of them.
        """
        grid = self._grid(prices)
        combinations = jnp.stack(jnp.meshgrid(*grid, indexing="ij"), axis=-1)
        flat = combinations.reshape(-1, self.num_firms)
        demand = jax.vmap(self.demand)(flat)
        if is_concrete(demand):
            outside = ~(np.isfinite(demand) & (np.asarray(demand) >= 0)).all(axis=1)
            if outside.any():
                raise ValueError(
                    f"prices {np.asarray(flat)[outside][0]} lie outside the domain of demand, "
                    f"which is {np.asarray(demand)[outside][0]} there."
                )
        return jax.vmap(self.profits)(flat).reshape(combinations.shape)

    def _grid(self, prices: Any) -> Float[Array, "n m"]:
        """The prices that each firm can set, checked."""
        grid = jnp.asarray(check_array("prices", prices), dtype=float)
        if grid.ndim != 2 or len(grid) != self.num_firms:
            raise ValueError(
                f"prices must have shape [{self.num_firms}, m], one row per firm; "
                f"found {grid.shape}."
            )
        return grid

    def game(
        self, prices: Real[ArrayLike, "n m"] | Sequence | None = None, *, memory: int = 1
    ) -> MarkovGame:
        """Returns the repeated pricing game; states are the remembered prices.

        Args:
            prices: the prices that each firm can set, `[n, m]`; `price_grid()` by default.
            memory: number of past periods remembered; there are `m^(n memory)` states.
        """
        grid = self.price_grid() if prices is None else self._grid(prices)
        check_states([grid.shape[1]] * self.num_firms, memory)
        payoffs = tuple(jnp.moveaxis(self.payoffs(grid), -1, 0))
        return repeated(payoffs, memory=memory, action_names=price_names(grid))


def price_names(prices: Real[ArrayLike, "n m"]) -> list[list[str]] | None:
    """Returns names of prices with as few digits, at least two, as tell them apart."""
    if not is_concrete(prices):
        return None
    for digits in range(2, 17):
        names = [[f"{price:.{digits}f}" for price in own] for own in np.asarray(prices)]
        if all(len(set(own)) == len(own) for own in names):
            return names
    return None


@lightly_compiled
def _best_prices(market: Any, collude: Bool[Array, ""]) -> Float[Array, " n"]:
    """Prices whose markups over cost are those that their demand calls for."""

    def excess(prices):
        demand, slopes = market.demand(prices), jax.jacobian(market.demand)(prices)
        # A firm for itself minds its own sales only.
        minded = jnp.where(collude, slopes.T, jnp.diag(jnp.diag(slopes)))
        return prices - market.cost + jnp.linalg.solve(minded, demand)

    first = jnp.broadcast_to(market.cost, (market.num_firms,))
    # Newton's method by JAX alone: that of optimistix cannot be mapped over devices.
    return jax.lax.custom_root(excess, first, _newton, _solve_linear)


def _newton(function: Callable, first: Float[Array, " n"]) -> Float[Array, " n"]:
    """A root by Newton's method, in at most 100 steps; NaN where it is not found."""
    tolerance = 100 * jnp.finfo(first.dtype).eps

    def is_off(x, step):
        return jnp.any(~(jnp.abs(step) <= tolerance * (1 + jnp.abs(x))))

    def improve(carry):
        x, _, count = carry
        step = -jnp.linalg.solve(jax.jacobian(function)(x), function(x))
        return x + step, step, count + 1

    x, step, _ = jax.lax.while_loop(
        lambda carry: is_off(*carry[:2]) & (carry[2] < 100), improve, (first, first + jnp.inf, 0)
    )
    return jnp.where(is_off(x, step), jnp.nan, x)


def _solve_linear(function: Callable, value: Float[Array, " n"]) -> Float[Array, " n"]:
    """Where a linear function takes a value."""
    return jnp.linalg.solve(jax.jacobian(function)(value), value)


class LogitMarket(AbstractMarket):
    """Logit demand: `q_i = exp((a_i - p_i)/mu) / (sum_j exp((a_j - p_j)/mu) + exp(a_0/mu))`.

    The defaults are those of Calvano, Calzolari, Denicolo and Pastorello 2020.

    Attributes:
        num_firms: n.
        quality: a, one number or one per firm.
        cost: marginal cost, one number or one per firm.
        outside: a_0, the quality of the outside good.
        differentiation: mu, positive; products are perfect substitutes as it vanishes.
    """

    num_firms: int = eqx.field(default=2, static=True)
    quality: Float[Array, "..."] | float = hyper(2.0, scalar=False)
    cost: Float[Array, "..."] | float = hyper(1.0, scalar=False)
    outside: Scalar = hyper(0.0)
    differentiation: Scalar = hyper(0.25, within="(0, inf)")

    def demand(self, prices: Float[Array, " n"]) -> Float[Array, " n"]:
        """Returns the share of consumers that buy of each firm."""
        utilities = (self.quality - prices) / self.differentiation
        outside = self.outside / self.differentiation
        return jax.nn.softmax(jnp.append(utilities, outside))[:-1]


class LinearMarket(AbstractMarket):
    """Linear demand for differentiated goods (Singh and Vives 1984).

    Demand inverts `p_i = a - q_i - d sum_{j != i} q_j`.

    Attributes:
        num_firms: n.
        intercept: a.
        cost: marginal cost, one number or one per firm.
        substitutability: d, in [0, 1).
    """

    num_firms: int = eqx.field(default=2, static=True)
    intercept: Scalar = hyper(1.0, within="(0, inf)")
    cost: Float[Array, "..."] | float = hyper(0.0, scalar=False)
    substitutability: Scalar = hyper(0.5, within="[0, 1)")

    def demand(self, prices: Float[Array, " n"]) -> Float[Array, " n"]:
        """Returns the quantities, negative outside the domain of the model."""
        d, left = self.substitutability, self.intercept - prices
        return (left - d * left.sum() / (1 + (self.num_firms - 1) * d)) / (1 - d)
