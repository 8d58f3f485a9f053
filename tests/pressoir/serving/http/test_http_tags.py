"""Words in and spans out over HTTP: answers beside those of the model in this process, and refusals."""

import asyncio
import json

import pytest
import torch
from serving_http import app_of, asked

from pressoir.data.texts import words_of
from pressoir.evaluation.child.remote.kserve import KServe
from pressoir.inference.predictor import open_predictor
from pressoir.inference.token_classification import TokenClassifier
from pressoir.models import loading
from pressoir.store.store import Store

SENTENCES = [["the", "film", "was", "good"], ["a", "soup", ",", "a", "song", "and", "a", "chair"]]


@pytest.fixture
def folder(pair_classifier, tmp_path):
    """A token classifier with random weights."""
    torch.manual_seed(1)
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    model = loading.load_classifier(pair_classifier("bert"), labels=labels, tokens=True)
    torch.nn.init.normal_(model.classifier.weight, std=3.0)
    loading.save_model(model, tmp_path / "model")
    loading.save_tokenizer(loading.load_tokenizer(pair_classifier("bert")), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(tmp_path, folder, tiny_classifier):
    """`run(work)` runs `work(client)` on a server of a token classifier and a classifier of texts."""

    def start(work):
        async def session():
            tiers = {"names": (folder, {}), "single": (tiny_classifier, {})}
            async with asked(app_of(Store(tmp_path / "home"), tiers)) as client:
                await work(client)

        asyncio.run(session())

    return start


def as_json(found):
    """What the server says of a sentence, by the model in this process."""
    entities = [entity._asdict() for entity in found.entities]
    return {"words": list(found.words), "tags": found.tags, "entities": entities}


def close(answer, expected):
    scores = [entity.pop("score") for entity in answer["entities"]]
    assert scores == pytest.approx([entity.pop("score") for entity in expected["entities"]], abs=1e-5)
    assert answer == expected


def test_words_in_and_spans_out(run, folder):
    expected = TokenClassifier.open(folder, 1)

    async def work(client):
        answer = await client.post("/tag", json={"words": SENTENCES})
        assert answer.json()["tier"] == "names"
        assert any(result["entities"] for result in answer.json()["results"])
        for result, right in zip(answer.json()["results"], expected.tag(SENTENCES), strict=True):
            close(result, as_json(right))
        text = "The film; a soup."
        answer = await client.post("/tag", json={"text": text, "tier": "names"})
        close(answer.json()["results"][0], as_json(expected.tag(text)[0]))
        assert answer.json()["results"][0]["words"] == list(words_of(text))
        long = ["good", "soup"] * 40
        answer = await client.post("/tag", json={"words": [long]})
        assert answer.json()["results"][0]["tags"] == expected.tag([long])[0].tags

    run(work)


def test_kserve_has_spans_and_tags_as_json(run, folder):
    expected = TokenClassifier.open(folder, 1).tag(SENTENCES)

    async def work(client):
        data = [json.dumps(SENTENCES[0]), " ".join(SENTENCES[1])]
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": data}
        answer = await client.post("/v2/models/names/infer", json={"inputs": [tensor]})
        outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
        assert [json.loads(tags) for tags in outputs["tags"]] == [found.tags for found in expected]
        types = [[entity["type"] for entity in json.loads(text)] for text in outputs["entities"]]
        assert types == [[entity.type for entity in found.entities] for found in expected]
        metadata = (await client.get("/v2/models/names")).json()
        assert [output["name"] for output in metadata["outputs"]] == ["entities", "tags"]

    run(work)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "either text or words"),
        ({"text": "a", "words": [["a"]]}, "either text or words"),
        ({"words": [["a", " "]]}, "word 1 of sentence 0 is empty"),
        ({"words": [["a"]], "tier": "single"}, "single"),
    ],
)
def test_what_cannot_be_tagged_is_refused(run, body, message):
    async def work(client):
        answer = await client.post("/tag", json=body)
        assert 400 <= answer.status_code < 500
        assert message in json.dumps(answer.json())

    run(work)


def test_a_table_for_mlflow_has_spans_as_json(folder):
    predictor = open_predictor(folder, 1)
    rows = predictor.predict([json.dumps(words) for words in SENTENCES])
    assert list(rows) == list(predictor.columns)
    expected = TokenClassifier.open(folder, 1).tag(SENTENCES)
    assert [json.loads(tags) for tags in rows["tags"]] == [found.tags for found in expected]
    assert [len(json.loads(spans)) for spans in rows["entities"]] == [len(f.entities) for f in expected]


def test_tags_of_a_server_are_read_by_name():
    model = KServe.__new__(KServe)
    model._infer = lambda *_: [
        type("Tensor", (), {"name": name, "datatype": "BYTES", "shape": [1], "data": [text]})
        for name, text in (("entities", "[]"), ("tags", '["O", "B-PER"]'))
    ]
    assert model.tag(["a", "b"]) == ["O", "B-PER"]
