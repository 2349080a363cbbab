"""The `ergodax` program: what the installed command calls.

It stands outside of the package, whose import takes time, so that Ctrl-C meanwhile ends it with
a word and not with a traceback.
"""

import gc
import os
import sys


def program() -> None:
    """Runs the command line."""
    try:
        # All that is imported stays: it is never looked through for what could be freed.
        gc.disable()
        from ergodax.cli import program as run

        gc.freeze()
        gc.enable()
    except KeyboardInterrupt:
        print("ergodax: error: interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # what is half imported may not survive an orderly end
    run()
