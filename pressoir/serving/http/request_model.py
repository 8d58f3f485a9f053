"""The base of request bodies: numbers are finite, as JSON has no others."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RequestModel(BaseModel):
    """A request body, or a part of one; unknown fields are ignored."""

    model_config = ConfigDict(allow_inf_nan=False)


class StrictRequestModel(RequestModel):
    """A request body in which an unknown field is an error; null is the same as omitted."""

    model_config = ConfigDict(extra="forbid")
