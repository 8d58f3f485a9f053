"""NVIDIA's client of KServe v2 against a server.

`python tests/clients/triton_client.py URL CLASSIFIER TRANSLATOR FOLDER`: the tiers are a classifier that
takes at most 60 tokens, whose model is `FOLDER` and is also asked without a server, and a translator.
Environment: `pip install "tritonclient[http]"` beside Pressoir, or the dev set. Every answer is checked; the
first that is wrong ends it with a status other than 0.
"""

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from pressoir.inference.text_classification import TextClassifier

TEXTS = ["the film was good", "the soup was awful – 🙂" * 30]
OUTPUTS = ("label", "probabilities", "truncated")


def texts(values: list[str], name: str = "text", binary: bool = True) -> InferInput:
    """A tensor of texts."""
    tensor = InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array(values, dtype=object), binary_data=binary)
    return tensor


def tensors(client: InferenceServerClient, model: str, folder: Path) -> None:
    """As JSON and binary, in and out."""
    expected = TextClassifier.open(folder, 1).predict(TEXTS)
    for binary_in, binary_out in itertools.product((True, False), (True, False, None)):
        outputs = None
        if binary_out is not None:
            outputs = [InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
        answer = client.infer(model, [texts(TEXTS, binary=binary_in)], outputs=outputs, request_id="7")
        found = answer.as_numpy("probabilities")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [list(row.values()) for row in expected], atol=1e-5)
        labels = [label.decode() if isinstance(label, bytes) else label for label in answer.as_numpy("label")]
        assert labels == [max(row, key=row.get) for row in expected]
        assert answer.as_numpy("truncated").tolist() == [False, True]
        assert answer.get_response()["id"] == "7"
        assert ("binary_data_size" in str(answer.get_response())) is (binary_out is not False)
    print("tensors: JSON and binary, in and out")


def metadata(client: InferenceServerClient, model: str, other: str) -> None:
    """What the server says of itself."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(other)
    found = client.get_model_metadata(model)
    assert found["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    [version] = found["versions"]
    assert client.get_model_metadata(model, version) == found
    assert client.is_model_ready(model, version)
    index = client.get_model_repository_index()
    assert {model, other} <= {entry["name"] for entry in index if entry["state"] == "READY"}
    assert version in {entry["version"] for entry in index}
    print(f"metadata: {len(index)} models ready")


def versions(client: InferenceServerClient, translator: str) -> None:
    """A version and parameters of its own."""
    [version] = client.get_model_metadata(translator)["versions"]
    parameters = {"num_beams": 1, "max_new_tokens": 5}
    answer = client.infer(translator, [texts(TEXTS[:1])], version, parameters=parameters)
    assert answer.get_response()["model_version"] == version
    assert answer.as_numpy("text").shape == (1,)
    print("versions: taken, with parameters")


def refusals(client: InferenceServerClient, model: str) -> None:
    """Errors are texts, and say what is wrong."""
    shared = InferInput("text", [1], "BYTES")
    shared.set_shared_memory("region", 8)
    good = texts(["good"])
    refused = {
        "there is no tier 'best'": {"model_name": "best"},
        "has the version": {"model_version": "2"},
        "'words' does not exist; the input is 'text'": {"inputs": [texts(["good"], name="words")]},
        "outputs: 'score' does not exist; available: probabilities": {
            "outputs": [InferRequestedOutput("score")]
        },
        "classification is not supported": {"outputs": [InferRequestedOutput("label", class_count=2)]},
        "parameters: supported for text-classification are": {"priority": 3},
        "the text is empty": {"inputs": [texts([" "])]},
        "shared_memory_region is not supported": {"inputs": [shared]},
    }
    for message, changed in refused.items():
        with pytest.raises(InferenceServerException, match=re.escape(message)):
            client.infer(**{"model_name": model, "inputs": [good], **changed})
    print(f"refusals: {len(refused)}, each by name")


def main(url: str, model: str, translator: str, folder: str) -> None:
    """Run all."""
    with InferenceServerClient(url.removeprefix("http://")) as client:
        tensors(client, model, Path(folder))
        metadata(client, model, translator)
        versions(client, translator)
        refusals(client, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
