"""What each endpoint answers, on tiny models, without a network."""

import asyncio
import base64
import io
import json
import shutil

import jsonschema
import numpy as np
import pytest
import soundfile
import torch
from serving_http import KEY, SENTENCE, app_of, asked, events, refused
from transformers import AutoTokenizer

from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.generation.penalties import Penalties
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import SCORED, TextGenerator
from pressoir.inference.translation import Translator
from pressoir.serving.config import ServingConfig
from pressoir.serving.pool.model_handle import ModelHandle
from pressoir.store.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture(scope="session")
def other_classifier(tiny_bert, tmp_path_factory):
    """A classifier with the labels of `tiny_classifier`, and other weights."""
    import torch

    from pressoir.models import loading

    folder = tmp_path_factory.mktemp("other-classifier")
    torch.manual_seed(3)
    loading.save_model(loading.load_classifier(tiny_bert, labels=["negative", "positive"]), folder)
    loading.save_tokenizer(loading.load_tokenizer(tiny_bert), folder)
    return folder


@pytest.fixture(scope="session")
def chatty_llama(tiny_llama, tmp_path_factory):
    """`tiny_llama` with a chat template."""
    folder = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("chatty") / "llama")
    template = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'robot' %}"
        "{{ raise_exception('no robots') }}{% endif %}{{ message.role }}: {{ message.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "chat_template": template}))
    return folder


def served(app, work, **options):
    """Run `work(client)` on a started app."""

    async def run():
        async with asked(app) as client:
            await work(client)

    asyncio.run(run(**options))


class TestTasks:
    def test_texts_are_classified(self, store, tiny_classifier):
        async def work(client):
            answer = await client.post("/classify", json={"text": [SENTENCE, "the film was good"]})
            assert answer.status_code == 200
            expected = TextClassifier.open(tiny_classifier, 1).predict([SENTENCE, "the film was good"])
            assert answer.json() == {
                "tier": "reviews",
                "results": [
                    {
                        "label": max(row, key=row.get),
                        "confidence": pytest.approx(max(row.values())),
                        "probabilities": pytest.approx(row),
                        "truncated": False,
                    }
                    for row in expected
                ],
            }
            one = await client.post("/classify", json={"text": SENTENCE, "tier": "reviews"})
            [result] = one.json()["results"]
            assert result["probabilities"] == pytest.approx(expected[0])

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)

    def test_texts_are_translated_and_an_unknown_language_is_told(self, store, tiny_nllb):
        async def work(client):
            options = {"source_language": "en", "target_language": "de", "max_new_tokens": 6}
            answer = await client.post("/translate", json={"text": SENTENCE, **options})
            expected = Translator.open(tiny_nllb, 1).translate(
                [SENTENCE], "eng_Latn", "deu_Latn", max_new_tokens=6
            )
            assert answer.json() == {"tier": "basic", "translations": expected, "truncated": [False]}
            wrong = await client.post(
                "/translate", json={"text": SENTENCE, **options, "target_language": "xx"}
            )
            assert "'xx' is not supported by this model" in refused(wrong, 422, "invalid_request")

        served(app_of(store, {"basic": (tiny_nllb, {})}), work)

    def test_a_continuation_comes_in_pieces(self, store, tiny_llama):
        async def work(client):
            asked_for = {"prompt": "the film was", "tier": "story", "max_new_tokens": 8}
            answer = await client.post("/generate/stream", json=asked_for)
            assert answer.headers["content-type"].startswith("text/event-stream")
            *pieces, (_, last) = events(answer.text)
            expected = list(TextGenerator.open(tiny_llama, 1).generate("the film was", max_new_tokens=8))
            assert [content["piece"] for _, content in pieces] == expected
            assert last == {"done": True, "tokens": 8, "seconds": last["seconds"]}
            wrong = await client.post("/generate/stream", json={**asked_for, "max_new_tokens": 10})
            assert "tier 'story' allows 9" in refused(wrong, 422, "invalid_request")

        served(app_of(store, {"story": (tiny_llama, {"max_new_tokens": 9})}), work)

    def test_an_error_in_the_middle_of_a_stream_is_an_event_in_the_shape(self, store, tiny_llama):
        app = app_of(store, {"story": (tiny_llama, {})})

        async def work(client):
            [entry] = app.state.backend.service.models.pool.entries.values()
            stream = entry.model.client.stream

            async def breaks(*arguments, **named):
                async for message in stream(*arguments, **named):
                    yield message
                    entry.model.client._end("it was killed")
                    break
                raise entry.model.client._gone()

            entry.model.client.stream = breaks
            for path, asked_for, name in (
                ("/generate/stream", {"prompt": "the film", "tier": "story"}, "error"),
                ("/v1/completions", {"prompt": "the film", "model": "story", "stream": True}, None),
            ):
                answer = await client.post(path, json=asked_for)
                assert answer.status_code == 200
                kind, content = events(answer.text)[-1]
                assert kind == name
                assert content["error"]["type"] == "worker_died"
                assert content["error"]["request_id"] == answer.headers["x-request-id"]
                break

        served(app, work)


class TestComparison:
    def test_two_tiers_side_by_side_in_alternating_order(self, store, tiny_classifier, other_classifier):
        async def work(client):
            pair, texts = ["teacher", "compressed"], [SENTENCE, "the film was good", "cold soup"]
            before = (await client.get("/compare/statistics?tiers=teacher,compressed")).json()
            assert before["requests"] == 0
            assert before["agreement"] is before["agreement_interval"] is before["speedup"] is None
            assert before["latency_p50_ms"] == {"teacher": None, "compressed": None}
            orders = []
            for _ in range(3):
                answer = (await client.post("/compare", json={"texts": texts, "tiers": pair})).json()
                orders.append(answer["order"])
            assert orders == [["compressed", "teacher"], ["teacher", "compressed"], ["compressed", "teacher"]]
            assert [one["text_index"] for one in answer["results"]] == [0, 1, 2]
            for one in answer["results"]:
                first, second = one["answers"]
                assert [first["tier"], second["tier"]] == pair
                assert one["agree"] == (first["label"] == second["label"])
                assert first["confidence"] == max(first["probabilities"].values())
                assert first["latency_ms"] > 0
            found = answer["statistics"]
            assert found["requests"] == 9
            low, high = found["agreement_interval"]
            assert low <= found["agreement"] <= high
            p50 = found["latency_p50_ms"]
            assert found["speedup"] == pytest.approx(p50["teacher"] / p50["compressed"])
            assert set(found["size_mb"]) == set(pair)
            turned = (await client.get("/compare/statistics?tiers=compressed,teacher")).json()
            assert turned["requests"] == 9
            assert turned["speedup"] == pytest.approx(1 / found["speedup"])
            for tiers in (["teacher"], ["teacher", "teacher"]):
                wrong = await client.post("/compare", json={"texts": texts, "tiers": tiers})
                refused(wrong, 422, "invalid_request")
            unknown = await client.post("/compare", json={"texts": texts, "tiers": ["teacher", "best"]})
            assert "no tier 'best'" in refused(unknown, 404, "unknown_tier")
            many = await client.post("/compare", json={"texts": ["x"] * 5, "tiers": pair})
            assert "5 texts; expected 1 to 4" in refused(many, 422, "invalid_request")

        tiers = {"teacher": (tiny_classifier, {}), "compressed": (other_classifier, {"max_batch": 4})}
        served(app_of(store, tiers), work)

    def test_tiers_are_described_with_a_pair_to_compare(self, store, tiny_classifier, other_classifier):
        async def work(client):
            answer = (await client.get("/tiers")).json()
            assert answer["default_pair"] == ["teacher", "compressed"]
            teacher = answer["tiers"][0]
            assert teacher["tier"] == "teacher"
            assert teacher["task"] == "text-classification"
            assert teacher["model"] == str(tiny_classifier)
            assert teacher["runtime"] == "pytorch"
            assert teacher["labels"] == ["negative", "positive"]
            assert teacher["settings"]["max_length"] == 9
            assert teacher["size_mb"] > 0
            assert len(teacher["digest"]) == 64

        tiers = {
            "teacher": (tiny_classifier, {"max_length": 9}),
            "again": (tiny_classifier, {}),
            "compressed": (other_classifier, {}),
        }
        served(app_of(store, tiers), work)


