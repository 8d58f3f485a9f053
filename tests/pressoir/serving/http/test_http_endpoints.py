"""What each endpoint answers, on tiny models, without a network."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
import soundfile
from serving_http import KEY, SENTENCE, app_of, asked, events, refused

from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import SCORED, TextGenerator
from pressoir.inference.translation import Translator
from pressoir.serving.config import ServingConfig
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
    import shutil

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
            assert answer.json() == {"tier": "basic", "translations": expected}
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


class TestKServe:
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
            values, names = answer["outputs"]
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
            [vectors] = answer["outputs"]
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
        app = app_of(store, {"reviews": (tiny_classifier, {})}, api_key="sesame")
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

    def test_without_a_key_nobody_may_load_or_unload(self, store, tiny_classifier):
        async def work(client):
            for method, path in (
                ("POST", "/v2/repository/models/reviews/unload"),
                ("POST", "/reload"),
                ("GET", "/config"),
            ):
                answer = await client.request(method, path, headers=KEY)
                assert "set PRESSOIR_API_KEY" in refused(answer, 403, "forbidden")

        served(app_of(store, {"reviews": (tiny_classifier, {})}), work)


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

    def test_what_would_change_the_answer_and_is_not_there_is_refused(self, store, tiny_llama):
        async def work(client):
            for change, status, type in (
                ({"n": 2}, 422, "invalid_request"),
                ({"suffix": "the end"}, 422, "invalid_request"),
                ({"logprobs": 1, "echo": True}, 422, "not_supported"),
                ({"logprobs": 1, "echo": True, "max_tokens": 0, "stream": True}, 422, "not_supported"),
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

        served(app_of(store, {"vectors": (tiny_bert, {})}), work)

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
            assert "file" in refused(missing, 422, "invalid_request")

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
                refused(await client.get("/v2/health/ready"), 503, "loading")
                refused(await client.get("/v2/models/reviews/ready"), 503, "loading")
                async with app.router.lifespan_context(app):
                    while not app.state.backend.service.models.ready:
                        await asyncio.sleep(0.01)
                    assert (await client.get("/health/ready")).json() == {"ready": True}

        asyncio.run(run())

    def test_a_model_that_cannot_be_loaded_is_told(self, store, tiny_classifier, tmp_path):
        import shutil

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
                assert "digest" in refused(await client.get("/health/ready"), 503, "load_failed")

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
