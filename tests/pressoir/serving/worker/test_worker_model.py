"""What a model's side does: answers as inference gives them, in steps, within a budget of tokens."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from pressoir.errors import PressoirError, RecipeError, SourceError
from pressoir.formats.folder import model_files, task_of
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.translation import Translator
from pressoir.serving.worker.messages import LENGTHS, Message, pack, unpack
from pressoir.serving.worker.step_scheduler import StepScheduler
from pressoir.serving.worker.worker_model import LoadJob, open_model
from pressoir.system.files import folder_digest

TEXTS = ["the film was good", "the book was bad and dull and the soup was cold", "the game was fine"]


@pytest.fixture(scope="session")
def serve():
    """`serve(folder)`: the model of a folder as the worker runs it."""
    opened = {}

    def make(folder):
        if folder not in opened:
            digest, _ = folder_digest(folder, model_files(folder))
            job = LoadJob(
                name=folder.name,
                folder=folder,
                digest=digest,
                task=task_of(folder),
                runtime="pytorch",
                threads=1,
            )
            opened[folder] = open_model(job)
        return opened[folder]

    return make


def run(steps):
    """The answer, and what came on the way."""
    pieces = []
    while True:
        try:
            pieces.append(next(steps))
        except StopIteration as end:
            return end.value, pieces


def ask(model, operation, **arguments):
    return run(model.operations[operation](**arguments))


TRANSLATION = {
    "source_language": "en",
    "target_language": "fr",
    "max_length": None,
    "max_new_tokens": 8,
    "num_beams": 1,
    "max_tokens": 0,
}


class TestClassifier:
    def test_its_probabilities_are_the_classifiers(self, serve, tiny_classifier):
        model = serve(tiny_classifier)
        (body, _), _ = ask(model, "classify", texts=TEXTS, max_length=None, max_tokens=0)
        expected = [TextClassifier.open(tiny_classifier, 1).predict([text])[0] for text in TEXTS]
        assert [
            dict(zip(model.info["labels"], row, strict=True)) for row in body["probabilities"]
        ] == expected

    def test_a_batch_is_split_by_the_tokens_that_it_really_has(self, serve, tiny_classifier):
        model = serve(tiny_classifier)  # the texts have 6, 13 and 6 tokens
        for max_tokens, steps in ((1000, 1), (39, 1), (38, 2), (12, 2), (11, 3), (0, 3)):
            (body, _), pieces = ask(model, "classify", texts=TEXTS, max_length=None, max_tokens=max_tokens)
            assert len(pieces) == steps
            assert len(body["probabilities"]) == 3

    def test_the_order_and_the_values_do_not_depend_on_the_split(self, serve, tiny_classifier):
        model = serve(tiny_classifier)
        (alone, _), _ = ask(model, "classify", texts=TEXTS, max_length=None, max_tokens=0)
        (together, _), _ = ask(model, "classify", texts=TEXTS, max_length=None, max_tokens=1000)
        np.testing.assert_allclose(together["probabilities"], alone["probabilities"], atol=1e-6)

    def test_a_text_is_cut_at_max_length(self, serve, tiny_classifier):
        model = serve(tiny_classifier)
        long, short = "the book was bad and dull", "the book"
        (cut, _), _ = ask(model, "classify", texts=[long], max_length=4, max_tokens=0)
        (same, _), _ = ask(model, "classify", texts=[short], max_length=None, max_tokens=0)
        assert cut["probabilities"] == same["probabilities"]
        assert (cut["truncated"], same["truncated"]) == ([True], [False])


class TestEncoder:
    def test_its_embeddings_are_the_encoders_and_max_length_cuts(self, serve, tiny_bert):
        model = serve(tiny_bert)
        (_, array), _ = ask(model, "embed", texts=TEXTS, max_length=None, max_tokens=0)
        encoder = SentenceEncoder.open(tiny_bert, 1)
        np.testing.assert_array_equal(array, np.stack([encoder.embed([text])[0] for text in TEXTS]))
        (_, cut), _ = ask(model, "embed", texts=[TEXTS[1]], max_length=4, max_tokens=0)
        np.testing.assert_array_equal(cut, encoder.embed(["the book"]))


class TestTranslator:
    @pytest.mark.parametrize("name", ["tiny_nllb", "tiny_marian", "tiny_t5"])
    def test_its_translations_are_the_translators(self, serve, request, name):
        folder = request.getfixturevalue(name)
        (body, _), pieces = ask(serve(folder), "translate", texts=TEXTS, **TRANSLATION)
        translator = Translator.open(folder, 1)
        expected = [translator.translate([text], "en", "fr", max_new_tokens=8)[0] for text in TEXTS]
        assert body["texts"] == expected
        assert len(pieces) == len(TEXTS)

    def test_max_length_cuts_the_source_and_leaves_the_model_as_it_was(self, serve, tiny_marian):
        model = serve(tiny_marian)
        for max_length, steps in ((5, 1), (None, 3)):  # three texts of five tokens go together
            given = {**TRANSLATION, "max_length": max_length, "max_tokens": 15}
            _, pieces = ask(model, "translate", texts=[TEXTS[1]] * 3, **given)
            assert len(pieces) == steps

    def test_an_unknown_language_is_refused_with_the_known_ones(self, serve, tiny_nllb):
        with pytest.raises(RecipeError, match=r"'xx' is not supported by this model; .*fra_Latn"):
            ask(serve(tiny_nllb), "translate", texts=["a"], **{**TRANSLATION, "target_language": "xx"})


class TestGenerator:
    def test_its_pieces_are_the_generators_and_it_tells_what_it_took(self, serve, tiny_llama):
        given = {"prompt": "the film was", "max_length": None, "max_new_tokens": 12}
        (body, _), pieces = ask(serve(tiny_llama), "generate", **given)
        generator = TextGenerator.open(tiny_llama, 1)
        assert pieces == list(generator.generate("the film was", max_new_tokens=12))
        assert body["prompt_tokens"] == len(generator.tokenizer.encode("the film was"))
        assert body["completion_tokens"] == 12
        assert body["finish_reason"] == "length"

    def test_a_stop_text_ends_it(self, serve, tiny_llama):
        given = {"prompt": "the film was", "max_length": None, "max_new_tokens": 12}
        whole = "".join(ask(serve(tiny_llama), "generate", **given)[1])
        (body, _), pieces = ask(serve(tiny_llama), "generate", **given, stop=[whole[4]])
        assert "".join(pieces) == whole[: whole.index(whole[4])]
        assert body["finish_reason"] == "stop"

    def test_prompt_and_continuation_stay_within_max_length_together(self, serve, tiny_llama):
        model = serve(tiny_llama)
        prompt = len(TextGenerator.open(tiny_llama, 1).tokenizer.encode("the film was"))
        given = {"prompt": "the film was", "max_new_tokens": 12}
        (body, _), _ = ask(model, "generate", max_length=prompt + 5, **given)
        assert body["completion_tokens"] == 5
        with pytest.raises(
            PressoirError, match=f"the prompt has {prompt} tokens, but max_length is {prompt}"
        ):
            ask(model, "generate", max_length=prompt, **given)


class TestRecognizer:
    def test_its_transcript_is_the_recognizers_a_window_a_step(self, serve, tiny_whisper, tone):
        sound = tone(2.5)
        given = {"language": None, "max_new_tokens": None, "num_beams": 1}
        (body, _), pieces = ask(serve(tiny_whisper), "transcribe", array=sound, **given)
        assert [body["text"]] == SpeechRecognizer.open(tiny_whisper, 1).transcribe([sound])
        assert len(pieces) == 3
        (short, _), _ = ask(serve(tiny_whisper), "transcribe", array=sound, **{**given, "max_new_tokens": 2})
        assert len(short["text"].split()) < len(body["text"].split())

    def test_ctc_is_served_too(self, serve, tiny_wav2vec2, tone):
        given = {"language": None, "max_new_tokens": None, "num_beams": 1}
        (body, _), _ = ask(serve(tiny_wav2vec2), "transcribe", array=tone(0.5), **given)
        assert [body["text"]] == SpeechRecognizer.open(tiny_wav2vec2, 1).transcribe([tone(0.5)])


class TestOpening:
    def job(self, folder, **fields):
        given = {"name": "m", "digest": "0" * 64, "task": "text-classification", "runtime": "pytorch"}
        return LoadJob(folder=folder, threads=1, **{**given, **fields})

    def test_files_that_are_not_those_that_were_resolved_are_not_loaded(self, tiny_classifier, tmp_path):
        folder = shutil.copytree(tiny_classifier, tmp_path / "model")
        with pytest.raises(SourceError, match=r"have the digest [0-9a-f]{64}, but had 0{64} when"):
            open_model(self.job(folder))

    def test_weights_that_are_broken_fail_the_example(self, tiny_classifier, tmp_path):
        from safetensors.numpy import load_file, save_file

        folder = shutil.copytree(tiny_classifier, tmp_path / "model")
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if name.endswith("classifier.weight"))
        weights[name] = np.full_like(weights[name], np.nan)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        digest, _ = folder_digest(folder, model_files(folder))
        with pytest.raises(RuntimeError, match="not finite"):
            open_model(self.job(folder, digest=digest))


@pytest.mark.process
def test_a_worker_that_has_not_loaded_a_pytorch_model_has_not_imported_torch():
    script = (
        "import sys, pressoir.serving.worker.worker_model, pressoir.serving.worker.step_scheduler;"
        "assert not {'torch', 'transformers', 'fastapi', 'prefect', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class TestMessages:
    @pytest.mark.parametrize("array", [None, np.arange(6, dtype=np.float32).reshape(2, 3)])
    def test_a_frame_reads_back_as_its_message(self, array):
        message = Message("request", 7, {"texts": ["žluťoučký\u2028🐎"], "x": 1 / 3, "none": None}, array)
        frame = pack(message)
        text, content = LENGTHS.unpack(frame[: LENGTHS.size])
        assert len(frame) == LENGTHS.size + text + content
        read = unpack(frame[LENGTHS.size :][:text], frame[LENGTHS.size + text :])
        assert (read.kind, read.id, read.body) == (message.kind, message.id, message.body)
        assert (read.array is None) == (array is None)
        if array is not None:
            np.testing.assert_array_equal(read.array, array)


class TestStepScheduler:
    def request(self, id, **arguments):
        return Message("request", id, {"operation": "count", "arguments": arguments})

    def count(self, to):
        for number in range(to):
            yield str(number)
        return {"to": to}, None

    def test_requests_take_turns_a_step_each(self):
        messages = []
        scheduler = StepScheduler({"count": self.count}, messages.append)
        scheduler.take(self.request(1, to=3))
        scheduler.take(self.request(2, to=1))
        while scheduler.busy:
            scheduler.step()
        assert [(one.id, one.body.get("text", one.kind)) for one in messages] == [
            *((1, "0"), (2, "0"), (1, "1"), (2, "result"), (1, "2"), (1, "result"))
        ]

    def test_a_cancelled_request_says_nothing_more(self):
        messages = []
        scheduler = StepScheduler({"count": self.count}, messages.append)
        scheduler.take(self.request(1, to=3))
        scheduler.step()
        scheduler.take(Message("cancel", 1))
        scheduler.take(Message("cancel", 99))
        assert not scheduler.busy
        assert len(messages) == 1

    def test_wrong_arguments_are_a_failure_of_that_request_alone(self, capsys):
        messages = []
        scheduler = StepScheduler({"count": self.count}, messages.append)
        scheduler.take(self.request(1, wrong=3))
        scheduler.take(self.request(2, to=0))
        while scheduler.busy:
            scheduler.step()
        assert [(one.id, one.kind) for one in messages] == [(1, "failure"), (2, "result")]
        assert messages[0].body["kind"] == "internal"
        assert "TypeError" in capsys.readouterr().err