LONG = "the film was good " * 4000


class TestTruncated:
    """A text of which the model is not given everything is answered with `truncated`."""

    def infer(self, texts):
        return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]}

    def test_of_classifications_alone_compared_and_over_kserve(
        self, store, tiny_classifier, other_classifier
    ):
        async def work(client):
            asked_for = {"text": [SENTENCE, LONG], "tier": "a"}
            answer = (await client.post("/classify", json=asked_for)).json()
            assert [one["truncated"] for one in answer["results"]] == [False, True]
            expected = TextClassifier.open(tiny_classifier, 1).predict(LONG)
            assert answer["results"][1]["probabilities"] == pytest.approx(expected[0])
            shorter = (await client.post("/classify", json={**asked_for, "max_length": 4})).json()
            assert [one["truncated"] for one in shorter["results"]] == [True, True]
            asked_for = {"texts": [SENTENCE, LONG], "tiers": ["a", "b"]}
            answer = (await client.post("/compare", json=asked_for)).json()
            found = [[one["truncated"] for one in result["answers"]] for result in answer["results"]]
            assert found == [[False, False], [True, True]]
            answer = (await client.post("/v2/models/a/infer", json=self.infer([SENTENCE, LONG]))).json()
            assert answer["outputs"][-1]["data"] == [False, True]

        served(app_of(store, {"a": (tiny_classifier, {}), "b": (other_classifier, {})}), work)

    def test_of_translations(self, store, tiny_nllb):
        async def work(client):
            asked_for = {
                "text": [SENTENCE, LONG],
                **{"source_language": "en", "target_language": "de", "max_new_tokens": 3},
            }
            answer = (await client.post("/translate", json=asked_for)).json()
            assert answer["truncated"] == [False, True]
            expected = Translator.open(tiny_nllb, 1).translate([LONG], "en", "de", max_new_tokens=3)
            assert answer["translations"][1:] == expected
            asked_for = {
                **self.infer([LONG]),
                "parameters": {"source_language": "en", "target_language": "de", "max_new_tokens": 3},
            }
            answer = (await client.post("/v2/models/basic/infer", json=asked_for)).json()
            assert answer["outputs"][-1]["data"] == [True]

        served(app_of(store, {"basic": (tiny_nllb, {})}), work)

    def test_of_embeddings(self, store, tiny_bert):
        async def work(client):
            asked_for = {"model": "vectors", "input": [SENTENCE, LONG]}
            answer = (await client.post("/v1/embeddings", json=asked_for)).json()
            assert [one.get("truncated") for one in answer["data"]] == [None, True]
            answer = (await client.post("/v2/models/vectors/infer", json=self.infer([SENTENCE, LONG]))).json()
            vectors, truncated = answer["outputs"]
            assert truncated["data"] == [False, True]
            expected = SentenceEncoder.open(tiny_bert, 1).embed([SENTENCE, LONG])
            assert vectors["data"] == pytest.approx(expected.reshape(-1).tolist(), abs=1e-5)

        served(app_of(store, {"vectors": (tiny_bert, {})}), work)


