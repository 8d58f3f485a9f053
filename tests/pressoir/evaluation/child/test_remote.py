"""Models on a server: a real one, on this machine, that speaks both protocols and fails in many ways."""

import contextlib
import email
import email.policy
import email.utils
import json
import logging
import math
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from pressoir.errors import DataError, PressoirError, RecipeError, UnreachableError
from pressoir.evaluation import datasets
from pressoir.evaluation.child import __main__ as child
from pressoir.evaluation.child.remote import endpoint, open_remote_predictor, samples_of
from pressoir.evaluation.config import DataSetConfig, GenerationConfig
from pressoir.evaluation.jobs import Job, Remote
from pressoir.evaluation.journal import Journal
from pressoir.evaluation.planner import plan
from pressoir.evaluation.records import Estimate
from pressoir.evaluation.supervisor import SupervisorLimits, run_plan
from pressoir.recipe.sections import DataConfig

MODEL = "org/press"
KEY = "sk-very-secret"
GOOD = set("good great lovely fine superb charming warm bright".split())


def tensor(name, datatype, shape, data):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def vector(text):
    """An embedding: how often each of three letters occurs."""
    return [float(text.count(letter)) for letter in "aeo"]


def is_good(text):
    return bool(GOOD & set(text.split()))


class FakeServer(ThreadingHTTPServer):
    """Models without weights; `seen` has the requests, `faults` what goes wrong with the next ones."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen, self.faults, self.ended = [], [], threading.Event()
        self.key = ""
        self.paths = {}
        """Answers that differ from the usual ones, by path: body, status and body, or what makes them."""
        self.inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        self.outputs = None
        """What an inference gives instead of the usual outputs."""

    def asked(self, path):
        return [body for _, seen, _, body in self.seen if seen == path]

    def handle_error(self, request, client_address):
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        self.answer(form(kind, raw) if kind.startswith("multipart/") else json.loads(raw))

    def log_message(self, *_):
        pass

    def answer(self, body):
        server, path = self.server, unquote(urlsplit(self.path).path)
        server.seen.append((self.command, path, dict(self.headers), body))
        if server.faults and (fault := server.faults.pop(0)) is not None:
            fault(self)
            return
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            self.send(401, {"error": {"message": f"wrong key: {self.headers.get('Authorization')}"}})
            return
        found = server.paths.get(path)
        if callable(found):
            found = found(body)
        elif found is None:
            found = self.usual(path, body)
        self.send(*(found if isinstance(found, tuple) else (200, found)))

    def send(self, status, body, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def usual(self, path, body):
        if path == "/v2/health/ready":
            return {"live": True}
        if path == f"/v2/models/{MODEL}/ready":
            return {"name": MODEL, "ready": True}
        if path == f"/v2/models/{MODEL}":
            return {"name": MODEL, "platform": "fake", "inputs": self.server.inputs, "outputs": []}
        if path == f"/v2/models/{MODEL}/infer":
            return {"model_name": MODEL, "outputs": self.server.outputs or infer(body)}
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "other"}, {"id": MODEL}]}
        if path == "/v1/chat/completions":
            system, user = (message["content"] for message in body["messages"])
            said = (
                user.upper()
                if "Translate" in system
                else f" {'Positive' if is_good(user) else 'NEGATIVE'}.\n"
            )
            return {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}}]}
        if path == "/v1/audio/transcriptions":
            return {"text": f" {len(body['file'])} bytes"}
        if path == "/v1/embeddings":
            rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
            return {"data": rows[::-1]}
        if path == "/v1/completions":
            count = len(body["prompt"].split())
            scores = [None, *(-0.5 * (1 + i % 2) for i in range(count - 1))]
            choice = {"text": body["prompt"], "logprobs": {"token_logprobs": scores}}
            return {"choices": [choice], "usage": {"prompt_tokens": count, "completion_tokens": 0}}
        return 404, {"error": f"no {path}"}


def infer(body):
    (given,), parameters = body["inputs"], body.get("parameters", {})
    assert math.prod(given["shape"]) == len(given["data"])
    if given["datatype"] == "FP32":
        return [tensor("text", "BYTES", [1], [f"{len(given['data'])} at {parameters['sampling_rate']}"])]
    if "num_beams" in parameters:
        return [tensor("translation", "BYTES", [1, 1], [[given["data"][0].upper()]])]
    if len(given["data"]) == 2:
        rows = [vector(text) for text in given["data"]]
        return [
            tensor("ids", "INT64", [1], [7]),
            tensor("embeddings", "FP32", [2, 3], np.ravel(rows).tolist()),
        ]
    logits = [-1.0, 2.0] if is_good(given["data"][0]) else [1.5, -2.0]
    return [tensor("logits", "FP32", [1, 2], logits)]


def form(kind, raw):
    """Fields of a multipart form; of a file, its content."""
    whole = b"Content-Type: " + kind.encode() + b"\r\n\r\n" + raw
    parts = email.message_from_bytes(whole, policy=email.policy.HTTP).iter_parts()
    fields = {}
    for part in parts:
        name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        fields[name] = content if part.get_filename() else content.decode()
        if part.get_filename():
            fields["filename"], fields["type"] = part.get_filename(), part.get_content_type()
    return fields


def status(code, body=b"{}", **headers):
    return lambda handler: handler.send(code, body, **headers)


def dies(handler):
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def dies_within(handler):
    """Close the connection in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": ')
    dies(handler)


