"""A conversation as the text that a model was trained to answer: its own chat template.

A template is Jinja that came with the model's files. It runs in Jinja's sandbox, on the messages alone; what
it may do is what Hugging Face's templates do.

Sources. https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pressoir.errors import SourceError
from pressoir.formats.folder import read_json
from pressoir.serving.errors import RequestError
from pressoir.system import reader

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


class _Generation(Extension):
    """`{% generation %}`, which marks what an assistant said for training, and changes nothing else."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """The template of a model folder.

    Raises:
        RequestError: the model has none, and so was not trained on conversations.
        SourceError: it is broken.
    """

    def __init__(self, folder: Path) -> None:
        settings = _json(folder / "tokenizer_config.json")
        source = _source(folder, settings)
        if source is None:
            raise RequestError(
                "this model has no chat template and was not trained for chat; use /v1/completions"
            )
        self._tokens = {name: text for name in _SPECIAL if (text := _content(settings.get(name)))}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise SourceError(f"the chat template of {folder} is not valid: {error}") from error

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text that the model's next message follows.

        The token that begins a text is left off where it stands first: the tokenizer adds its own.

        Raises:
            RequestError: the template refuses the messages.
        """
        try:
            text = self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._tokens
            )
        except Exception as error:  # whatever a template may stumble over
            raise RequestError(f"the chat template of the model rejects the messages: {error}") from error
        return text.removeprefix(self._tokens.get("bos_token", ""))


def _source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return reader.read_text(file, SourceError, "download the model again")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except SourceError:
        return {}


def _content(token: Any) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