class TestKServe:
    def test_a_request_of_mlservers_codec_is_answered(self, store, tiny_classifier):
        # Of `StringCodec.encode_input("text", [...], use_bytes=False)`, as its clients send it.
        given = {
            **{"name": "text", "shape": [2, 1], "datatype": "BYTES", "parameters": {"content_type": "str"}},
            "data": [SENTENCE, "the film was good"],
        }

        async def work(client):
            answer = await client.post("/v2/models/reviews/infer", json={"inputs": [given]})
            outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
            expected = TextClassifier.open(tiny_classifier, 1).predict(given["data"])
            assert outputs["label"] == [max(row, key=row.get) for row in expected]
            other = {**given, "parameters": {"content_type": "base64"}}
            wrong = await client.post("/v2/models/reviews/infer", json={"inputs": [other]})
            assert "content_type" in refused(wrong, 422, "invalid_request")

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)

    def test_a_classifier(self, store, tiny_classifier):
        async def work(client):
            assert (await client.get("/v2")).json()["name"] == "pressoir"
            assert (await client.get("/v2/health/live")).json() == {"live": True}
            assert (await client.get("/v2/health/ready")).json() == {"ready": True}
            assert (await client.get("/v2/models/reviews/ready")).json()["ready"]
            found = (await client.get("/v2/models/reviews")).json()
            assert found["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
            assert found["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}
            asked_for = {
                "id": "7",
                "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": [SENTENCE, "a film"]}],
            }
            answer = (await client.post("/v2/models/reviews/infer", json=asked_for)).json()
            assert answer["model_name"] == "reviews"
            assert answer["id"] == "7"
            values, names, truncated = answer["outputs"]
            assert truncated == {
                "name": "truncated",
                "datatype": "BOOL",
                "shape": [2],
                "data": [False, False],
            }
            expected = TextClassifier.open(tiny_classifier, 1).predict([SENTENCE, "a film"])
            assert values["shape"] == [2, 2]
            assert values["data"] == pytest.approx([p for row in expected for p in row.values()])
            assert names["data"] == [max(row, key=row.get) for row in expected]
            asked_for["outputs"] = [{"name": "label"}]
            asked_for["inputs"][0] |= {"shape": [2, 1], "data": [[SENTENCE], ["a film"]]}
            answer = (await client.post("/v2/models/reviews/infer", json=asked_for)).json()
            assert answer["outputs"] == [names]

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)

    def test_embeddings_sound_and_continuations(self, store, tiny_bert, tiny_whisper, tiny_llama, tone):
        async def work(client):
            text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [SENTENCE]}
            answer = (await client.post("/v2/models/vectors/infer", json={"inputs": [text]})).json()
            vectors, _ = answer["outputs"]
            expected = SentenceEncoder.open(tiny_bert, 1).embed([SENTENCE])
            assert vectors["shape"] == [1, 32]
            assert vectors["data"] == pytest.approx(expected[0].tolist(), abs=1e-6)
            options = {"parameters": {"max_new_tokens": 5}}
            answer = (await client.post("/v2/models/story/infer", json={"inputs": [text], **options})).json()
            written = "".join(TextGenerator.open(tiny_llama, 1).generate(SENTENCE, max_new_tokens=5))
            assert answer["outputs"][0]["data"] == [written]
            sound = tone(0.5)
            audio = {"name": "audio", "shape": [1, len(sound)], "datatype": "FP32", "data": sound.tolist()}
            options = {"parameters": {"sampling_rate": 16000, "max_new_tokens": 4}}
            answer = (
                await client.post("/v2/models/speech/infer", json={"inputs": [audio], **options})
            ).json()
            assert answer["outputs"][0]["datatype"] == "BYTES"
            assert answer["outputs"][0]["data"][0]
            wrong = await client.post(
                "/v2/models/speech/infer", json={"inputs": [audio], "parameters": {"sampling_rate": 8000}}
            )
            assert "16000 Hz" in refused(wrong, 422, "invalid_request")

        tiers = {"vectors": (tiny_bert, {}), "speech": (tiny_whisper, {}), "story": (tiny_llama, {})}
        served(app_of(store, tiers), work)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"shape": [2]}, "1 elements do not match the shape"),
            ({"datatype": "FP32", "data": [1.0]}, "expected BYTES"),
            ({"data": [7]}, "not a JSON string"),
            ({"datatype": "INT64"}, "datatype"),
            ({"data": [" "]}, "the text is empty"),
        ],
    )
    def test_what_is_wrong_with_a_tensor_is_told(self, store, tiny_classifier, change, message):
        async def work(client):
            text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [SENTENCE], **change}
            answer = await client.post("/v2/models/reviews/infer", json={"inputs": [text]})
            assert message in refused(answer, 422, "invalid_request")

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)

    def test_parameters_are_checked(self, store, tiny_classifier):
        async def work(client):
            text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [SENTENCE]}
            for given, message in (
                ({"max_length": "8"}, "parameters.max_length: expected a JSON integer"),
                ({"num_beams": 2}, "supported for text-classification are max_length, not 'num_beams'"),
                ({"max_length": 10}, "tier 'reviews' allows 9"),
            ):
                asked_for = {"inputs": [text], "parameters": given}
                answer = await client.post("/v2/models/reviews/infer", json=asked_for)
                assert message in refused(answer, 422, "invalid_request")

        served(app_of(store, {"reviews": (tiny_classifier, {"max_length": 9})}), work)

    def test_models_are_loaded_and_unloaded_with_the_key_alone(self, store, tiny_classifier):
        app = app_of(store, {"reviews": (tiny_classifier, {})}, api_key="open", admin_key="other,sesame")
        models = app.state.backend.service.models

        async def work(client):
            for action in ("load", "unload", "reload"):
                answer = await client.post(f"/v2/repository/models/reviews/{action}")
                refused(answer, 401, "unauthorized")
            [old] = models.pool.entries.values()
            assert (await client.post("/v2/repository/models/reviews/reload", headers=KEY)).is_success
            [new] = models.pool.entries.values()
            assert new is not old
            answer = await client.post("/v2/repository/models/reviews/unload", headers=KEY)
            assert answer.json() == {"name": "reviews", "loaded": False, "was_loaded": True}
            assert not models.is_loaded("reviews")
            assert (await client.post("/v2/repository/models/reviews/load", headers=KEY)).is_success
            assert models.is_loaded("reviews")
            missing = await client.post("/v2/repository/models/best/load", headers=KEY)
            refused(missing, 404, "unknown_tier")
            assert (await client.post("/reload", headers=KEY)).json()["tiers"] == ["reviews"]
            config = (await client.get("/config", headers=KEY)).json()
            assert ServingConfig.model_validate(config) == models.config
            config["tiers"]["more"] = config["tiers"]["reviews"]
            answer = await client.post("/reload", headers=KEY, json={"config": config})
            assert answer.json()["tiers"] == ["reviews", "more"]
            text = {"text": SENTENCE, "tier": "more"}
            assert (await client.post("/classify", json=text, headers=KEY)).is_success
            config["tiers"]["more"]["digest"] = "0" * 64
            answer = await client.post("/reload", headers=KEY, json={"config": config})
            assert "digest" in refused(answer, 503, "load_failed")
            answer = await client.post("/reload", headers=KEY, json={"config": {"tiers": 3}})
            assert "tiers" in refused(answer, 422, "invalid_request")
            assert (await client.post("/classify", json=text, headers=KEY)).is_success

        served(app, work)

    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            ({}, "set PRESSOIR_ADMIN_KEY when starting"),
            ({"api_key": "sesame"}, "set PRESSOIR_ADMIN_KEY when starting"),
            ({"api_key": "sesame", "admin_key": "other"}, "send the server's PRESSOIR_ADMIN_KEY"),
        ],
    )
    def test_only_an_administrator_may_load_or_unload(self, keys, said, store, tiny_classifier):
        async def work(client):
            for method, path in (
                ("POST", "/v2/repository/models/reviews/load"),
                ("POST", "/v2/repository/models/reviews/unload"),
                ("POST", "/v2/repository/models/reviews/reload"),
                ("POST", "/reload"),
                ("GET", "/config"),
            ):
                answer = await client.request(method, path, headers=KEY)
                assert said in refused(answer, 403, "forbidden")
            assert (await client.post("/classify", headers=KEY, json={"text": SENTENCE})).is_success

        served(app_of(store, {"reviews": (tiny_classifier, {})}, **keys), work)


