"""What schemathesis knows of a server beside its document: bodies without a schema, reasons of refusals."""

import io
import json
import os
import re
import wave

import requests
import schemathesis
from hypothesis import strategies as st

REASONS = {
    # /translate
    r"^(source|target)_language .* is not supported by this model": "a model's files say which it has",
    # /generate/stream, /v1/completions, /v1/chat/completions
    r"the (prompt|text) has \d+ tokens, but": "the model's tokenizer alone knows how many tokens a text has",
    # /v1/completions, /v1/embeddings
    r"token ids are 0 to \d+|its tokens are 0 to \d+": "how many tokens there are is the model's to say",
    # /v1/embeddings
    r"^dimensions is \d+, but the embeddings of": "how many there are is the model's to say",
    # /v2/models/{tier}/infer: a parameter of the path and the body do not know each other, so a tier's task
    # cannot decide
    r"^inputs\.[01]\.name: .* does not exist; the input is": "which tensor there is",
    r"^inputs\.[01]: expected (BYTES|audio as FP32|one prompt)": "what it holds",
    r"^inputs\.0\.shape: expected|^the request has \d+ texts": "what its shape is",
    r"^inputs\.[01]\.data: an element is not a": "what its elements are",
    r"^inputs: expected one input": "how many tensors there are",
    r"^the text(_pair)? is empty|^text(_pair)? \d+ is empty": "that they are not blank",
    r"^parameters: supported for": "which parameters there are",
    r"^(max_length|max_new_tokens|num_beams|top_k|top_p|seed|temperature)[: ]": "how much is allowed",
    r"^outputs: .* does not exist; available": "which outputs there are",
    # /classify, /compare, /v2/models/{tier}/infer: likewise; and one list does not know how long another is
    r"was trained on (pairs of|single) texts": "whether a model takes pairs",
    r"^text_pair has \d+ texts": "each text needs one",
    # likewise, within a body
    r"elements do not match the shape": "a shape says how many elements there are, which is a product",
    r"^inputs\.[01]: expected either data or|binary_data_size add up to": "data are in the JSON or behind it",
    # /v1/audio
    r"^language .* is (unknown|specified)|^the prompt|^prompt": "what a model of speech can be told",
    r"^timestamp_granularities|^times of words|word": "which times a model knows, and of which formats",
    r"^stream is not supported for response_format": "not every format is streamed",
    # /reload
    r"is not resolved; run `pressoir deploy`": "what a configuration says of its models must be so",
}
"""Why a valid request may be refused, by the message; each with what the document cannot say."""


@schemathesis.check
def a_valid_request_is_refused_for_a_listed_reason(context, response, case):
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 422:
        return
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    if not any(re.search(reason, message) for reason in REASONS):
        raise AssertionError(f"a valid request was refused, and hooks.REASONS does not say why: {message}")


def _binary(texts):
    """An inference whose texts stand behind the JSON."""
    tail = b"".join(len(text).to_bytes(4, "little") + text for text in (one.encode() for one in texts))
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(tail)}
    return json.dumps({"inputs": [tensor]}).encode() + tail


schemathesis.openapi.media_type(
    "application/octet-stream",
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), min_size=1, max_size=3).map(
        _binary
    ),
)


def _sound():
    """A twentieth of a second, as WAV."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"\x10\x10" * 800)
    return content.getvalue()


@schemathesis.hook
def before_call(context, case, kwargs):
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if case.path.endswith("/infer") and positive:
        _measure(case)
    if "version" in case.path_parameters and positive:
        _choose_version(case)
    asked = case.body.get("dimensions") if isinstance(case.body, dict) else None
    if case.path == "/v1/embeddings" and positive and isinstance(asked, int):
        case.body["dimensions"] = 1 + asked % 32  # at most as many as the model has
    if case.path.startswith("/v1/audio/") and positive:
        _make_form(case)
    if case.path == "/reload":
        _keep_tiers(case, positive)


def _make_form(case):
    """The file is a sound: the document cannot say which bytes are one."""
    case.body["file"] = _sound()


def _measure(case):
    """The header says how long the JSON is; a drawn number does not."""
    case.headers.pop("Inference-Header-Content-Length", None)
    if isinstance(case.body, bytes):
        text = case.body.decode("latin-1")
        case.headers["Inference-Header-Content-Length"] = str(json.JSONDecoder().raw_decode(text)[1])


def _choose_version(case):
    """A version is of one tier; of two parameters the document cannot say so."""
    key = {"Authorization": f"Bearer {os.environ['OPENAPI_USER_KEY']}"}
    address = f"{case.operation.base_url.rstrip('/')}/v2/models/{case.path_parameters['tier']}"
    case.path_parameters["version"] = requests.get(address, headers=key, timeout=60).json()["versions"][0]


def _keep_tiers(case, positive):
    """A reload goes to the configuration that is served: the other cases are about its tiers.

    One that must be refused is spoilt where it could be taken.
    """
    if not isinstance(case.body, dict) or not isinstance(case.body.get("config"), dict):
        return
    tiers = case.body["config"].get("tiers")
    if positive:
        key = {"Authorization": f"Bearer {os.environ['OPENAPI_ADMIN_KEY']}"}
        address = f"{case.operation.base_url.rstrip('/')}/config"
        case.body["config"] = requests.get(address, headers=key, timeout=60).json()
    elif isinstance(tiers, dict):
        for tier in tiers.values():
            if isinstance(tier, dict):
                tier.pop("digest", None)
