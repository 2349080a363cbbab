"""Figures as files."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..base.files import replacing

if TYPE_CHECKING:
    import matplotlib.axis
    import matplotlib.figure

_DPI = 150


def write_png(figure: "matplotlib.figure.Figure", path: Path) -> None:
    """Writes a figure to a PNG file, completely or not at all.

    The file is the one of `savefig(dpi=150)`, but that axes without tick labels have no part in
    finding a layout, which takes most of the time.

    Raises:
        OSError: if the file cannot be written; one that was there is left as it was.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    _lay_out(figure)
    with replacing(path) as temporary:
        canvas.print_png(temporary)


def _lay_out(figure: "matplotlib.figure.Figure") -> None:
    """Moves axes to where the figure's layout has them, once and for all."""
    layout = figure.get_layout_engine()
    if layout is None:
        return
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) if axis.get_visible()]
    bare = [axis for axis in axes if not (_has_labels(axis) or axis.get_label_text())]
    for axis in bare:
        axis.set_visible(False)
    layout.execute(figure)
    for axis in bare:
        axis.set_visible(True)
    figure.set_layout_engine("none")


def _has_labels(axis: "matplotlib.axis.Axis") -> bool:
    shown = axis.get_tick_params()
    return any(shown.get(f"label{side}") for side in ("left", "right", "top", "bottom"))
