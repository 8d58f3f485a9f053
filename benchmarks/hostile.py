"""Hostile clients for `benchmarks/serving.py --hostile`, and the models that they are sent to.

`python benchmarks/hostile.py PORT KIND` is such a client: a process of its own, so that what it costs to
make and send a request is not measured with the others. It sends a request for each line of its standard
input, without waiting for the answer to the previous one, and prints at the end how often it was answered, by
status.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import loopback

CLASSIFIER, GENERATOR = "reviews", "story"
MANY = 100_000
MOST_BYTES = (1 << 20) - 1000
"""Just below what a server of these tiers reads by default; a larger body is refused by its head."""
TEXTS = 16
AT_ONCE, PAUSE_S = 100, 0.1
_PATIENCE_S = 60.0


def _array(item: str) -> str:
    """As many of an item as are asked for, or fit."""
    return f"[{','.join([item] * min(MANY, MOST_BYTES // (len(item) + 1)))}]"


def _unknown() -> str:
    return "{" + ",".join(f'"{index:x}":0' for index in range(MANY)) + "}"


def _chinese() -> str:
    length = MOST_BYTES // TEXTS // 3 - 10
    texts = [
        "".join(chr(0x4E00 + (index * 7 + text) % 1000) for index in range(length)) for text in range(TEXTS)
    ]
    return json.dumps({"text": texts, "tier": CLASSIFIER}, ensure_ascii=False)


_MESSAGE, _INPUT = '{"role":"user","content":"a"}', '{"name":"a","shape":[1],"datatype":"FP32","data":[1]}'
KINDS: dict[str, tuple[str, Callable[[], str]]] = {
    "30 MB of numbers": ("/classify", lambda: '{"text":[' + ",".join(["1"] * 15_000_000) + "]}"),
    "100,000 integers": ("/classify", lambda: f'{{"text":{_array("1")}}}'),
    "100,000 unknown keys": ("/classify", _unknown),
    "messages": (
        "/v1/chat/completions",
        lambda: f'{{"model":"{GENERATOR}","messages":{_array(_MESSAGE)}}}',
    ),
    "KServe inputs": (f"/v2/models/{CLASSIFIER}/infer", lambda: f'{{"inputs":{_array(_INPUT)}}}'),
    "stop of 700,000 characters": (
        "/v1/completions",
        lambda: json.dumps({"model": GENERATOR, "prompt": "a", "max_tokens": 64, "stop": "ab" * 350_000}),
    ),
    "16 texts of CJK characters": ("/classify", _chinese),
    "deep JSON": ("/classify", lambda: "[" * MANY + "]" * MANY),
    "slow body": ("/classify", lambda: '{"text":"the film was good"}'),
}


def main() -> int:
    """Be hostile for a while."""
    port, kind = int(sys.argv[1]), sys.argv[2]
    path, body = KINDS[kind]
    content = body().encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {loopback.HOST}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    print("ready", flush=True)
    over = threading.Event()

    def ask(_line: str) -> str:
        return _dribbled(port, head, content, over) if kind == "slow body" else _sent(port, head, content)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [pool.submit(ask, line) for line in sys.stdin]
        over.set()
        told = Counter(answer.result() for answer in answers)
    print(", ".join(f"{status} ×{count}" for status, count in sorted(told.items())))
    return 0


def _sent(port: int, head: str, content: bytes) -> str:
    """The status that a request is answered with."""
    with socket.create_connection((loopback.HOST, port), timeout=_PATIENCE_S) as connection:
        with suppress(ConnectionError):  # a server may answer before it has read everything
            connection.sendall(head.encode())
            connection.sendall(content)
        received = b""
        with suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                received += part
        return received[9:12].decode() or "closed"


def _dribbled(port: int, head: str, content: bytes, over: threading.Event) -> str:
    """A body comes byte by byte, until the time is over."""
    with socket.create_connection((loopback.HOST, port)) as connection, suppress(ConnectionError):
        connection.sendall(head.replace(str(len(content)), "90000").encode())
        for byte in itertools.cycle(content):
            if over.wait(PAUSE_S):
                break
            connection.sendall(bytes([byte]))
    return "unfinished"


def random_models(work: Path) -> dict[str, Any]:
    """Tiers of random models: a classifier of six layers as a graph, which knows Chinese characters, and a
    small causal LM."""
    import random_models as rm
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    source, graph, story = (work / name for name in ("bert", "bert-onnx", "llama"))
    if not (story / "config.json").exists():
        rm.bert(384, 6)(source)
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *rm.words(), *map(chr, range(0x4E00, 0x9FA6))]
        backend = Tokenizer(models.WordPiece({name: id for id, name in enumerate(names)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(source)
        rm.exported(source, graph)
        rm.llama(256, 4, 8000)(story)
    return {
        CLASSIFIER: {"model": str(graph.resolve()), "settings": {"max_length": 128}, "pinned": True},
        GENERATOR: {"model": str(story.resolve()), "pinned": True},
    }


if __name__ == "__main__":
    sys.exit(main())
