"""A configuration field whose value is a name that some package declares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler

from pressoir.errors import ExtensionError
from pressoir.extensions import loader


@dataclass(frozen=True)
class DeclaredName:
    """Marks a text field: `Annotated[str, DeclaredName("pressoir.quantizers")]`.

    Any other name is refused, with the nearest and the known ones; the JSON schema has the known names as an
    enum, so that forms offer a list. What the names stand for is not imported.
    """

    group: loader.Group

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that are accepted."""
        return loader.names(self.group)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return AfterValidator(self._check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.choices)}

    def _check(self, name: str) -> str:
        try:
            loader.check(self.group, name, self.choices)
        except ExtensionError as error:
            raise ValueError(str(error)) from None
        return name
