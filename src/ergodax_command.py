"""The `ergodax` program: what the installed command calls.

It stands outside of the package, whose import takes a second, so that Ctrl-C meanwhile ends it with
a word and not with a traceback.
"""

import os
import sys


def program() -> None:
    """Runs the command line."""
    try:
        from ergodax.cli import program as run
    except KeyboardInterrupt:
        print("ergodax: error: interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # what is half imported may not survive an orderly end
    run()
