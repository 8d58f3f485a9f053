"""Pairs of texts over HTTP: answers beside transformers' pipeline, and what each kind of model refuses."""

import asyncio
import json
import struct

import pytest
from jsonschema import Draft202012Validator
from serving_http import app_of, asked
from transformers import pipeline

from pressoir.store.store import Store

PAIRS = [("the film was good", "the film was great"), ("a soup and a song", "the hotel was bad")]
FIRST, SECOND = (list(texts) for texts in zip(*PAIRS, strict=True))


@pytest.fixture
def run(tmp_path, pair_classifier, tiny_classifier):
    """`run(work)` runs `work(client)` on a server of a model of pairs and of one of single texts."""
    every = {"pairs": (pair_classifier("bert"), {}), "single": (tiny_classifier, {})}

    def start(work, names=("pairs", "single")):
        tiers = {name: every[name] for name in names}

        async def session():
            async with asked(app_of(Store(tmp_path / "home"), tiers)) as client:
                await work(client)

        asyncio.run(session())

    return start


@pytest.fixture(scope="module")
def expected(pair_classifier):
    folder = str(pair_classifier("bert"))
    classify = pipeline("text-classification", model=folder, top_k=None, device="cpu", truncation=True)
    answers = [classify({"text": first, "text_pair": second}) for first, second in PAIRS]
    return [{row["label"]: row["score"] for row in answer} for answer in answers]


def tensor(name, texts):
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts}


def test_classify_answers_as_the_pipeline_does(run, expected):
    async def work(client):
        several = await client.post("/classify", json={"text": FIRST, "text_pair": SECOND, "tier": "pairs"})
        for answer, right in zip(several.json()["results"], expected, strict=True):
            assert answer["probabilities"] == pytest.approx(right, abs=1e-5)
        single = await client.post(
            "/classify", json={"text": FIRST[0], "text_pair": SECOND[0], "tier": "pairs"}
        )
        [answer] = single.json()["results"]
        assert answer["probabilities"] == pytest.approx(expected[0], abs=1e-5)

    run(work)


def test_kserve_takes_two_tensors_as_json_and_binary(run, expected):
    async def work(client):
        metadata = (await client.get("/v2/models/pairs")).json()
        assert [entry["name"] for entry in metadata["inputs"]] == ["text", "text_pair"]
        assert len((await client.get("/v2/models/single")).json()["inputs"]) == 1
        right = [row[label] for row in expected for label in ("other", "same")]
        for inputs in (("text", FIRST), ("text_pair", SECOND)), (("text_pair", SECOND), ("text", FIRST)):
            body = {"inputs": [tensor(*given) for given in inputs]}
            answer = await client.post("/v2/models/pairs/infer", json=body)
            assert answer.json()["outputs"][0]["data"] == pytest.approx(right, abs=1e-5)
            tails = [
                b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
                for _, texts in inputs
            ]
            for entry, tail in zip(body["inputs"], tails, strict=True):
                del entry["data"]
                entry["parameters"] = {"binary_data_size": len(tail)}
            head = json.dumps(body).encode()
            answer = await client.post(
                "/v2/models/pairs/infer",
                content=head + b"".join(tails),
                headers={"Inference-Header-Content-Length": str(len(head))},
            )
            assert answer.json()["outputs"][0]["data"] == pytest.approx(right, abs=1e-5)

    run(work)


def test_each_kind_of_model_refuses_the_other_kind_of_text(run):
    refusals = {
        "tier 'pairs' was trained on pairs of texts": [
            ("/classify", {"text": "a", "tier": "pairs"}),
            ("/v2/models/pairs/infer", {"inputs": [tensor("text", ["a"])]}),
            ("/compare", {"texts": ["a"], "tiers": ["pairs", "single"]}),
        ],
        "tier 'single' was trained on single texts": [
            ("/classify", {"text": ["a"], "text_pair": ["b"], "tier": "single"}),
            ("/v2/models/single/infer", {"inputs": [tensor("text", ["a"]), tensor("text_pair", ["b"])]}),
        ],
        "each text needs one": [
            ("/classify", {"text": ["a", "b"], "text_pair": ["c"], "tier": "pairs"}),
            ("/classify", {"text": "a", "text_pair": ["c"], "tier": "pairs"}),
        ],
        "the text_pair is empty": [("/classify", {"text": "a", "text_pair": " ", "tier": "pairs"})],
    }

    async def work(client):
        for message, requests in refusals.items():
            for path, body in requests:
                answer = await client.post(path, json=body)
                assert answer.status_code == 422
                assert message in answer.text

    run(work)


def test_the_document_has_an_example_of_a_pair(run):
    async def work(client):
        await client.post("/classify", json={"text": FIRST, "text_pair": SECOND, "tier": "pairs"})
        found = (await client.get("/openapi.json")).json()
        [example] = found["components"]["schemas"]["Classify"]["examples"]
        answer = await client.post("/classify", json=example)
        assert answer.status_code == 200
        examples = found["paths"]["/v2/models/{tier}/infer"]["post"]["requestBody"]["content"]
        for tier, body in examples["application/json"]["examples"].items():
            answer = await client.post(f"/v2/models/{tier}/infer", json=body["value"])
            assert answer.status_code == 200
        tiers = {tier["tier"]: tier["pairs"] for tier in (await client.get("/tiers")).json()["tiers"]}
        assert tiers == {"pairs": True, "single": False}

    run(work)


@pytest.mark.parametrize("kind", ["pairs", "single"])
def test_the_document_says_whether_there_are_pairs_where_all_tiers_are_alike(run, kind):
    async def work(client):
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        schema = schemas["Classify"]
        for body in ({"text": "a"}, {"text": "a", "text_pair": "b"}, {"text": "a", "text_pair": None}):
            answer = await client.post("/classify", json=body)
            valid = Draft202012Validator({**schema, "components": {"schemas": schemas}}).is_valid(body)
            assert (answer.status_code == 200) == valid

    run(work, [kind])
