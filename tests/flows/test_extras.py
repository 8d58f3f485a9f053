"""What needs an extra says which."""

from importlib import import_module

import pytest

from pressoir.errors import RecipeError
from pressoir.flows.extras import needs_dask


def test_a_missing_extra_is_told_with_how_to_get_it():
    told = r"`pip install '\.\[dask\]'` in Pressoir's folder \(No module named 'no_dask'\)"
    with pytest.raises(RecipeError, match=told), needs_dask():
        import_module("no_dask")


def test_any_other_error_of_the_block_is_its_own():
    with pytest.raises(ZeroDivisionError), needs_dask():
        _ = 1 / 0
