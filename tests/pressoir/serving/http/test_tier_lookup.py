"""A request looks its tier up by name once; what was found is passed on to the model."""

import asyncio
import io

import pytest
import soundfile
from serving_http import SENTENCE, app_of, asked

from pressoir.store.store import Store


class Counted(dict):
    """A mapping that counts how often it is searched."""

    def __init__(self, content):
        super().__init__(content)
        self.lookups = 0

    def __getitem__(self, key):
        self.lookups += 1
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.lookups += 1
        return super().get(key, default)

    def __contains__(self, key):
        self.lookups += 1
        return super().__contains__(key)


def counted(models):
    """Replace everything of a started service that can be searched by a tier's name."""
    models.tiers = Counted(models.tiers)
    models.config = models.config.model_copy(update={"tiers": Counted(models.config.tiers)})
    models.sharing.__dict__["by_tier"] = Counted(models.sharing.by_tier)
    return lambda: models.tiers.lookups + models.config.tiers.lookups + models.sharing.by_tier.lookups


def text_tensor(text):
    return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}


def test_an_answered_request_has_looked_its_tier_up_once(
    tmp_path, tiny_classifier, tiny_bert, tiny_nllb, tiny_llama, tiny_whisper, tone
):
    tiers = {
        "reviews": (tiny_classifier, {}),
        "vectors": (tiny_bert, {}),
        "basic": (tiny_nllb, {"source_language": "en", "target_language": "de", "max_new_tokens": 3}),
        "story": (tiny_llama, {"max_new_tokens": 3}),
        "speech": (tiny_whisper, {"max_new_tokens": 3}),
    }
    app = app_of(Store(tmp_path / "home"), tiers)
    sound = io.BytesIO()
    soundfile.write(sound, tone(0.2), 16_000, format="WAV")
    score = {"model": "story", "prompt": ["the film"] * 2, "echo": True, "max_tokens": 0, "logprobs": 0}
    requests = [
        ("/classify", {"json": {"text": [SENTENCE], "tier": "reviews"}}),
        ("/translate", {"json": {"text": SENTENCE, "tier": "basic"}}),
        ("/generate/stream", {"json": {"prompt": "the film", "tier": "story"}}),
        ("/v1/completions", {"json": {"prompt": ["the film"] * 2, "model": "story"}}),
        ("/v1/completions", {"json": {"prompt": "the film", "model": "story", "stream": True}}),
        ("/v1/completions", {"json": score}),
        ("/v1/embeddings", {"json": {"input": SENTENCE, "model": "vectors"}}),
        (
            "/v1/audio/transcriptions",
            {"data": {"model": "speech"}, "files": {"file": ("x.wav", sound.getvalue(), "audio/wav")}},
        ),
        *((f"/v2/models/{name}/infer", {"json": text_tensor(SENTENCE)}) for name in list(tiers)[:4]),
    ]

    async def run():
        async with asked(app) as client:
            lookups = counted(app.state.backend.service.models)
            for path, content in requests:
                before = lookups()
                answer = await client.post(path, **content)
                assert answer.status_code == 200, answer.text
                assert lookups() - before == 1, path
            before = lookups()
            assert (await client.get("/v2/models/reviews/ready")).status_code == 200
            assert lookups() - before == 1

    asyncio.run(run())


@pytest.mark.parametrize("texts", [1, 3])
def test_a_comparison_looks_each_tier_up_once_however_many_texts(tmp_path, tiny_classifier, texts):
    app = app_of(Store(tmp_path / "home"), {"a": (tiny_classifier, {}), "b": (tiny_classifier, {})})

    async def run():
        async with asked(app) as client:
            lookups = counted(app.state.backend.service.models)
            answer = await client.post("/compare", json={"texts": [SENTENCE] * texts, "tiers": ["a", "b"]})
            assert answer.status_code == 200, answer.text
            assert lookups() == 2

    asyncio.run(run())
