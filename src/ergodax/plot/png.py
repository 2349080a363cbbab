"""Figures as files."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..base.files import replacing

if TYPE_CHECKING:
    import matplotlib.figure

_DPI = 150


def write_png(figure: "matplotlib.figure.Figure", path: Path) -> None:
    """Writes a figure to a PNG file, completely or not at all.

    The file is the one of `savefig(dpi=150)`, which draws twice where a layout has to be found.

    Raises:
        OSError: if the file cannot be written; one that was there is left as it was.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(_DPI)
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
