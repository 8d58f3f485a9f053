"""The program `pressoir`, also `python -m pressoir.flows`.

Importing the command line reads the declarations of every installed package; one of them may be broken.
"""

from __future__ import annotations

import os
import signal
import sys

from pressoir.errors import ExtensionError
from pressoir.flows.commands.stopping import stoppable
from pressoir.system.family import guard

_AGAIN = "run the same command again to go on: finished steps are kept"
_WORK = {
    **dict.fromkeys(("compress", "search", "press"), _AGAIN),
    **dict.fromkeys(("merge", "quantize", "shard", "unshard"), "run the same command again"),
    "evaluate": "the same command with --resume and the name of the run goes on",
    "deploy": "what was changed is taken back; run the same command again",
}
"""Commands that work for long, and what a user can do when one was stopped."""


def main() -> None:
    """Run the command line; a package that cannot be used is one line and exit code 2.

    Where nobody reads standard output any more (`| head -1`), the end is silent, with SIGPIPE's exit code;
    where it cannot be written (a full disk), that is said in one line, with exit code 2.
    """
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if name not in _WORK:
        _run()
        return
    guard()
    with stoppable(_WORK[name], 20.0 if name == "deploy" else 3.0):
        _run()


def _run() -> None:
    try:
        from pressoir.flows import cli
    except ExtensionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        try:
            cli.main(prog_name="pressoir")
        finally:
            sys.stdout.flush()
    except SystemExit as end:  # click and rich make 1 of it, which also says that something was found
        if isinstance(end.__context__, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        raise
    except OSError as error:
        if error.filename is not None or _takes_output():
            raise
        _discard_output()
        if isinstance(error, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def _takes_output() -> bool:
    """Whether standard output can be written; a write that failed says nothing of which file it was."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _discard_output() -> None:
    """Drop what is still in the buffer of standard output; else the interpreter's end fails to write it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()
