"""`ergodax replicate`: numbers of published studies beside those found here."""

import argparse
import sys
from pathlib import Path

from .options import LAYOUT, add_cache, add_option, count
from .output import fail
from .running import prepare

_EXAMPLES = """\
examples:
  ergodax replicate --list
  ergodax replicate den-boer
  ergodax replicate calvano2020 --sessions 1000 --checkpoint sessions.h5
  ergodax replicate calvano2020 --grid 0.05,0.15 4e-6,1e-5
"""


def add_to(commands) -> None:
    """Adds the command."""
    replicate = commands.add_parser(
        "replicate",
        help="find the numbers of a published study anew",
        description="Prints published numbers beside those found here, with standard errors, and\n"
        "writes OUT/NAME.nc and, where there is one, the figure OUT/NAME.png. The exit code is 0\n"
        "if all agree within five standard errors, else 1.",
        epilog=_EXAMPLES,
        formatter_class=LAYOUT,
        allow_abbrev=False,
    )
    replicate.set_defaults(command=_replicate)
    replicate.add_argument("name", metavar="NAME", nargs="?", help="one of --list")
    replicate.add_argument("--list", action="store_true", help="print what can be replicated")
    group = replicate.add_argument_group("where the study simulates")
    group.add_argument(
        "--sessions",
        type=count(2),
        help="number of sessions (default: 100, of calvano2020 40, of klein2021 200)",
        metavar="R",
    )
    group.add_argument("--seed", type=count(0), help="random seed (default: 0)", metavar="SEED")
    group.add_argument(
        "--grid",
        type=_numbers,
        nargs=2,
        help="of calvano2020: learning rates and decays of exploration, each divided by commas",
        metavar=("ALPHAS", "BETAS"),
    )
    group.add_argument(
        "--checkpoint", type=Path, help="of calvano2020: file to continue from", metavar="FILE"
    )
    group = replicate.add_argument_group("output")
    add_option(group, "--out", Path, Path("out"), "output folder", metavar="OUT")
    add_cache(group)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers divided by commas, e.g. 0.05,0.15; found {text}"
        ) from None


def _replicate(options: argparse.Namespace, command: str) -> int:
    from .. import io, replications
    from ..base.files import prepare_folder
    from ..plot.png import write_png

    if options.list:
        for name, about in replications.PAPERS.items():
            print(f"{name:18} {about}")
        return 0
    if options.name is None:
        raise ValueError("NAME is missing: ergodax replicate --list prints what there is")
    names = ("sessions", "seed", "grid", "checkpoint")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if replications.takes(options.name, "progress"):
        given["progress"] = sys.stderr.isatty()
    prepare(options.cache)
    prepare_folder(options.out)
    found = replications.replicate(options.name, **given)
    print(found, flush=True)
    written = [options.out / f"{options.name}.nc"]
    io.save(found.to_xarray(), written[0], attributes={"command": command})
    if found.draw is not None:
        written.append(options.out / f"{options.name}.png")
        write_png(found.draw(), written[1])
    print("\nwritten:", *written)
    if not found.agrees:
        return fail("published numbers are not reproduced", 1)
    return 0
