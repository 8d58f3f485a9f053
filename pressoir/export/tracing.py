"""What every export has in common: the name of its report, and silence about what it cannot help."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

REPORT = "export.json"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what tracing says to developers of exporters: tracer, deprecation and fusion notes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
