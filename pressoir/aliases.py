"""Second names of modules: one module, whichever of its names it is imported by.

In the repository, `flows` and `tasks` are `pressoir.flows` and `pressoir.tasks`; a module that was loaded
twice would have its classes, flows and context variables twice. And models that MLflow logged under an
earlier version carry code that imports modules by the names they had then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType

_FORMER = {
    "pressoir.artifact": "pressoir.store.store",
    "pressoir.runtime": "pressoir.system.runtime",
}


class _Finder(MetaPathFinder, InspectLoader):
    """Finds a module by its second name, and loads it by the first."""

    def __init__(self) -> None:
        self.names = dict(_FORMER)
        self.packages: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A specification where `fullname` is a second name of a module that exists."""
        name = self._name(fullname)
        own = find_spec(name) if name else None
        return spec_from_loader(fullname, self, origin=own.origin) if own else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module itself where the import system looks for what it asked to have loaded."""
        name = module.__name__
        sys.modules[name] = import_module(self._name(name) or name)

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs."""
        spec = find_spec(self._name(fullname) or fullname)
        assert spec is not None
        assert isinstance(spec.loader, InspectLoader)
        return spec.loader.get_code(spec.name)

    def get_source(self, fullname: str) -> str | None:
        """None: tracebacks read the module's own file."""
        return None

    def is_package(self, fullname: str) -> bool:
        """False: whether the module is a package, its own specification says."""
        return False

    def _name(self, fullname: str) -> str | None:
        package, dot, rest = fullname.partition(".")
        own = self.packages.get(package)
        if own and dot and sys.modules.get(package) is sys.modules.get(own):
            return f"{own}.{rest}"
        return self.names.get(fullname)


_finder = _Finder()


def install() -> None:
    """Have modules found by the names that they had in earlier versions."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def stand_for(package: str, own: str) -> None:
    """Called by `package` while it is imported: it is `own` from now on, and so is all that lies in it."""
    install()
    _finder.packages[package] = own
    sys.modules[package] = import_module(own)
