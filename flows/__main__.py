"""The program `pressoir`, also `python -m pressoir.flows`.

Importing the command line reads the declarations of every installed package, of which one may be broken.
"""

from __future__ import annotations

import sys

from pressoir.errors import ExtensionError
from pressoir.flows.commands.stopping import stoppable
from pressoir.system.family import guard

_AGAIN = "run the same command again to go on: finished steps are kept"
_WORK = {
    **dict.fromkeys(("compress", "search"), _AGAIN),
    **dict.fromkeys(("merge", "quantize", "shard", "unshard"), "run the same command again"),
    "evaluate": "the same command with --resume and the name of the run goes on",
    "deploy": "what was changed is taken back; run the same command again",
}
"""Commands that work for long, and what a user can do when one was stopped."""


def main() -> None:
    """Run the command line; a package that cannot be used is one line and exit code 2."""
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
    cli.main(prog_name="pressoir")


if __name__ == "__main__":
    main()
