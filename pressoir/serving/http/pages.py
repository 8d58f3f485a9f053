"""The comparison page, its files, and the documentation of the endpoints.

All of it is served from here, so that it works offline: FastAPI's own documentation page would load its
scripts from elsewhere.
"""

from __future__ import annotations

import asyncio
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

from pressoir.serving.http.refusals import JsonAnswer

PAGE = Path(__file__).parents[1] / "page"
_NO_CACHE = {"Cache-Control": "no-cache"}


def routes() -> APIRouter:
    """The endpoints."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        return _file("index.html")

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        return _file(name)

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return HTMLResponse(documentation(await _document(request)))

    @router.get("/openapi.json")
    async def openapi(request: Request) -> Response:
        return JsonAnswer(await _document(request))

    return router


async def _document(request: Request) -> dict[str, Any]:
    """The document, which takes half a second to make the first time."""
    content: dict[str, Any] = await asyncio.to_thread(request.app.state.document.content, request.state.role)
    return content


def _file(name: str) -> Response:
    if not PAGE.is_dir() or name not in {path.name for path in PAGE.iterdir() if path.is_file()}:
        raise HTTPException(404)
    return FileResponse(PAGE / name, headers=_NO_CACHE)


def documentation(schema: dict[str, Any]) -> str:
    """A page of all endpoints of an OpenAPI schema, with the fields that they take."""
    groups: dict[str, list[str]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            group = operation.get("tags", [""])[-1]
            groups.setdefault(group, []).append(_operation(schema, path, method, operation))
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    parts = "".join(f"<h2>{escape(name)}</h2>{''.join(found)}" for name, found in groups.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
        f'<body><h1>{title}</h1><p><a href="/openapi.json">openapi.json</a></p>{parts}</body></html>'
    )


def _operation(schema: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    fields = [
        (parameter["name"], parameter["schema"], parameter.get("required", False))
        for parameter in operation.get("parameters", ())
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        body = content["schema"]
        for option in body.get("anyOf", [body]):
            model = schema["components"]["schemas"].get(option.get("$ref", "").rpartition("/")[2], {})
            needed = model.get("required", ())
            fields += [
                (name, field_schema, name in needed)
                for name, field_schema in model.get("properties", {}).items()
            ]
    rows = "".join(
        f"<li><code>{escape(name)}</code> {escape(_type(field_schema))}{', required' if needed else ''}</li>"
        for name, field_schema, needed in fields
    )
    text = escape(operation.get("description", ""))
    return f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{text}</p><ul>{rows}</ul>"


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema or "const" in schema:
        return " or ".join(map(repr, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("type", "anything"))
    return f"list of {_type(schema['items'])}" if kind == "array" and schema.get("items") else kind
