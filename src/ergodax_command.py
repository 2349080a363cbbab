"""The `ergodax` program: what the installed command calls.

It stands outside of the package, whose import takes time, so that Ctrl-C meanwhile ends it with
a word and not with a traceback.
"""

import gc
import os
import sys


def program() -> None:
    """Runs the command line."""
    # What is imported and traced makes many objects, few of them garbage.
    gc.set_threshold(100_000)
    try:
        from ergodax.cli import program as run
    except KeyboardInterrupt:
        print("ergodax: error: interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # what is half imported may not survive an orderly end
    try:
        run()
    finally:
        gc.freeze()  # all of it goes with the process, without being looked through
