"""Figures as files."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..base.files import replacing

if TYPE_CHECKING:
    import matplotlib.figure

_DPI = 150


def write_png(figure: "matplotlib.figure.Figure", path: Path) -> None:
    """Writes a figure to a PNG file, completely or not at all.

    The file is the one of `savefig`, which draws twice where a layout has to be found.

    Raises:
        OSError: if the file cannot be written; one that was there is left as it was.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    with replacing(path) as temporary:
        imsave(temporary, np.asarray(canvas.buffer_rgba()), format="png", dpi=_DPI)
