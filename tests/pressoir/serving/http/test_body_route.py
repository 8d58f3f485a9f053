"""JSON of a request is parsed at once."""

import asyncio
import gc
import json

from pressoir.serving.http.body_route import BodyRequest


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