def hangs(handler):
    handler.close_connection = True
    handler.server.ended.wait(60)


def drips(handler):
    """Send a byte now and then, for much longer than anybody waits."""
    handler.close_connection = True
    handler.send_response(200)
    handler.end_headers()
    for _ in range(500):
        if handler.server.ended.wait(0.01):
            break
        handler.wfile.write(b" ")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def running():
    with FakeServer() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield one
        finally:
            one.ended.set()
            one.shutdown()
            thread.join()


@pytest.fixture
def server():
    with running() as one:
        yield one


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between attempts, which are not made."""
    made = []

    class Clock:
        monotonic, sleep = staticmethod(time.monotonic), made.append

    monkeypatch.setattr(endpoint, "time", Clock)
    return made


@pytest.fixture
def make_job(tmp_path, server):
    def make(data, protocol=None, **fields):
        remote = {"url": server.url, "model": MODEL, "protocol": protocol, "timeout_s": 20.0}
        remote |= {name: fields.pop(name) for name in ("url", "api_key_env", "timeout_s") if name in fields}
        given = {"model": "m", "remote": Remote(**remote), "task": data.task, "data": data, "key": "k"}
        return Job(**{**given, "journal": tmp_path / "j.sqlite", "batch_size": 4, "samples": 5, **fields})

    return make


@pytest.fixture
def predict(make_job):
    """Raw predictions in the order of the samples."""

    def run(data, protocol=None, **fields):
        job = make_job(data, protocol, **fields)
        loaded = datasets.load(job.data, job.samples)
        return open_remote_predictor(job, loaded).predict(samples_of(job, loaded))

    return run


@pytest.fixture
def reviews(tiny_data):
    files = {split: tiny_data / f"{split}.tsv" for split in ("train", "validation", "test")}
    return DataSetConfig(task="text-classification", classification=DataConfig(source="files", **files))


@pytest.fixture
def captions(tmp_path):
    for name in ("source", "reference"):
        (tmp_path / f"{name}.txt").write_text("ein Hund\nzwei Katzen\ndrei Vögel\n")
    files = {name: tmp_path / f"{name}.txt" for name in ("source", "reference")}
    return DataSetConfig(task="translation", source_language="de", target_language="en", **files)


@pytest.fixture
def speech(tmp_path, tone, write_wav):
    write_wav(tmp_path / "a.wav", tone(0.5))
    write_wav(tmp_path / "b.wav", tone(0.25)[::2], rate=8000)
    entries = [{"audio": f"{name}.wav", "text": "one"} for name in "ab"]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    return DataSetConfig(task="automatic-speech-recognition", manifest=tmp_path / "manifest.json")


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "pairs.tsv").write_text("a hat\ta hat\t5\nan era\too\t1\n")
    return DataSetConfig(task="feature-extraction", pairs=tmp_path / "pairs.tsv")


@pytest.fixture
def running_text(tmp_path):
    (tmp_path / "prose.txt").write_text("one two three four five six\n" * 20)
    return DataSetConfig(task="causal-lm", text=tmp_path / "prose.txt")


def labels_of(data):
    return [sample.reference for sample in datasets.load(data, 5).samples]


@pytest.fixture
def text_pairs(pair_data):
    files = {split: pair_data / f"{split}.tsv" for split in ("train", "validation", "test")}
    columns = {"text_column": "first", "text_pair_column": "second"}
    source = DataConfig(source="files", **files, **columns)
    return DataSetConfig(task="text-classification", classification=source)


def test_pairs_are_two_tensors_over_kserve(predict, server, text_pairs):
    path = f"/v2/models/{MODEL}/infer"
    server.inputs = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("text_pair", "text")]
    server.paths[path] = {"outputs": [tensor("label", "BYTES", [1], ["same"])]}
    assert {found["label"] for found in predict(text_pairs)} == {1}
    for body, sample in zip(server.asked(path), datasets.load(text_pairs, 5).samples, strict=True):
        assert body["inputs"] == [
            tensor(name, "BYTES", [1], [text])
            for name, text in zip(("text", "text_pair"), sample.input, strict=True)
        ]


def test_pairs_are_refused_over_openai(predict, text_pairs):
    with pytest.raises(RecipeError, match=r"pairs of texts .* not supported by the OpenAI protocol"):
        predict(text_pairs, "openai")


class TestKServe:
    def test_logits_make_a_label(self, server, predict, reviews):
        found = predict(reviews)
        expected = [[1.5, -2.0], [-1.0, 2.0]]
        assert found == [{"label": label, "logits": expected[label]} for label in labels_of(reviews)]
        paths = [path for _, path, *_ in server.seen]
        infer = f"/v2/models/{MODEL}/infer"
        assert paths[-7:] == [f"/v2/models/{MODEL}/ready", f"/v2/models/{MODEL}", *[infer] * 5]
        assert set(paths[:-7]) == {"/v2/health/ready"}
        first = datasets.load(reviews, 1).samples[0].input
        assert server.asked(infer)[0] == {"inputs": [tensor("text", "BYTES", [1], [first])]}

    @pytest.mark.parametrize(
        ("outputs", "prediction"),
        [
            ([("label", "BYTES", [1], ["POSITIVE"])], (1, [])),
            ([("label", "BYTES", [1, 1], [["negative"]])], (0, [])),
            # Values in another order than the data's are not believed.
            ([("p", "FP32", [1, 2], [0.9, 0.1]), ("l", "BYTES", [1], ["positive"])], (1, [])),
            ([("p", "FP32", [1, 2], [0.2, 0.8]), ("l", "BYTES", [1], ["positive"])], (1, [0.2, 0.8])),
            # Names that are not the data's leave the order.
            ([("l", "BYTES", [1], ["LABEL_1"]), ("p", "FP64", [1, 2], [0.2, 0.8])], (1, [0.2, 0.8])),
            ([("l", "BYTES", [1, 2], ["positive", "x"]), ("p", "FP32", [1, 2], [2, 1])], (0, [2.0, 1.0])),
        ],
    )
    def test_names_of_labels_count_more_than_values(self, server, predict, reviews, outputs, prediction):
        server.outputs = [tensor(*one) for one in outputs]
        label, logits = prediction
        assert predict(reviews, samples=1) == [{"label": label, "logits": logits}]

    @pytest.mark.parametrize("probabilities", [[], [tensor("p", "FP32", [1, 2], [0.2, 0.8])]])
    def test_a_label_that_the_data_lack_is_an_error(self, server, predict, reviews, probabilities):
        server.outputs = [tensor("label", "BYTES", [1], ["neutral"]), *probabilities]
        with pytest.raises(
            DataError, match=r"returned 'neutral', but the labels of the data are negative, positive"
        ):
            predict(reviews)

    def test_translation_names_languages_and_how_to_write(self, server, predict, captions):
        found = predict(captions, generation=GenerationConfig(max_new_tokens=9, num_beams=3))
        assert found == [{"text": "EIN HUND"}, {"text": "ZWEI KATZEN"}, {"text": "DREI VÖGEL"}]
        assert server.asked(f"/v2/models/{MODEL}/infer")[0]["parameters"] == {
            **{"source_language": "de", "target_language": "en"},
            **{"max_new_tokens": 9, "num_beams": 3},
        }

    def test_what_the_data_leave_open_is_not_sent(self, server, predict, captions):
        predict(captions.model_copy(update={"source_language": None}))
        assert "source_language" not in server.asked(f"/v2/models/{MODEL}/infer")[0]["parameters"]

    def test_speech_is_sent_as_a_waveform_at_16_khz(self, server, predict, speech, tone):
        server.inputs = [{"name": "wave", "datatype": "FP32", "shape": [-1, -1]}]
        assert predict(speech) == [
            {"text": "8000 at 16000", "audio_s": 0.5},
            {"text": "4000 at 16000", "audio_s": 0.25},
        ]
        (asked, _) = server.asked(f"/v2/models/{MODEL}/infer")
        assert asked["parameters"] == {"sampling_rate": 16000}
        assert (asked["inputs"][0]["name"], asked["inputs"][0]["shape"]) == ("wave", [1, 8000])
        np.testing.assert_allclose(asked["inputs"][0]["data"], tone(0.5), atol=1e-4)

    def test_a_pair_becomes_the_cosine_of_its_embeddings(self, predict, pairs):
        first, second = predict(pairs)
        assert first == {"similarity": pytest.approx(1.0)}
        a, b = vector("an era"), vector("oo")
        assert second == {"similarity": pytest.approx(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))}

    @pytest.mark.parametrize(
        ("inputs", "name", "shape"),
        [
            ([], "text", [1]),
            ([("TEXT", "BYTES", [-1, 1])], "TEXT", [1, 1]),
            ([("ids", "INT64", [-1]), ("prompt", "BYTES", [-1])], "prompt", [1]),
            ([("hint", "BYTES", [-1]), ("text", "BYTES", [-1, 1])], "text", [1, 1]),
        ],
    )
    def test_the_input_is_named_and_shaped_as_the_metadata_say(
        self, server, predict, reviews, inputs, name, shape
    ):
        server.inputs = [dict(zip(("name", "datatype", "shape"), one, strict=True)) for one in inputs]
        predict(reviews, samples=1)
        (asked,) = server.asked(f"/v2/models/{MODEL}/infer")
        assert (asked["inputs"][0]["name"], asked["inputs"][0]["shape"]) == (name, shape)

    def test_a_model_that_does_not_tokenize_is_refused(self, server, predict, reviews):
        server.inputs = [{"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]}]
        with pytest.raises(PressoirError, match=r"takes input_ids INT64 .*needs a BYTES input"):
            predict(reviews)

    def test_metadata_may_be_missing(self, server, predict, reviews):
        server.paths[f"/v2/models/{MODEL}"] = 404, {"error": "no metadata here"}
        assert len(predict(reviews)) == 5

    def test_there_is_no_perplexity(self, predict, running_text):
        with pytest.raises(RecipeError, match="perplexity is not supported by KServe v2"):
            predict(running_text, "kserve-v2")


class TestOpenAI:
    def test_an_answer_becomes_a_label(self, server, predict, reviews):
        found = predict(reviews, "openai")
        assert [one["label"] for one in found] == labels_of(reviews)
        assert {one["answer"] for one in found} == {" Positive.\n", " NEGATIVE.\n"}
        asked = server.asked("/v1/chat/completions")[0]
        assert (asked["model"], asked["temperature"], asked["max_tokens"]) == (MODEL, 0, 32)
        assert asked["messages"][0]["content"].endswith("labels, and nothing else: negative, positive")
        assert asked["messages"][1] == {
            "role": "user",
            "content": datasets.load(reviews, 1).samples[0].input,
        }

    @pytest.mark.parametrize("said", ["neutral", "", None, "positive or negative", "not positive"])
    def test_an_answer_that_is_no_label_is_always_wrong(self, server, predict, reviews, said):
        server.paths["/v1/chat/completions"] = {"choices": [{"message": {"content": said}}]}
        assert predict(reviews, "openai", samples=1) == [{"label": -1, "logits": [], "answer": said or ""}]

    def test_translation_has_a_fixed_prompt(self, server, predict, captions):
        found = predict(captions, "openai", generation=GenerationConfig(max_new_tokens=9))
        assert found[0] == {"text": "EIN HUND"}
        assert server.asked("/v1/chat/completions")[0] == {
            "model": MODEL,
            "messages": [
                {
                    "role": "system",
                    "content": "Translate the user's text from de to en. Answer with the translation, and "
                    "nothing else.",
                },
                {"role": "user", "content": "ein Hund"},
            ],
            "temperature": 0,
            "max_tokens": 9,
        }

    @pytest.mark.parametrize(
        ("changed", "fields", "message"),
        [
            ({"target_language": None}, {}, "set target_language of the data set"),
            ({}, {"generation": GenerationConfig(num_beams=4)}, "num_beams is 4"),
        ],
    )
    def test_what_a_prompt_cannot_say_is_refused_at_once(
        self, server, predict, captions, changed, fields, message
    ):
        with pytest.raises(RecipeError, match=message):
            predict(captions.model_copy(update=changed), "openai", **fields)
        assert not server.asked("/v1/chat/completions")

    def test_a_file_of_sound_is_uploaded_as_it_is(self, server, predict, speech):
        speech = speech.model_copy(update={"source_language": "en"})
        content = (speech.manifest.parent / "a.wav").read_bytes()
        found = predict(speech, "openai")
        assert found[0] == {"text": f"{len(content)} bytes", "audio_s": 0.5}
        assert found[1]["audio_s"] == 0.25, "seconds do not depend on the file's sampling rate"
        asked = server.asked("/v1/audio/transcriptions")[0]
        assert asked.pop("file") == content
        assert asked.pop("type") in ("audio/wav", "audio/x-wav")
        assert asked == {
            **{"filename": "a.wav", "model": MODEL, "response_format": "json"},
            **{"temperature": "0", "language": "en"},
        }

    def test_embeddings_are_put_in_order_by_their_index(self, predict, pairs):
        a, b = vector("an era"), vector("oo")
        assert predict(pairs, "openai") == [
            {"similarity": pytest.approx(1.0)},
            {"similarity": pytest.approx(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))},
        ]

    def test_perplexity_is_of_the_servers_tokens_but_the_first(self, server, predict, running_text):
        first, *_ = predict(running_text, generation=GenerationConfig(window=16), samples=2)
        (asked, _) = server.asked("/v1/completions")
        count = len(asked["prompt"].split())
        assert first["tokens"] == count - 1
        assert first["nll"] == pytest.approx(sum(0.5 * (1 + i % 2) for i in range(count - 1)))
        assert asked == {
            **{"model": MODEL, "prompt": asked["prompt"], "temperature": 0},
            **{"echo": True, "logprobs": 1, "max_tokens": 0},
        }

    def test_a_token_that_is_written_all_the_same_is_not_scored(self, server, predict, running_text):
        def answer(body):
            scores = {"token_logprobs": [None, -1.0, -2.0, -4.0]}
            choice = {"text": body["prompt"] + " and", "logprobs": scores}
            return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}

        server.paths["/v1/completions"] = answer
        fields = {"generation": GenerationConfig(window=16), "samples": 1}
        assert predict(running_text, **fields) == [{"nll": 3.0, "tokens": 2}]

    @pytest.mark.parametrize(
        "choice",
        [
            {},
            {"logprobs": None},
            {"logprobs": {"token_logprobs": [-1.0]}},  # of the one token written
            {"logprobs": {"token_logprobs": [None, None, None]}},
            {"logprobs": {"token_logprobs": [None, -1.0, -1.0]}, "text": " and"},  # no echo
        ],
    )
    def test_a_server_that_does_not_score_prompts_is_refused(self, server, predict, running_text, choice):
        def answer(body):
            return {"choices": [{"text": body["prompt"], **choice}], "usage": {"prompt_tokens": 3}}

        server.paths["/v1/completions"] = answer
        with pytest.raises(PressoirError, match="does not return log-probabilities of prompt tokens"):
            predict(running_text, generation=GenerationConfig(window=16))

    def test_a_model_that_is_not_listed_is_missing(self, server, predict, reviews):
        server.paths["/v1/models"] = {"data": [{"id": "one"}, {"id": "two"}]}
        with pytest.raises(
            PressoirError, match=r"no model 'org/press'; available: one, two; set remote_model"
        ):
            predict(reviews, "openai")


class TestPieces:
    def test_a_text_is_cut_before_white_space_and_loses_only_its_end(self, make_job, running_text):
        job = make_job(running_text, generation=GenerationConfig(window=16), samples=None)
        data = datasets.load(running_text)
        pieces = samples_of(job, data)
        text = running_text.text.read_text()
        joined = "".join(piece.input for piece in pieces)
        assert text.startswith(joined)
        assert len(text) - len(joined) < 64
        assert all(50 < len(piece.input) <= 64 for piece in pieces)
        assert [piece.id for piece in pieces] == [f"prose:{i}" for i in range(len(pieces))]
        assert all(piece.input[0].isspace() for piece in pieces[1:]), "no word is cut"

    def test_no_more_pieces_than_samples_are_wanted(self, make_job, running_text):
        job = make_job(running_text, generation=GenerationConfig(window=16), samples=3)
        assert len(samples_of(job, datasets.load(running_text))) == 3

    def test_text_without_spaces_is_cut_all_the_same(self, make_job, running_text):
        running_text.text.write_text("語" * 130)
        job = make_job(running_text, generation=GenerationConfig(window=16))
        pieces = samples_of(job, datasets.load(running_text))
        assert [len(piece.input) for piece in pieces] == [64, 64]

    def test_a_text_shorter_than_a_piece_is_refused(self, make_job, running_text):
        running_text.text.write_text("short")
        with pytest.raises(DataError, match="'prose' has 5 characters, fewer than one window of 512"):
            samples_of(make_job(running_text), datasets.load(running_text))

    def test_samples_of_other_tasks_are_the_datas(self, make_job, pairs):
        data = datasets.load(pairs)
        assert samples_of(make_job(pairs), data) == data.samples


class TestWhichProtocol:
    def test_a_server_without_kserve_is_asked_in_openais_way(self, server, predict, reviews):
        server.paths["/v2/health/ready"] = 404, {"detail": "Not Found"}
        predict(reviews)
        assert len(server.asked("/v1/chat/completions")) == 5

    def test_a_last_version_in_the_url_is_no_part_of_the_address(self, server, predict, reviews):
        for end in ("/v1", "/v1/", "/v2", "/"):
            assert len(predict(reviews, url=server.url + end, samples=1)) == 1

    def test_perplexity_needs_openais(self, server, predict, running_text):
        server.paths["/v1/models"] = 404, {"detail": "Not Found"}
        with pytest.raises(PressoirError, match="Not Found; causal-lm uses the OpenAI protocol here"):
            predict(running_text)
        assert [path for _, path, *_ in server.seen] == ["/v1/models"]

    def test_a_server_of_another_kind_is_named_as_such(self, server, predict, reviews):
        server.paths |= {"/v2/health/ready": (404, b"?"), "/v1/models": (400, b"?")}
        with pytest.raises(
            PressoirError, match=r"neither KServe v2 nor the OpenAI .* HTTP 404 and .* HTTP 400"
        ):
            predict(reviews)


class TestReadiness:
    @pytest.mark.parametrize("path", ["/v2/health/ready", f"/v2/models/{MODEL}/ready"])
    @pytest.mark.parametrize("answer", [(400, {"error": "loading"}), {"ready": False}])
    def test_what_is_not_ready_is_unreachable(self, server, predict, reviews, path, answer):
        server.paths[path] = answer
        with pytest.raises(UnreachableError, match=r"is unreachable: it.* is not ready"):
            predict(reviews, "kserve-v2")

    def test_a_model_that_is_not_there_is_an_error(self, server, predict, reviews):
        server.paths[f"/v2/models/{MODEL}/ready"] = 404, {"error": "unknown model"}
        with pytest.raises(PressoirError, match=r"unknown model; check remote_model") as caught:
            predict(reviews)
        assert not isinstance(caught.value, UnreachableError)

    def test_503_is_asked_again_then_unreachable(self, server, predict, reviews, pauses):
        server.paths["/v2/health/ready"] = 503, {"error": "starting"}
        with pytest.raises(UnreachableError, match=r"HTTP 503: starting \(tried 4 times\); try again when"):
            predict(reviews)
        assert pauses == [0.5, 1.0, 2.0]


class TestOutOfReach:
    def test_nobody_listens(self, predict, reviews, pauses):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and does not listen
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(
                UnreachableError, match=rf"{url} is unreachable: .*check that the server is running"
            ):
                predict(reviews, url=url)
        assert len(pauses) == 3

    def test_a_name_that_nobody_has(self, predict, reviews, monkeypatch, pauses):
        def unknown(*_, **__):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(UnreachableError, match=r"Name or service not known.*check the host name in url"):
            predict(reviews, url="http://no.such.host")

    def test_a_server_without_tls(self, server, predict, reviews):
        url = server.url.replace("http:", "https:")
        with pytest.raises(UnreachableError, match=r"SSL.*whether url should start with http://"):
            predict(reviews, url=url)

    @pytest.mark.parametrize("fault", [hangs, drips])
    def test_an_answer_that_does_not_come_in_time(self, server, predict, reviews, fault):
        server.faults = [fault]
        with pytest.raises(
            UnreachableError, match=r"no complete response within 0\.3 s; .*request_timeout_s"
        ):
            predict(reviews, timeout_s=0.3)
        assert len(server.seen) == 1

    @pytest.mark.parametrize("fault", [dies, dies_within])
    def test_a_server_that_dies(self, server, predict, reviews, pauses, fault):
        server.faults = [None, fault]
        assert len(predict(reviews)) == 5, "once is forgiven"
        server.faults = [fault] * 9
        with pytest.raises(UnreachableError, match=r"\(tried 4 times\)"):
            predict(reviews)

    @pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
    def test_errors_that_pass_are_waited_for(self, server, predict, captions, pauses, code):
        server.faults = [None, None, None, None, status(code), status(code), status(code)]
        assert [one["text"] for one in predict(captions)] == ["EIN HUND", "ZWEI KATZEN", "DREI VÖGEL"]
        assert pauses == [0.5, 1.0, 2.0]

    def test_a_server_that_says_how_long_to_wait(self, server, predict, captions, pauses):
        date = email.utils.formatdate(time.time() + 15, usegmt=True)
        server.faults = [
            status(429, Retry_After=7),
            status(429, Retry_After=date),
            status(429, Retry_After="?"),
        ]
        predict(captions)
        assert pauses[0] == 7.0
        assert 0.5 < pauses[1] <= 15
        assert pauses[2] == 2.0

    def test_nobody_waits_longer_than_one_request_may_take(self, server, predict, captions, pauses):
        server.faults = [status(429, {"error": {"message": "slow down"}}, Retry_After=60)]
        with pytest.raises(UnreachableError, match="HTTP 429: slow down, and asked to wait 60 s; try again"):
            predict(captions)
        assert pauses == []


class TestWrongAnswers:
    @pytest.mark.parametrize("code", [400, 413, 422, 501])
    @pytest.mark.parametrize(
        "body",
        [{"error": "too long"}, {"error": {"message": "too long"}}, {"detail": "too long"}, b"too\n\x00long"],
    )
    def test_an_error_says_what_the_server_says(self, server, predict, reviews, code, body):
        server.paths[f"/v2/models/{MODEL}/infer"] = code, body
        with pytest.raises(PressoirError, match=rf"/infer returned HTTP {code}: too ?long") as caught:
            predict(reviews)
        assert not isinstance(caught.value, UnreachableError)
        assert len(server.asked(f"/v2/models/{MODEL}/infer")) == 1

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"<html>", "Invalid JSON"),
            (b"", "Invalid JSON"),
            (b"\xff\xfe", "Invalid JSON"),
            ([], "the body: Input should be an object"),
            ({"result": 1}, "outputs: Field required"),
            ({"outputs": [{"name": "x"}]}, r"outputs\.0\.datatype: Field required"),
            ({"outputs": []}, r"needs FP32 \(1, 2\), or BYTES \(1,\) with a label name, but got nothing"),
            ({"outputs": [tensor("p", "FP32", [1, 3], [1, 2, 3])]}, r"but got p FP32 \(1, 3\)"),
            ({"outputs": [tensor("p", "FP32", [1, 2], [1])]}, "numbers that match the shape"),
            ({"outputs": [tensor("p", "FP32", [1, 2], ["x", None])]}, "numbers that match the shape"),
            ({"outputs": [tensor("p", "FP32", [1, 2], [10**400, 1])]}, "numbers that match the shape"),
            ({"outputs": [tensor("l", "BYTES", [1], [1])]}, "JSON strings that match the shape"),
            ({"outputs": [tensor("l", "BYTES", [1], None)]}, "JSON strings that match the shape"),
        ],
    )
    def test_kserve_answers_that_are_none(self, server, predict, reviews, body, message):
        server.paths[f"/v2/models/{MODEL}/infer"] = body
        with pytest.raises(
            PressoirError, match=f"returned a response that does not match its protocol: .*{message}"
        ):
            predict(reviews)

    @pytest.mark.parametrize(
        ("task", "path", "body"),
        [
            ("reviews", "/v1/models", {"models": []}),
            ("reviews", "/v1/chat/completions", {"choices": []}),
            ("captions", "/v1/chat/completions", {"choices": [{"text": "x"}]}),
            ("speech", "/v1/audio/transcriptions", {"words": []}),
            ("pairs", "/v1/embeddings", {"data": [{"index": 0, "embedding": [1.0]}]}),
            (
                "pairs",
                "/v1/embeddings",
                {"data": [{"index": i, "embedding": [1.0] * (i + 1)} for i in (0, 1)]},
            ),
            ("pairs", "/v1/embeddings", {"data": [{"index": i, "embedding": []} for i in (0, 1)]}),
            ("pairs", "/v1/embeddings", {"data": [{"index": i, "embedding": ["x"]} for i in (0, 1)]}),
            ("running_text", "/v1/completions", {"choices": []}),
        ],
    )
    def test_openai_answers_that_are_none(self, server, predict, request, task, path, body):
        server.paths[path] = body
        with pytest.raises(
            PressoirError, match=f"{path} returned a response that does not match its protocol"
        ):
            predict(request.getfixturevalue(task), "openai", generation=GenerationConfig(window=16))

    def test_kserve_answers_without_a_text_or_embeddings(self, server, predict, captions, pairs):
        server.outputs = [tensor("x", "FP32", [2, 3, 4], [0.0] * 24)]
        with pytest.raises(PressoirError, match=r"needs BYTES \(1,\): the text, but got x FP32 \(2, 3, 4\)"):
            predict(captions)
        with pytest.raises(PressoirError, match=r"needs FP32 \(2, dimensions\), but got x FP32 \(2, 3, 4\)"):
            predict(pairs)

    def test_numbers_that_are_not_finite_are_refused(self, server, predict, reviews):
        server.paths[f"/v2/models/{MODEL}/infer"] = json.dumps(
            {"outputs": [tensor("p", "FP32", [1, 2], [math.nan, 1.0])]}
        ).encode()
        with pytest.raises(PressoirError, match="org/press returned values that are not finite"):
            predict(reviews)

    def test_an_answer_without_an_end_is_not_kept(self, server, predict, reviews, monkeypatch):
        monkeypatch.setattr(endpoint, "ANSWER_BYTES", 5000)
        server.paths[f"/v2/models/{MODEL}/infer"] = b" " * 6000
        with pytest.raises(PressoirError, match="more than 5000 bytes"):
            predict(reviews)


class TestKey:
    @pytest.fixture
    def key(self, server, monkeypatch):
        monkeypatch.setenv("PRESS_KEY", f"{KEY}\n")
        server.key = KEY

    def test_it_is_sent_with_every_request(self, server, key, predict, reviews):
        predict(reviews, api_key_env="PRESS_KEY")
        assert {headers["Authorization"] for _, _, headers, _ in server.seen} == {f"Bearer {KEY}"}

    @pytest.mark.parametrize("protocol", [None, "kserve-v2", "openai"])
    def test_without_one_a_closed_server_says_what_to_set(self, key, predict, reviews, protocol):
        with pytest.raises(RecipeError, match=r"denied access \(HTTP 401.*set api_key_env to the name of"):
            predict(reviews, protocol)

    @pytest.mark.parametrize("protocol", [None, "kserve-v2", "openai"])
    def test_a_wrong_one_names_its_variable_and_is_shown_nowhere(
        self, server, key, predict, reviews, protocol, caplog, capfd
    ):
        caplog.set_level(logging.DEBUG)
        server.key = "another"
        with pytest.raises(RecipeError, match=r"wrong key: Bearer \*\*\*.*variable PRESS_KEY") as caught:
            predict(reviews, protocol, api_key_env="PRESS_KEY")
        shown = f"{caught.value!r} {caplog.text} {''.join(capfd.readouterr())}"
        assert KEY not in shown

    def test_403_later_is_about_the_key_too(self, server, key, predict, reviews):
        server.paths[f"/v2/models/{MODEL}/infer"] = 403, {"error": "expired"}
        with pytest.raises(RecipeError, match=r"HTTP 403: expired\); check the API key in .* PRESS_KEY"):
            predict(reviews, api_key_env="PRESS_KEY")

    @pytest.mark.parametrize("value", ["", "two words", "clé", "a\nb"])
    def test_one_that_cannot_be_sent_is_refused_unseen(self, predict, reviews, monkeypatch, value):
        monkeypatch.setenv("PRESS_KEY", value)
        with pytest.raises(RecipeError, match=r"variable PRESS_KEY \(api_key_env\)") as caught:
            predict(reviews, api_key_env="PRESS_KEY")
        assert not value or value not in str(caught.value)

    @pytest.mark.parametrize("code", [301, 302, 307, 308])
    def test_it_follows_no_redirect(self, server, key, predict, reviews, code):
        with running() as other:
            server.faults = [None, None, None, None, status(code, Location=f"{other.url}/x?token=1")]
            with pytest.raises(RecipeError, match=rf"redirects to {other.url}/x, which is not followed"):
                predict(reviews, api_key_env="PRESS_KEY")
            assert other.seen == []

    @pytest.mark.parametrize(
        "url", ["http://me:pass@127.0.0.1:1", "http://127.0.0.1:1?key=pass", "http://127.0.0.1:1/#pass"]
    )
    def test_an_address_with_a_secret_in_it_is_refused(self, predict, reviews, url):
        with pytest.raises(RecipeError, match="api_key_env") as caught:
            predict(reviews, url=url)
        assert "pass@" not in str(caught.value)
        assert "=pass" not in str(caught.value)

    @pytest.mark.parametrize("url", ["http://", "http://h:port", "http://h:99999", "ftp://h", "http://[::1"])
    def test_an_address_that_is_none_is_refused(self, predict, reviews, url):
        with pytest.raises(RecipeError, match="expected http://host:port"):
            predict(reviews, url=url)


class TestWholeRun:
    def run(self, job):
        told = []
        end = child.run(job, told.append)
        journal = Journal(job.journal)
        found = {one.sample: one for one in journal.predictions(job.key)}
        journal.close()
        return end, told, found

    def test_a_child_commits_what_the_server_says(self, server, make_job, reviews):
        end, told, found = self.run(make_job(reviews))
        assert (end.verdict, end.detail) == ("ok", "")
        assert [found[str(i)].value["label"] for i in range(5)] == labels_of(reviews)
        assert end.batch_size == 1
        assert {one.batch_size for one in found.values()} == {1}
        assert [message.event for message in told] == ["progress", "loaded", *["progress"] * 3]

    def test_a_server_that_goes_away_leaves_what_was_done_and_is_asked_for_the_rest_only(
        self, server, make_job, captions, pauses
    ):
        job = make_job(captions, batch_size=1)
        server.faults = [None] * 6 + [status(503)] * 4  # two health checks, model, metadata, two samples
        end, _, found = self.run(job)
        assert (end.verdict, len(found)) == ("unreachable", 2)
        assert f"{server.url} is unreachable" in end.detail
        end, _, found = self.run(job)
        assert (end.verdict, len(found)) == ("ok", 3)
        assert len(server.asked(f"/v2/models/{MODEL}/infer")) == 2 + 4 + 1

    def test_a_model_that_is_missing_is_no_unreachable_server(self, server, make_job, reviews):
        server.paths["/v1/models"] = {"data": []}
        end, _, _ = self.run(make_job(reviews, "openai"))
        assert end.verdict == "exception"
        assert "no model 'org/press'; available: none" in end.detail

    @pytest.mark.process
    def test_a_supervised_child_tells_an_answer_from_a_closed_port(
        self, server, make_job, captions, tmp_path
    ):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            jobs = {
                "open": make_job(captions, "openai", model="open", key="open"),
                "closed": make_job(
                    captions,
                    model="closed",
                    key="closed",
                    url=f"http://127.0.0.1:{taken.getsockname()[1]}",
                ),
            }
            estimates = {
                name: Estimate(model=name, fixed_bytes=500 * 10**6, per_sample_bytes=0, origin="config")
                for name in jobs
            }
            planned = plan(list(estimates.values()), dict.fromkeys(jobs, 4), 4 * 10**9, 2)
            limits = SupervisorLimits(threads=2, timeout_s=120.0)
            outcomes = run_plan(planned, jobs, estimates, limits, available=lambda: 10**11)
            found = {outcome.model: outcome for outcome in outcomes}
        assert (found["open"].verdict, found["open"].detail) == ("ok", "")
        assert (found["open"].samples, found["open"].runtime) == (3, "remote")
        assert found["closed"].verdict == "unreachable"
        assert "is unreachable: " in found["closed"].detail
        assert "check that the server is running" in found["closed"].detail
        journal = Journal(tmp_path / "j.sqlite")
        texts = {one.sample: one.value for one in journal.predictions("open")}
        journal.close()
        assert texts == {"0": {"text": "EIN HUND"}, "1": {"text": "ZWEI KATZEN"}, "2": {"text": "DREI VÖGEL"}}
