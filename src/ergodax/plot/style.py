"""One look for all figures: colours, line styles, markers, sizes."""

import textwrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ..base.checks import check_type

if TYPE_CHECKING:
    import matplotlib.axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")
_MARKERS_PER_LINE = 10
GREY = "#8C8C8C"
WIDTH = 3.4  # of a column of an article, in inches
Where = Literal["inside", "above", "below"]
# A legend beside the axes from so many entries on, in columns of so many.
_BESIDE, _TALL = 4, 8
# Two texts of fewer letters stand beside each other, on axes wider than so many inches.
_LONG, _NARROW = 26, 2.4
_LINE = 40  # letters of a title


class Look(NamedTuple):
    """How one action, state, path or attractor is drawn."""

    colour: str
    linestyle: str
    marker: str
    stagger: float

    @property
    def line(self) -> dict[str, Any]:
        """A line: the averaged ODE."""
        return {"color": self.colour, "linestyle": self.linestyle, "linewidth": 1.4}

    @property
    def joined(self) -> dict[str, Any]:
        """Hollow markers joined by a thin line: a mean that stands alone."""
        return self.point | {"linestyle": self.linestyle, "linewidth": 0.7}

    @property
    def run(self) -> dict[str, Any]:
        """A thin line: one simulated run."""
        return {"color": self.colour, "linewidth": 0.5, "alpha": 0.5}

    @property
    def band(self) -> dict[str, Any]:
        """A filled band."""
        return {"color": self.colour, "alpha": 0.2, "linewidth": 0}

    @property
    def edge(self) -> dict[str, Any]:
        """The dotted edge of a band."""
        style = {"edgecolor": self.colour, "linestyle": (0, (1, 1)), "linewidth": 0.9}
        return {"facecolor": "none"} | style

    @property
    def point(self) -> dict[str, Any]:
        """Hollow markers without a line."""
        return {
            "color": self.colour,
            "linestyle": "none",
            "marker": self.marker,
            "markersize": 4.0,
            "markerfacecolor": "white",
            "markeredgewidth": 1.0,
        }

    def some(self, count: int) -> dict[str, Any]:
        """Marks some of `count` points, staggered so that they do not hide each other."""
        every = max(1, count // _MARKERS_PER_LINE)
        return {"markevery": (int(self.stagger * every), every)}


NEUTRAL = Look("#000000", "-", "o", 0.0)


def look(index: int) -> Look:
    """The look of one of several; 140 differ."""
    return Look(
        _COLOURS[index % len(_COLOURS)],
        _LINES[index % len(_LINES)],
        _MARKERS[index % len(_MARKERS)],
        index % 2 / 2,
    )


def plain(name: Any) -> str:
    """A user's name as it is: matplotlib takes what stands between dollar signs for a formula."""
    return str(name).replace("$", r"\$")


def is_geometric(values: Any) -> bool:
    """Whether positive numbers are more evenly spaced by their logarithms."""
    x = np.asarray(values)
    if x.dtype.kind not in "iuf" or len(x) < 3 or np.any(x <= 0) or np.any(np.diff(x) <= 0):
        return False
    steps, factors = np.diff(x), np.diff(np.log(x))
    return bool(factors.max() / factors.min() < 0.99 * steps.max() / steps.min())


def axes_or_new(ax: Any, height: float = 2.6) -> "matplotlib.axes.Axes":
    """The axes given, or those of a new figure of an article's column."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is not None:
        return check_type("ax", ax, Axes, "axes of matplotlib")

    ax = Figure(figsize=(WIDTH, height), layout="constrained").subplots()
    ax.tick_params(labelsize="small")
    return ax


def title(ax: Any, text: str, pad: float | None = None) -> None:
    """A title no larger than the labels, `pad` points above the axes, in lines of their width."""
    ax.set_title(textwrap.fill(text, _LINE), fontsize="medium", pad=pad)


def legend(ax: Any, handles: Any = None, where: Where = "inside", pad: float = 0.4) -> None:
    """A small legend: inside the axes where it hides least, or beside them if it is long.

    Above and below the axes, where it hides nothing, it has up to two columns, and stands `pad`
    times its font size away.
    """
    if handles is None:
        handles = ax.get_legend_handles_labels()[0]
    if not handles:
        return
    place: dict[str, Any] = {"loc": "best"}
    if where == "inside" and len(handles) >= _BESIDE:
        columns = -(-len(handles) // _TALL)
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1), "ncols": columns}
    elif where == "above":
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}
    elif where == "below":
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
    if where != "inside":
        short = max(len(handle.get_label()) for handle in handles) < _LONG
        wide = ax.get_window_extent().width / ax.figure.dpi > _NARROW
        place["ncols"] = 2 if short and wide and len(handles) > 1 else 1
    small = {"fontsize": "small", "handlelength": 1.6, "columnspacing": 1.0}
    # Matplotlib leaves out what begins with an underscore.
    labels = [handle.get_label() for handle in handles]
    labels = [f" {label}" if label.startswith("_") else label for label in labels]
    ax.legend(handles, labels, frameon=False, borderaxespad=pad, **small, **place)