class TestOpenAI:
    def test_models_are_the_tiers(self, store, tiny_classifier):
        async def work(client):
            answer = (await client.get("/v1/models")).json()
            assert [one["id"] for one in answer["data"]] == ["reviews"]
            assert (await client.get("/v1/models/reviews")).json()["object"] == "model"
            refused(await client.get("/v1/models/best"), 404, "unknown_tier")

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)

    def test_completions_whole_and_as_events(self, store, tiny_llama):
        async def work(client):
            asked_for = {"model": "story", "prompt": "the film was", "max_tokens": 6}
            answer = (await client.post("/v1/completions", json=asked_for)).json()
            expected = "".join(TextGenerator.open(tiny_llama, 1).generate("the film was", max_new_tokens=6))
            assert answer["object"] == "text_completion"
            assert answer["choices"] == [
                {"index": 0, "text": expected, "logprobs": None, "finish_reason": "length"}
            ]
            usage = answer["usage"]
            assert usage["completion_tokens"] == 6
            assert usage["total_tokens"] == 6 + usage["prompt_tokens"]
            several = {**asked_for, "prompt": ["the film was", "a soup"], "echo": True}
            choices = (await client.post("/v1/completions", json=several)).json()["choices"]
            assert [one["index"] for one in choices] == [0, 1]
            assert choices[0]["text"] == "the film was" + expected
            streamed = {**asked_for, "stream": True, "stream_options": {"include_usage": True}}
            found = events((await client.post("/v1/completions", json=streamed)).text)
            *parts, last, counted, done = [content for _, content in found]
            assert "".join(part["choices"][0]["text"] for part in parts) == expected
            assert {part["choices"][0]["finish_reason"] for part in parts} == {None}
            assert last["choices"][0]["finish_reason"] == "length"
            assert counted["usage"] == usage
            assert done == "[DONE]"

        served(app_of(store, {"story": (tiny_llama, {})}), work)

    def test_a_conversation_goes_through_the_models_template(self, store, chatty_llama, tiny_llama):
        async def work(client):
            messages = [
                {"role": "system", "content": "be nice"},
                {"role": "user", "content": [{"type": "text", "text": "how was the film"}]},
            ]
            asked_for = {"model": "chat", "messages": messages, "max_completion_tokens": 6}
            answer = (await client.post("/v1/chat/completions", json=asked_for)).json()
            prompt = "system: be nice\nuser: how was the film\nassistant:"
            expected = "".join(TextGenerator.open(tiny_llama, 1).generate(prompt, max_new_tokens=6))
            assert answer["object"] == "chat.completion"
            assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected}
            found = events(
                (await client.post("/v1/chat/completions", json={**asked_for, "stream": True})).text
            )
            first, *parts, last, done = [content for _, content in found]
            assert first["choices"][0]["delta"]["role"] == "assistant"
            assert {part["object"] for part in (first, *parts, last)} == {"chat.completion.chunk"}
            assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == expected
            assert last["choices"][0] == {
                "index": 0,
                "delta": {},
                "logprobs": None,
                "finish_reason": "length",
            }
            assert done == "[DONE]"
            asked_for["messages"] = [{"role": "robot", "content": "beep"}]
            answer = await client.post("/v1/chat/completions", json=asked_for)
            assert "no robots" in refused(answer, 422, "invalid_request")
            asked_for["model"] = "plain"
            answer = await client.post("/v1/chat/completions", json=asked_for)
            assert "no chat template" in refused(answer, 422, "invalid_request")

        served(app_of(store, {"chat": (chatty_llama, {}), "plain": (tiny_llama, {})}), work)

    def test_of_prompts_the_log_probabilities_are_given(self, store, tiny_llama):
        prompts = [" and ".join([SENTENCE] * 8), "the film"]

        async def work(client):
            asked_for = {"model": "story", "prompt": prompts, "echo": True, "max_tokens": 0, "logprobs": 1}
            answer = (await client.post("/v1/completions", json=asked_for)).json()
            generator = TextGenerator.open(tiny_llama, 1)
            ids = [generator.tokenizer.encode(prompt) for prompt in prompts]
            assert len(ids[0]) > 2 * SCORED
            assert answer["usage"] == {
                "prompt_tokens": sum(map(len, ids)),
                "completion_tokens": 0,
                "total_tokens": sum(map(len, ids)),
            }
            for prompt, expected, choice in zip(prompts, ids, answer["choices"], strict=True):
                logits = generator.decoder.forward(np.array([expected]))[0][0].astype(np.float64)
                right = logits[np.arange(len(expected) - 1), expected[1:]]
                given = choice["logprobs"]
                assert choice["text"] == prompt == "".join(given["tokens"])
                assert given["token_logprobs"][0] is None
                assert given["token_logprobs"][1:] == pytest.approx(
                    right - np.log(np.exp(logits[:-1]).sum(axis=1)), abs=1e-4
                )
                starts = given["text_offset"]
                ends = [*starts[1:], len(prompt)]
                assert [prompt[start:end] for start, end in zip(starts, ends, strict=True)] == given["tokens"]
            asked_for.pop("logprobs")
            plain = (await client.post("/v1/completions", json=asked_for)).json()
            assert [choice["text"] for choice in plain["choices"]] == prompts
            assert [choice["logprobs"] for choice in plain["choices"]] == [None, None]

        served(app_of(store, {"story": (tiny_llama, {})}), work)

    def test_penalties_and_biases_change_the_text_as_in_the_library(self, store, chatty_llama):
        options = {"max_tokens": 12, "frequency_penalty": 1.5, "presence_penalty": 0.5, "min_p": 0.01}
        options |= {"repetition_penalty": 1.3, "logit_bias": {"70": 4}}
        penalties = Penalties(1.5, 0.5, 1.3, {70: 4.0})

        async def work(client):
            generator = TextGenerator.open(chatty_llama, 1)
            for path, given, prompt in (
                ("completions", {"prompt": "the film was"}, "the film was"),
                (
                    "chat/completions",
                    {"messages": [{"role": "user", "content": "the film"}]},
                    "user: the film\nassistant:",
                ),
            ):
                answer = await client.post(f"/v1/{path}", json={"model": "story", **given, **options})
                [choice] = answer.json()["choices"]
                found = choice["text"] if path == "completions" else choice["message"]["content"]
                plain = "".join(generator.generate(prompt, max_new_tokens=12))
                assert found != plain
                assert found == "".join(generator.generate(prompt, max_new_tokens=12, penalties=penalties))

        served(app_of(store, {"story": (chatty_llama, {})}), work)

    def test_generated_tokens_have_log_probabilities_whole_and_as_events(self, store, chatty_llama):
        async def work(client):
            asked_for = {"model": "story", "max_tokens": 9, "temperature": 1.5, "seed": 3}
            generator = TextGenerator.open(chatty_llama, 1)

            def expected(prompt, top):
                found = generator.generate(prompt, max_new_tokens=9, temperature=1.5, seed=3, top_scores=top)
                text = "".join(found)
                return text, found.take_scored()

            text, tokens = expected("the film was", 2)
            given = {**asked_for, "prompt": "the film was", "logprobs": 2}
            [choice] = (await client.post("/v1/completions", json=given)).json()["choices"]
            scores = choice["logprobs"]
            assert choice["text"] == text == "".join(scores["tokens"])
            expected_scores = [token["log_probability"] for token in tokens]
            assert scores["token_logprobs"] == pytest.approx(expected_scores, abs=1e-4)
            assert scores["text_offset"] == [token["start"] for token in tokens]
            for token, top in zip(tokens, scores["top_logprobs"], strict=True):
                assert top[token["text"]] == pytest.approx(token["log_probability"], abs=1e-4)
                assert 2 <= len(top) <= 3
                assert max(top.values()) == pytest.approx(token["likeliest"][0][2], abs=1e-4)
            parts = [
                content["choices"][0]
                for _, content in events(
                    (await client.post("/v1/completions", json={**given, "stream": True})).text
                )[:-1]
            ]
            for name in ("tokens", "text_offset"):
                assert [one for part in parts for one in part["logprobs"][name]] == scores[name]
            for name in ("token_logprobs", "top_logprobs"):
                assert sum(len(part["logprobs"][name]) for part in parts) == len(tokens)

            chat = {"messages": [{"role": "user", "content": "the film"}], "logprobs": True}
            chat = {**asked_for, **chat, "top_logprobs": 4}
            text, tokens = expected("user: the film\nassistant:", 4)
            [choice] = (await client.post("/v1/chat/completions", json=chat)).json()["choices"]
            content = choice["logprobs"]["content"]
            assert choice["message"]["content"] == text == "".join(one["token"] for one in content)
            assert [one["bytes"] or [] for one in content] == [token["bytes"] for token in tokens]
            expected_scores = [token["log_probability"] for token in tokens]
            assert [one["logprob"] for one in content] == pytest.approx(expected_scores, abs=1e-4)
            for one, token in zip(content, tokens, strict=True):
                assert len(one["top_logprobs"]) == 4
                for top, (name, code, value) in zip(one["top_logprobs"], token["likeliest"], strict=True):
                    assert (top["token"], top["bytes"] or []) == (name, code)
                    assert top["logprob"] == pytest.approx(value, abs=1e-4)
            _, *parts = events(
                (await client.post("/v1/chat/completions", json={**chat, "stream": True})).text
            )[:-1]
            found = [one for _, part in parts for one in part["choices"][0]["logprobs"]["content"]]
            assert [one["token"] for one in found] == [one["token"] for one in content]
            del chat["logprobs"]
            wrong = await client.post("/v1/chat/completions", json=chat)
            assert "top_logprobs requires logprobs: true" in refused(wrong, 422, "invalid_request")

        served(app_of(store, {"story": (chatty_llama, {})}), work)

    def test_a_prompt_of_token_ids_is_the_prompt_of_their_text(self, store, tiny_llama):
        async def work(client):
            tokenizer = TextGenerator.open(tiny_llama, 1).tokenizer
            texts = ["the film was", "a soup"]
            ids = [tokenizer.encode(text) for text in texts]
            for more in ({}, {"echo": True}, {"echo": True, "logprobs": 1}, {"echo": True, "max_tokens": 0}):
                for text, tokens in ((texts[0], ids[0]), (texts, ids)):
                    asked_for = {"model": "story", "max_tokens": 4, **more}
                    expected = await client.post("/v1/completions", json={**asked_for, "prompt": text})
                    answer = await client.post("/v1/completions", json={**asked_for, "prompt": tokens})
                    assert answer.status_code == 200
                    for one, other in zip(answer.json()["choices"], expected.json()["choices"], strict=True):
                        assert one["text"] == other["text"]
                        assert (one["logprobs"] is None) == ("logprobs" not in more)
                        if one["logprobs"]:
                            assert one["logprobs"]["tokens"] == other["logprobs"]["tokens"]
                    assert answer.json()["usage"] == expected.json()["usage"]

        served(app_of(store, {"story": (tiny_llama, {})}), work)

    def test_an_echoed_prompt_and_one_token_are_scored_as_one_text(self, store, tiny_llama):
        prompt = "the film was"

        async def work(client):
            asked_for = {"model": "story", "prompt": prompt, "echo": True, "max_tokens": 1, "logprobs": 1}
            [choice] = (await client.post("/v1/completions", json=asked_for)).json()["choices"]
            given = choice["logprobs"]
            generator = TextGenerator.open(tiny_llama, 1)
            ids = generator.tokenizer.encode(prompt)
            ids.append(next(iter(generator.generate_ids(ids, 1))))
            logits = torch.from_numpy(generator.decoder.forward(np.array([ids]))[0][0])
            expected = torch.log_softmax(logits.double(), -1)
            assert choice["text"] == "".join(given["tokens"])
            assert given["token_logprobs"][0] is given["top_logprobs"][0] is None
            for place in range(1, len(ids)):
                score = expected[place - 1, ids[place]].item()
                assert given["token_logprobs"][place] == pytest.approx(score, abs=1e-4)
                best = max(given["top_logprobs"][place].values())
                assert best == pytest.approx(expected[place - 1].max().item(), abs=1e-4)
            assert given["token_logprobs"][-1] == max(given["top_logprobs"][-1].values())
            assert [len(values) for values in given.values()] == [len(ids)] * 4
            streamed = (await client.post("/v1/completions", json={**asked_for, "stream": True})).text
            parts = [content["choices"][0] for _, content in events(streamed)[:-1]]
            assert "".join(part["text"] for part in parts) == choice["text"]
            for name in ("tokens", "text_offset"):
                assert [one for part in parts for one in part["logprobs"][name]] == given[name]

        served(app_of(store, {"story": (tiny_llama, {})}), work)

    def test_a_response_format_makes_the_text_json_of_the_schema(self, store, chatty_llama):
        schema = {
            "type": "object",
            "properties": {"label": {"enum": ["good", "bad"]}, "score": {"type": "integer", "maximum": 9}},
            "required": ["label", "score"],
            "additionalProperties": False,
        }
        named = {"type": "json_schema", "json_schema": {"name": "review", "schema": schema, "strict": True}}

        async def work(client):
            chat = {"model": "story", "messages": [{"role": "user", "content": "the film"}]}
            completion = {"model": "story", "prompt": "the film"}
            for path, given in (("chat/completions", chat), ("completions", completion)):
                asked_for = {**given, "response_format": named, "max_tokens": 200}
                [choice] = (await client.post(f"/v1/{path}", json=asked_for)).json()["choices"]
                text = choice["text"] if path == "completions" else choice["message"]["content"]
                jsonschema.validate(json.loads(text), schema)
                assert choice["finish_reason"] == "stop"
            for seed in range(5):
                asked_for = {**chat, "temperature": 1.0, "seed": seed, "max_tokens": 200}
                answer = await client.post(
                    "/v1/chat/completions", json={**asked_for, "response_format": named, "stream": True}
                )
                parts = [content["choices"][0] for _, content in events(answer.text)[:-1]]
                text = "".join(part["delta"].get("content", "") for part in parts)
                jsonschema.validate(json.loads(text), schema)
                anything = {**asked_for, "response_format": {"type": "json_object"}}
                [choice] = (await client.post("/v1/chat/completions", json=anything)).json()["choices"]
                if choice["finish_reason"] == "stop":
                    assert isinstance(json.loads(choice["message"]["content"]), dict)
            plain = await client.post("/v1/chat/completions", json={**chat, "max_tokens": 5})
            as_text = {**chat, "max_tokens": 5, "response_format": {"type": "text"}}
            same = await client.post("/v1/chat/completions", json=as_text)
            assert same.json()["choices"] == plain.json()["choices"]

        served(app_of(store, {"story": (chatty_llama, {})}), work)

    def test_a_schema_that_is_bad_or_too_big_is_refused_with_the_reason(self, store, tiny_llama):
        deep = {"type": "string"}
        for _ in range(40):
            deep = {"type": "array", "items": deep}
        wide = {"type": "object", "properties": {f"name{i}": {"type": "string"} for i in range(2000)}}
        many = {"allOf": [{"anyOf": [{"required": [f"a{i}{j}"]} for j in range(6)]} for i in range(8)]}

        async def work(client):
            for schema, message in (
                (deep, "nested deeper than 32 levels"),
                (wide, "at most 32768 are allowed"),
                (many, "schema"),
                ({"type": "string", "pattern": "("}, "regex parse error"),
                ({"if": {"type": "string"}}, "Unimplemented keys"),
                ([], "json_schema"),
                (None, "schema"),
            ):
                for stream in (False, True):
                    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
                    asked_for = {"model": "story", "prompt": "the film", "response_format": form}
                    answer = await client.post("/v1/completions", json={**asked_for, "stream": stream})
                    assert message in refused(answer, 422, "invalid_request")
            for form in ({"type": "json_schema"}, {"type": "grammar"}, "json_object"):
                asked_for = {"model": "story", "prompt": "the film", "response_format": form}
                answer = await client.post("/v1/completions", json=asked_for)
                assert "response_format" in refused(answer, 422, "invalid_request")

        served(app_of(store, {"story": (tiny_llama, {})}), work)

    def test_what_would_change_the_answer_and_is_not_there_is_refused(self, store, tiny_llama):
        async def work(client):
            for change, status, type in (
                ({"n": 2}, 422, "invalid_request"),
                ({"suffix": "the end"}, 422, "invalid_request"),
                ({"logprobs": 6}, 422, "invalid_request"),
                ({"logprobs": 1, "echo": True, "max_tokens": 0, "stream": True}, 422, "invalid_request"),
                ({"frequency_penalty": 2.1}, 422, "invalid_request"),
                ({"repetition_penalty": 0}, 422, "invalid_request"),
                ({"logit_bias": {"320": 1}}, 422, "invalid_request"),
                ({"logit_bias": {"5": 101}}, 422, "invalid_request"),
                ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, 422, "invalid_request"),
                ({"prompt": [3, 320]}, 422, "invalid_request"),
                ({"prompt": [[]]}, 422, "invalid_request"),
                ({"echo": True, "max_tokens": 0, "prompt": SENTENCE * 80}, 422, "invalid_request"),
                ({"max_tokens": 0}, 422, "invalid_request"),
                ({"temperature": -1}, 422, "invalid_request"),
                ({"model": "best"}, 404, "unknown_tier"),
                ({"prompt": []}, 422, "invalid_request"),
                ({"prompt": ["a", "b"], "stream": True}, 422, "invalid_request"),
            ):
                asked_for = {"model": "story", "prompt": "the film", **change}
                refused(await client.post("/v1/completions", json=asked_for), status, type)

        served(app_of(store, {"story": (tiny_llama, {})}), work)

    @pytest.mark.parametrize(
        ("path", "fields"),
        [
            (
                "completions",
                {
                    **{"n": 2, "best_of": 2, "suffix": "end", "guided_regex": "a+"},
                    **{"guided_json": {}, "ignore_eos": True, "min_tokens": 2, "bad_words": ["a"]},
                    **{"typical_p": 0.5, "no_repeat_ngram_size": 2, "prompt_logprobs": 1},
                },
            ),
            (
                "chat/completions",
                {
                    **{"n": 2, "tools": [{"type": "function"}], "tool_choice": "required", "functions": [{}]},
                    **{"function_call": {"name": "f"}, "modalities": ["audio"]},
                    **{"reasoning_effort": "high", "web_search_options": {}, "stop_token_ids": [3]},
                    **{"chat_template": "{{ 1 }}", "chat_template_kwargs": {"enable_thinking": False}},
                    **{"add_generation_prompt": False, "continue_final_message": True, "documents": [{}]},
                    **{"verbosity": "low", "echo": True},
                },
            ),
        ],
    )
    def test_fields_that_would_change_the_answer_are_refused_by_name(self, store, tiny_llama, path, fields):
        given = {
            "completions": {"prompt": "the film"},
            "chat/completions": {"messages": [{"role": "user", "content": "the film"}]},
        }[path]

        async def work(client):
            for name, value in fields.items():
                answer = await client.post(f"/v1/{path}", json={"model": "story", **given, name: value})
                assert f"{name} is not supported; omit it" in refused(answer, 422, "invalid_request")

        served(app_of(store, {"story": (tiny_llama, {})}), work)

    def test_calls_of_earlier_answers_and_names_are_in_the_prompt_as_in_transformers(
        self, store, tiny_llama, tmp_path
    ):
        folder = shutil.copytree(tiny_llama, tmp_path / "llama")
        template = (
            "{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.tool_call_id }}: {{ m.content }}"
            "{% for call in m.tool_calls %}{{ call.id }} {{ call.type }} {{ call.function.name }}"
            "{% for key, value in call.function.arguments.items() %}{{ key }}={{ value }}{% endfor %}"
            "{% endfor %}{% endfor %}"
        )
        (folder / "chat_template.jinja").write_text(template)
        call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": {"in": "the book"}}}
        messages = [
            {"role": "user", "name": "Ada", "content": "how was it?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "dull"},
        ]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        expected = "".join(TextGenerator.open(folder, 1).generate(text, max_new_tokens=4))
        as_sent = {**call, "function": {"name": "look", "arguments": json.dumps({"in": "the book"})}}
        sent = [messages[0], {"role": "assistant", "content": None, "tool_calls": [as_sent]}, messages[2]]

        async def work(client):
            asked = {"model": "story", "messages": sent, "max_tokens": 4}
            answer = (await client.post("/v1/chat/completions", json=asked)).json()
            assert answer["usage"]["prompt_tokens"] - len(ids) in (0, 1)  # the token that begins a text
            assert answer["choices"][0]["message"]["content"] == expected
            many = [{**sent[1], "tool_calls": [as_sent] * 2048}]
            answer = await client.post("/v1/chat/completions", json={**asked, "messages": many})
            assert "at most 2048 are allowed" in refused(answer, 422, "invalid_request")

        served(app_of(store, {"story": (folder, {})}), work)

    def test_with_top_k_1_any_temperature_is_greedy(self, store, tiny_llama):
        async def work(client):
            asked = {"model": "story", "prompt": "the film", "max_tokens": 8}
            greedy = (await client.post("/v1/completions", json=asked)).json()["choices"][0]["text"]
            hot = {**asked, "temperature": 5, "seed": 1}
            found = [
                (await client.post("/v1/completions", json={**hot, **more})).json()["choices"][0]["text"]
                for more in ({}, {"top_k": 1})
            ]
            expected = "".join(TextGenerator.open(tiny_llama, 1).generate("the film", max_new_tokens=8))
            assert found[0] != expected
            assert found[1] == greedy == expected

        served(app_of(store, {"story": (tiny_llama, {})}), work)

    def test_fields_that_change_nothing_and_messages_without_content_are_taken(self, store, chatty_llama):
        neutral = {
            **{"n": 1, "response_format": {"type": "text"}, "frequency_penalty": 0, "presence_penalty": 0.0},
            **{"logit_bias": {}, "tools": [], "tool_choice": "auto", "functions": None, "logprobs": False},
            **{"user": "me", "store": False, "metadata": {}, "parallel_tool_calls": True, "max_tokens": 3},
        }

        async def work(client):
            messages = [{"role": "assistant", "content": None}, {"role": "user", "content": "the film"}]
            asked_for = {"model": "story", "messages": messages}
            plain = await client.post("/v1/chat/completions", json={**asked_for, "max_tokens": 3})
            answer = await client.post("/v1/chat/completions", json={**asked_for, **neutral})
            assert answer.json()["choices"] == plain.json()["choices"]
            assert plain.json()["usage"]["completion_tokens"] == 3

        served(app_of(store, {"story": (chatty_llama, {})}), work)

    def test_embeddings_have_length_one(self, store, tiny_bert):
        async def work(client):
            asked_for = {"model": "vectors", "input": [SENTENCE, "a film"]}
            answer = (await client.post("/v1/embeddings", json=asked_for)).json()
            vectors = np.array([one["embedding"] for one in answer["data"]])
            raw = SentenceEncoder.open(tiny_bert, 1).embed([SENTENCE, "a film"])
            expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
            coded = (
                await client.post("/v1/embeddings", json={**asked_for, "encoding_format": "base64"})
            ).json()
            first = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
            np.testing.assert_array_equal(first, vectors[0].astype(np.float32))
            cut = (await client.post("/v1/embeddings", json={**asked_for, "dimensions": 8})).json()
            short = raw[:, :8] / np.linalg.norm(raw[:, :8], axis=1, keepdims=True)
            np.testing.assert_allclose([one["embedding"] for one in cut["data"]], short, atol=1e-5)
            answer = await client.post("/v1/embeddings", json={**asked_for, "dimensions": 33})
            assert "the embeddings of vectors have 32" in refused(answer, 422, "invalid_request")

        served(app_of(store, {"vectors": (tiny_bert, {})}), work)

    def test_embeddings_count_the_tokens_of_transformers_and_take_its_ids(self, store, tiny_bert):
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
        texts = [SENTENCE, "a film", f"{SENTENCE} and {SENTENCE}"]
        ids = tokenizer(texts, truncation=True, max_length=16)["input_ids"]

        async def work(client):
            async def ask(input):
                return (await client.post("/v1/embeddings", json={"model": "vectors", "input": input})).json()

            answer, same = await ask(texts), await ask(ids)
            tokens = sum(map(len, ids))
            assert answer["usage"] == same["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
            for one, other in zip(answer["data"], same["data"], strict=True):
                np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)
            alone = await ask(ids[1])
            np.testing.assert_allclose(
                alone["data"][0]["embedding"], answer["data"][1]["embedding"], atol=1e-5
            )
            for wrong, message in (
                ([[]], "input 0 has 0 token ids; expected 1 to 16"),
                ([ids[0], [1] * 17], "input 1 has 17 token ids"),
                ([tokenizer.vocab_size + 500], "input 0: token ids are 0 to"),
                ([-1], "greater than or equal to 0"),
                (["a film", 3], "valid string"),
                ([], "the request has 0 texts; expected 1 to 2048"),
                (["a film"] * 2049, "the request has 2049 texts; expected 1 to 2048"),
            ):
                sent = await client.post("/v1/embeddings", json={"model": "vectors", "input": wrong})
                assert message in refused(sent, 422, "invalid_request")

        served(app_of(store, {"vectors": (tiny_bert, {"max_length": 16, "max_batch": 4})}), work)

    def test_2048_of_the_longest_texts_are_embedded_in_batches_of_the_tier(
        self, store, tiny_bert, monkeypatch
    ):
        app = app_of(store, {"vectors": (tiny_bert, {"max_length": 60, "max_batch": 48})})
        words = SENTENCE.split()
        spelt = [" ".join(words[int(digit)] for digit in f"{index:04}") for index in range(2048)]
        texts = [f"{one} ".ljust(116, "\x01") for one in spelt]  # \x01 is \u0001 in JSON, and no token
        seen, answer = [], ModelHandle.answer

        async def counted(self, operation, texts, **settings):
            seen.append(len(texts))
            return await answer(self, operation, texts, **settings)

        monkeypatch.setattr(ModelHandle, "answer", counted)

        async def work(client):
            asked_for = json.dumps({"model": "vectors", "input": texts}).encode()
            limit = app.state.backend.max_json_bytes()
            assert 1_150_000 < len(asked_for) < limit == 2048 * 60 * 12
            found = await client.post(
                "/v1/embeddings", content=asked_for, headers={"Content-Type": "application/json"}
            )
            assert found.status_code == 200, found.text
            assert [one["index"] for one in found.json()["data"]] == list(range(2048))
            assert seen == [48] * 42 + [32]
            last = (await client.post("/v1/embeddings", json={"model": "vectors", "input": spelt[-1]})).json()
            np.testing.assert_allclose(
                found.json()["data"][-1]["embedding"], last["data"][0]["embedding"], atol=1e-5
            )

        served(app, work)

    def test_files_of_sound_are_transcribed(self, store, tiny_whisper, tone):
        def file(seconds, rate=8000):
            stream = io.BytesIO()
            soundfile.write(stream, tone(seconds)[:: 16000 // rate], rate, format="FLAC")
            return {"file": ("speech.flac", stream.getvalue(), "audio/flac")}

        async def work(client):
            form, path = {"model": "speech"}, "/v1/audio/transcriptions"
            answer = await client.post(path, data=form, files=file(0.5))
            assert answer.status_code == 200
            assert answer.json()["text"]
            plain = await client.post(path, data={**form, "response_format": "text"}, files=file(0.5))
            assert plain.text == answer.json()["text"]
            long = await client.post(path, data=form, files=file(3))
            assert "longer than 2 s" in refused(long, 422, "invalid_request")
            broken = await client.post(path, data=form, files={"file": ("x.wav", b"RIFF....", "audio/wav")})
            message = refused(broken, 422, "invalid_request")
            assert "the file cannot be read as audio" in message
            assert "/tmp" not in message
            missing = await client.post(path, data=form)
            assert "send multipart/form-data" in refused(missing, 415, "unsupported_media_type")
            missing = await client.post(path, files={"model": (None, "speech")})
            assert "file" in refused(missing, 422, "invalid_request")
            for name, value, plain in (
                ("include[]", "logprobs", None),
                ("known_speaker_names[]", "Ada", None),
                ("keywords[]", "Ada", None),
                ("languages[]", "fr", None),
                ("chunking_strategy", "server_vad", "auto"),
                ("chunking_strategy[type]", "server_vad", None),
            ):
                answer = await client.post(path, data={**form, name: value}, files=file(0.5))
                message = refused(answer, 422, "invalid_request")
                assert f"{name.partition('[')[0]} is not supported; omit it" in message
                if plain is not None:
                    answer = await client.post(path, data={**form, name: plain}, files=file(0.5))
                    assert answer.status_code == 200
            for name, value, reason in (
                (
                    "temperature",
                    "0.2",
                    "temperature: only 0 is supported, because transcripts are not sampled",
                ),
                (
                    "response_format",
                    "diarized_json",
                    "response_format: Input should be 'json', 'text', 'srt'",
                ),
                ("timestamp_granularities[]", "word", "word requires response_format: verbose_json"),
                ("prompt", "Names: Ada.", "prompt is not supported by this model"),
                ("prompt", "Ada" * 40_000, "characters, but at most"),
                ("response_format", "srt", "this model has no time stamps"),
            ):
                answer = await client.post(path, data={**form, name: value}, files=file(0.5))
                assert reason in refused(answer, 422, "invalid_request" if len(value) < 99 else "too_long")
            plain = {**form, "prompt": "", "timestamp_granularities[]": "segment", "stream": "false"}
            assert (await client.post(path, data=plain, files=file(0.5))).status_code == 200
            streamed = await client.post(path, data={**form, "stream": "true"}, files=file(1.9))
            assert streamed.headers["content-type"].startswith("text/event-stream")
            whole = (await client.post(path, data=form, files=file(1.9))).json()["text"]
            *parts, (_, done) = events(streamed.text)
            assert len(parts) == 2, "a window each"
            assert {part["type"] for _, part in parts} == {"transcript.text.delta"}
            assert "".join(part["delta"] for _, part in parts) == whole
            assert done == {"type": "transcript.text.done", "text": whole}
            both = {**form, "stream": "true", "response_format": "vtt"}
            answer = await client.post(path, data=both, files=file(0.5))
            assert "stream is not supported for response_format: vtt" in refused(
                answer, 422, "invalid_request"
            )
            answer = await client.post("/v1/audio/translations", data=form, files=file(0.5))
            assert "this model cannot translate speech" in refused(answer, 422, "invalid_request")

        served(app_of(store, {"speech": (tiny_whisper, {"max_new_tokens": 4, "max_audio_s": 2})}), work)


class TestStatus:
    def test_live_at_once_and_ready_when_loaded(self, store, tiny_classifier):
        import httpx

        app = app_of(store, {"reviews": (tiny_classifier, {})})

        async def run():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                assert (await client.get("/health/live")).json() == {"live": True}
                refused(await client.get("/health/ready"), 503, "loading")
                refused(await client.get("/health"), 503, "loading")
                refused(await client.get("/v2/health/ready"), 503, "loading")
                refused(await client.get("/v2/models/reviews/ready"), 503, "loading")
                async with app.router.lifespan_context(app):
                    while not app.state.backend.service.models.ready:
                        await asyncio.sleep(0.01)
                    assert (await client.get("/health/ready")).json() == {"ready": True}
                    assert (await client.get("/health")).json() == {"ready": True}

        asyncio.run(run())

    def test_probes_may_ask_for_the_head_alone(self, store, tiny_classifier):
        paths = [
            *("/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"),
            *("/v2/models/reviews", "/v2/models/reviews/ready", "/v2/models/reviews/versions/{version}"),
            *("/v2/models/reviews/versions/{version}/ready", "/v2/models/nobody", "/v2/models/nobody/ready"),
        ]

        async def work(client):
            version = (await client.get("/v2/models/reviews")).json()["versions"][0]
            for path in paths:
                url = path.format(version=version)
                full, head = await client.get(url), await client.head(url)
                assert head.status_code == full.status_code == (404 if "nobody" in path else 200)
                for name in ("content-type", "content-length"):
                    assert head.headers[name] == full.headers[name]

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)

    def test_a_model_that_cannot_be_loaded_is_told(self, store, tiny_classifier, tmp_path):
        import httpx

        folder = shutil.copytree(tiny_classifier, tmp_path / "model")
        app = app_of(store, {"reviews": (folder, {})})
        (folder / "config.json").write_text("{}")
        failed = []
        app.state.on_failure = lambda: failed.append(True)

        async def run():
            transport = httpx.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://server") as client,
            ):
                while not failed:
                    await asyncio.sleep(0.01)
                told = refused(await client.get("/health/ready"), 503, "load_failed")
                assert told.startswith("this tier's model cannot be loaded; see the server log")

        asyncio.run(run())

    def test_statistics_and_metrics(self, store, tiny_classifier):
        async def work(client):
            for tier in ("basic", "premium", "premium"):
                await client.post("/classify", json={"text": [SENTENCE, "a film"], "tier": tier})
            await client.post("/classify", json={"text": " ", "tier": "basic"})
            await client.get("/no/such/place")
            stats = (await client.get("/stats")).json()
            assert stats["unique_models_loaded"] == 1
            assert stats["models_saved"] == 1
            [model] = stats["shared_models_info"]
            text = (await client.get("/metrics")).text
            for line in (
                'pressoir_requests_total{operation="classify",outcome="ok",tier="premium"} 2.0',
                'pressoir_requests_total{operation="classify",outcome="RequestError",tier="basic"} 1.0',
                'pressoir_request_seconds_count{stage="service",tier="premium"} 2.0',
                'pressoir_request_seconds_count{stage="http",tier="premium"} 2.0',
                f'pressoir_batch_texts_sum{{model="{model}"}} 6.0',
                f'pressoir_batch_seconds_count{{model="{model}",stage="queue"}} 3.0',
                f'pressoir_model_events_total{{event="loaded",model="{model}"}} 1.0',
                f'pressoir_model_leases{{model="{model}"}} 0.0',
                f'pressoir_model_queue_length{{model="{model}"}} 0.0',
                f'pressoir_model_resident_bytes{{model="{model}"}} ',
                'pressoir_http_requests_total{method="POST",route="/classify",status="422"} 1.0',
                'pressoir_http_requests_total{method="GET",route="unknown",status="404"} 1.0',
                "pressoir_ready 1.0",
            ):
                assert line in text, line

        tiers = {"basic": (tiny_classifier, {}), "premium": (tiny_classifier, {})}
        served(app_of(store, tiers), work)

    def test_two_apps_count_for_themselves(self, store, tiny_classifier):
        first, second = (app_of(store, {"reviews": (tiny_classifier, {})}) for _ in range(2))
        first.state.backend.metrics.request("reviews", "classify", "ok", 0.1)
        assert b"pressoir_requests_total{" in first.state.backend.metrics.text()
        assert b"pressoir_requests_total{" not in second.state.backend.metrics.text()

    def test_the_documentation_needs_nothing_from_elsewhere(self, store, tiny_classifier):
        async def work(client):
            page = await client.get("/docs")
            assert "POST /translate" in page.text
            assert "<code>source_language</code> string" in page.text
            assert "http://" not in page.text
            assert "https://" not in page.text
            assert "<script" not in page.text
            assert (await client.get("/openapi.json")).json()["info"]["title"] == "Pressoir"

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)

    def test_the_page_and_its_files_are_served_and_nothing_else(
        self, store, tiny_classifier, tmp_path, monkeypatch
    ):
        from pressoir.serving.http import pages

        (tmp_path / "page").mkdir()
        (tmp_path / "page" / "index.html").write_text("<h1>hello</h1>")
        (tmp_path / "page" / "app.js").write_text("1")
        (tmp_path / "secret.txt").write_text("secret")
        monkeypatch.setattr(pages, "PAGE", tmp_path / "page")

        async def work(client):
            answer = await client.get("/")
            assert answer.text == "<h1>hello</h1>"
            assert answer.headers["content-security-policy"].startswith("default-src 'self';")
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            script = await client.get("/static/app.js")
            assert "javascript" in script.headers["content-type"]
            for name in ("../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "nothing.js", ""):
                refused(await client.get(f"/static/{name}"), 404, "not_found")

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)
