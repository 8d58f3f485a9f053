"""Lists of entry points: names without imports, one declaration a name, faults that name the package."""

import subprocess
import sys

import pytest

from pressoir.errors import ExtensionError
from pressoir.extensions import loader


def test_another_packages_entry_joins_the_list_with_its_version(site):
    site("other", {"pressoir.quantizers": {"one_bit": "json"}})
    assert {"one_bit", "rtn"} <= set(loader.names("pressoir.quantizers"))
    assert loader.origin("pressoir.quantizers", "one_bit") == ("other", "1.2")
    assert loader.origin("pressoir.quantizers", "rtn") is None


@pytest.mark.process
def test_reading_a_list_imports_nothing_of_it():
    program = (
        "import sys; from pressoir.extensions import loader; loader.names('pressoir.quantizers');"
        "print({'torch', 'prefect', 'mlflow', 'transformers', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ExtensionError, match=r"pressoir\.quantizers has no 'hqqq'; did you mean 'hqq'\?"):
        loader.load("pressoir.quantizers", "hqqq")


def test_two_packages_that_declare_one_name_are_both_named(site):
    site("other", {"pressoir.quantizers": {"rtn": "json"}})
    with pytest.raises(ExtensionError, match="other and pressoir-ml both declare 'rtn'"):
        loader.names("pressoir.quantizers")


@pytest.mark.parametrize("value", ["no_such_module_anywhere", "json:no_such_name"])
def test_an_entry_that_cannot_be_imported_names_its_package(site, value):
    site("other", {"pressoir.quantizers": {"broken": value}})
    with pytest.raises(ExtensionError, match=f"other declares 'broken' in pressoir.quantizers as {value}"):
        loader.load("pressoir.quantizers", "broken")
