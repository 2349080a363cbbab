"""What the command line prints and writes."""

import sys
from pathlib import Path
from typing import Any


def fail(error: object, code: int) -> int:
    """Prints an error as one line and returns the exit code."""
    print("ergodax: error:", *str(error).split(), file=sys.stderr)
    return code


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Prints a warning as one line, in the place of Python's own."""
    print("ergodax: warning:", *str(message).split(), file=sys.stderr)


def write_result(result: Any, figure: Any, stem: Path, command: str) -> None:
    """Prints the result, writes figure and data, and says where they are."""
    from .. import io
    from ..plot.png import write_png

    print(result, flush=True)  # first: a disk that is full shall not lose it
    image, data = stem.with_suffix(".png"), stem.with_suffix(".nc")
    io.save(result, data, attributes={"command": command})
    write_png(figure, image)
    print("\nwritten:", image, data)
