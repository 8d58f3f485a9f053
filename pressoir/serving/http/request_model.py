"""The base of request bodies: numbers are finite, as JSON has no others."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RequestModel(BaseModel):
    """A request body, or a part of one; unknown fields are ignored."""

    model_config = ConfigDict(allow_inf_nan=False)


class StrictRequestModel(RequestModel):
    """A request body; unknown fields are errors, and null means that the field is omitted."""

    model_config = ConfigDict(extra="forbid")
