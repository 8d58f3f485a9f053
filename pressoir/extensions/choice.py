"""A text that must be one of some names, which are known only when they are asked for.

Otherwise like a `Literal`: the same error, and the same enumeration in a JSON schema, so in forms too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema


@dataclass(frozen=True)
class OneOf:
    """Annotates a `str` field."""

    names: Callable[[], Sequence[str]]
    """The names, in the order in which they are shown."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        names = list(self.names())
        return {"const": names[0], "type": "string"} if len(names) == 1 else {"enum": names, "type": "string"}

    def _check(self, value: Any) -> str:
        names = self.names()
        if isinstance(value, str) and value in names:
            return value
        quoted = [repr(name) for name in names]
        expected = " or ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))
        raise PydanticKnownError("literal_error", {"expected": expected})
