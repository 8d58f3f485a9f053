"""JSON of a request is parsed at once."""

import asyncio
import gc
import json

import pytest

from pressoir.serving.http.body_route import MOST_FIELDS, BodyRequest, check_fields
from pressoir.serving.http.refusals import HttpError


def test_a_body_of_more_fields_than_a_request_can_have_is_refused_before_it_is_parsed():
    fields = [f'"{index}":0' for index in range(MOST_FIELDS + 1)]
    check_fields(b"{" + ",".join(fields[:-1]).encode() + b"}")
    with pytest.raises(HttpError, match="more than 20,000 fields") as refused:
        check_fields(b"{" + ",".join(fields).encode() + b"}")
    assert refused.value.status == 422
    text = json.dumps({"text": "{" + ",".join(fields) + "}"})  # JSON within a text is a text
    assert json.loads(text)["text"].count('":') == MOST_FIELDS + 1
    check_fields(text.encode())


def test_the_garbage_collector_rests_while_json_is_parsed(monkeypatch):
    content = json.dumps([{"a": []}] * 50_000).encode()
    collections, of_each_parsing, found = [], [], []
    parse = json.loads

    def count(body):
        before = len(collections)
        try:
            return parse(body)
        finally:
            of_each_parsing.append(len(collections) - before)

    async def receive():
        return {"type": "http.request", "body": content, "more_body": False}

    async def read():
        request = BodyRequest({"type": "http", "method": "POST", "headers": []}, receive)
        found.append(await request.json())

    monkeypatch.setattr(json, "loads", count)
    gc.callbacks.append(lambda phase, info: collections.append(phase))
    try:
        json.loads(content)
        asyncio.run(read())
    finally:
        gc.callbacks.pop()
    assert of_each_parsing[0] > 0, "it does not rest otherwise"
    assert of_each_parsing[1:] == [0]
    assert found == [parse(content)]
    assert gc.isenabled()
