"""`pressoir report`: a compression run as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from pressoir.errors import PressoirError
from pressoir.flows.commands.terminal import console


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--output",
    metavar="FILE.html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the page [default: report.html in DIR].",
)
def report(folder: Path, output: Path | None) -> None:
    """Write the compression run in DIR as one HTML page that opens offline.

    DIR is what `pressoir compress --output` wrote. A benchmark's folder in the store will do, too, with
    --output; it lacks the recipe. An existing page is replaced.

    \b
      pressoir report out/demo
      pressoir report out/demo --output demo.html
    """
    from pressoir.publishing import run_report

    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise PressoirError(f"--output {output} is not an HTML file; choose a name that ends in .html")
    console.print(escape(f"report  {run_report.write(folder, output)}"), soft_wrap=True)
