"""The program `pressoir`, also `python -m pressoir.flows`.

Importing the command line reads the declarations of every installed package, of which one may be broken.
"""

from __future__ import annotations

import sys

from pressoir.errors import ExtensionError


def main() -> None:
    """Run the command line; a package that cannot be used is one line and exit code 2."""
    try:
        from pressoir.flows import cli
    except ExtensionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
