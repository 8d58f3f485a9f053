"""What an optional extra of the package brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pressoir.errors import RecipeError


@contextmanager
def needs_dask() -> Iterator[None]:
    """A block that imports what the extra `dask` brings.

    Raises:
        RecipeError: the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"`dask` requires the extra of that name: `pip install '.[dask]'` in Pressoir's folder ({error})"
        ) from error
