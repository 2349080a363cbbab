"""Published numbers beside those found here, and whether they agree."""

import dataclasses
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..base.text import in_columns
from ..results.labels import attributes

if TYPE_CHECKING:
    import xarray

MOST_ERRORS = 5.0


class Quantity(NamedTuple):
    """A number, as it was published and as it was found here.

    Attributes:
        name: what it is.
        published: as printed, so that its last digit says how exact it is; None if it is not.
        here: as found here.
        standard_error: of the difference of the two, by the sampling of both; 0 if both are
            computed.
        anew: whether `published` is not the paper's, but was computed anew by another program.
    """

    name: str
    published: str | None
    here: float
    standard_error: float = 0.0
    anew: bool = False

    @property
    def last_digit(self) -> float:
        """A unit of the last digit that was published: papers round, or cut."""
        return 10.0 ** int(Decimal(self.published or "0").as_tuple().exponent)

    @property
    def difference(self) -> float:
        """Here minus published; NaN if it is not published."""
        return self.here - float(self.published or "nan")

    @property
    def z(self) -> float:
        """The difference in standard errors; NaN without either."""
        return self.difference / self.standard_error if self.standard_error > 0 else float("nan")

    @property
    def agrees(self) -> bool:
        """Whether the difference is within five standard errors and a unit of the last digit."""
        if self.published is None:
            return True
        allowed = MOST_ERRORS * self.standard_error + self.last_digit
        return bool(abs(self.difference) <= allowed)

    @property
    def row(self) -> tuple[str, ...]:
        """The quantity as a line of a table."""
        return (
            self.name,
            (self.published or "-") + "*" * self.anew,
            f"{self.here:.6g}",
            f"{self.standard_error:.2g}" if self.standard_error > 0 else "-",
            f"{self.z:+.1f}" if np.isfinite(self.z) else "-",
        )


_HEADS = ("quantity", "published", "here", "standard error", "z")


@dataclasses.dataclass(frozen=True)
class Replication:
    """A paper's numbers found anew.

    Attributes:
        source: the paper.
        quantities: its numbers beside those found here.
        data: what was found, labelled, beyond these numbers, if there is more.
        notes: what else a reader must know: speed, what was not reached, what differs.
        draw: makes the figure, if there is one.
    """

    source: str
    quantities: tuple[Quantity, ...]
    data: "xarray.Dataset | None" = None
    notes: tuple[str, ...] = ()
    draw: Callable[[], Any] | None = None

    @property
    def agrees(self) -> bool:
        """Whether every published number agrees."""
        return all(quantity.agrees for quantity in self.quantities)

    def to_xarray(self) -> "xarray.Dataset":
        """Numbers and data as one labelled data set."""
        import xarray

        columns = {
            "published": [float(quantity.published or "nan") for quantity in self.quantities],
            "here": [quantity.here for quantity in self.quantities],
            "standard_error": [quantity.standard_error for quantity in self.quantities],
        }
        names = [quantity.name for quantity in self.quantities]
        texts = ("as published", "as found here", "standard error of the difference")
        table = xarray.Dataset(
            {
                name: ("quantity", np.asarray(column, dtype=float), attributes(text))
                for (name, column), text in zip(columns.items(), texts, strict=True)
            },
            {"quantity": ("quantity", names, attributes("quantity"))},
            attrs={"source": self.source, "notes": " ".join(self.notes)},
        )
        return table if self.data is None else table.merge(self.data)

    def __str__(self) -> str:
        rows = in_columns([_HEADS, *(quantity.row for quantity in self.quantities)])
        compared = [quantity for quantity in self.quantities if quantity.published is not None]
        apart = [quantity.name for quantity in compared if not quantity.agrees]
        sampled = any(quantity.standard_error > 0 for quantity in compared)
        within = f"{MOST_ERRORS:.0f} standard errors and " if sampled else ""
        verdict = (
            f"All {len(compared)} numbers agree within {within}the digits given."
            if not apart
            else f"{len(apart)} of {len(compared)} numbers disagree by more than {within}"
            f"the digits given: {', '.join(apart)}."
        )
        star = "* Not in the paper: computed anew for this package, by another program."
        stars = [star] if any(quantity.anew for quantity in self.quantities) else []
        return "\n".join([self.source, "", rows, "", *stars, *self.notes, verdict])


def mean_of(name: str, published: str | None, values: Any, spread: float, of: int) -> Quantity:
    """A mean over sessions beside a published one over others.

    Args:
        name: what it is.
        published: the published mean.
        values: by session.
        spread: the standard deviation over sessions, as published where it is.
        of: number of sessions of the published mean.
    """
    count = np.size(values)
    if count == 0:
        return Quantity(name, published, float("nan"))
    error = spread * np.sqrt(1 / count + (1 / of if published else 0))
    return Quantity(name, published, float(np.mean(values)), float(error))


def share_of(name: str, published: str | None, values: Any, of: int) -> Quantity:
    """A share of sessions beside a published one; the standard error is that of equal chances."""
    chance = float(published) if published else float(np.mean(values))
    return mean_of(name, published, np.asarray(values), np.sqrt(chance * (1 - chance)), of)


def statistic_of(
    name: str, published: str, values: Any, statistic: Callable[..., Any], of: int
) -> Quantity:
    """Any statistic over sessions beside a published one; the standard error by the bootstrap.

    Args:
        name: what it is.
        published: the published number.
        values: by session, `[R]`.
        statistic: of values, along `axis`.
        of: number of sessions of the published one.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Quantity(name, published, float("nan"))
    drawn = bootstrap(
        (values,), statistic, n_resamples=999, method="percentile", rng=np.random.default_rng(0)
    )
    error = float(drawn.standard_error) * np.sqrt(1 + len(values) / of)
    return Quantity(name, published, float(statistic(values)), float(error))


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function changes its sign."""
    from scipy.optimize import brentq

    found: Any = brentq(function, low, high, xtol=1e-10)
    return float(found)
