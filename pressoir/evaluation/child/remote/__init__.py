"""Models on a server, asked over HTTP: raw predictions as `pressoir.evaluation.child.predictors` gives them.

**Why.** What a server answers is what its users get; and a model that is served can be compared with those
on this machine, on the same data and by the same metrics.

**What.** Two protocols. Where none is named, the server is asked: KServe v2 if it is healthy by that, else
OpenAI. Perplexity is OpenAI's alone.

====================  =====================================  =========================================
                      KServe v2                              OpenAI
====================  =====================================  =========================================
health, model         `/v2/health/ready`,                    `/v1/models` lists it
                      `/v2/models/{m}/ready`,
                      `/v2/models/{m}`
text-classification   BYTES (1,) → FP32 (1, labels) in the   `/v1/chat/completions`, `openai.CLASSIFY`
                      data's order, or BYTES label name
speech recognition    FP32 (1, samples) with                 `/v1/audio/transcriptions`: the file
                      `sampling_rate`, `language` → BYTES
translation           BYTES (1,) with `source_language`,     `/v1/chat/completions`, `openai.TRANSLATE`
                      `target_language`,
                      `max_new_tokens`, `num_beams` → BYTES
feature-extraction    BYTES (2,) → FP32 (2, dimensions)      `/v1/embeddings`
causal-lm             —                                      `/v1/completions` with `echo`, `logprobs`
====================  =====================================  =========================================

A KServe input has the name and the rank that the model's metadata give the first of its datatype (rather
`text` or `audio`, which it has where they give none). What the data or the protocol leave open is not sent.

Where KServe names a label, that counts, and values beside it are kept as `logits` only if they agree; else
`logits` is empty. It is empty, too, where a chat model classifies: there, an answer that is no label is label
−1, which is always wrong, and `answer` keeps what was said. A refusal (`content: null`) is an empty text.

Perplexity is per token of the server's tokenizer, which is not here: texts are cut by characters, see
`samples_of`. It compares with that of models that have the same tokenizer alone, and roughly, for windows
differ. A piece's first token, which nothing precedes, is not scored.

**Cost.** One sample a request, one request at a time: how a server batches is its own affair, and may change
what it answers. The seconds of a prediction are latency, with the network and retries.

**Failures.** See `endpoint`. A server that is not ready, or stays out of reach, is an `UnreachableError`,
after which a resumed run goes on where it was; anything else says what to change.

**Sources.** https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md);
https://github.com/openai/openai-openapi.
"""

from __future__ import annotations

from pressoir.errors import DataError, PressoirError, RecipeError
from pressoir.evaluation.child.predictors import BatchPredictor
from pressoir.evaluation.child.remote.endpoint import Endpoint
from pressoir.evaluation.child.remote.kserve import KServe
from pressoir.evaluation.child.remote.openai import OpenAI
from pressoir.evaluation.config import Protocol
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.records import EvaluationSample
from pressoir.extensions.task import task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.problems import SINGLE_LABEL

CHARACTERS_A_TOKEN = 4
"""A window of perplexity is cut to so many characters for each of its tokens: about right for English."""


def samples_of(job: Job, data: DataSet) -> tuple[EvaluationSample, ...]:
    """The data's samples; of a causal LM, pieces of its texts.

    A piece has at most `CHARACTERS_A_TOKEN` × `generation.window` characters, and ends before white space
    where it has some. Pieces do not overlap, and only what is shorter at a text's end is left out. The id of
    a piece is `<text>:<index>`, its input what it says.

    Raises:
        DataError: a text is shorter than a piece.
    """
    if not task(job.task).windows:
        return data.samples
    size = CHARACTERS_A_TOKEN * job.generation.window
    found: list[EvaluationSample] = []
    for sample in data.samples:
        if len(found) == job.samples:
            break
        if len(sample.input) < size:
            raise DataError(
                f"the text {sample.id!r} has {len(sample.input)} characters, fewer than one window of "
                f"{size}; use a longer text or a smaller generation.window"
            )
        start, index = 0, 0
        while len(sample.input) - start >= size and len(found) != job.samples:
            end = _cut(sample.input, start, start + size)
            piece = sample.input[start:end]
            found.append(
                EvaluationSample(id=f"{sample.id}:{index}", input=piece, reference=None, length=len(piece))
            )
            start, index = end, index + 1
    return tuple(found)


def open_remote_predictor(job: Job, data: DataSet) -> BatchPredictor:
    """Ask a job's server for its health and its model.

    Raises:
        UnreachableError: there is no server, it does not answer in time, or it is not ready.
        RecipeError: address, key or settings are such that no request can be made.
        PressoirError: the server lacks the model, or does not answer as its protocol says.
    """
    if job.remote is None:
        raise RecipeError(f"{job.model} is not a remote model; specify its url")
    if data.problem != SINGLE_LABEL.name:
        raise RecipeError(
            f"{job.model}: {data.problem} models on a server are not evaluated; specify `model`, its folder"
        )
    server = Endpoint(job.remote)
    protocol = job.remote.protocol or _protocol(server, job.task)
    kind: type[KServe | OpenAI] = KServe if protocol == "kserve-v2" else OpenAI
    model = kind(server, job.remote, job, data)
    model.check()
    return model


def _protocol(server: Endpoint, name: TaskName) -> Protocol:
    """What a server speaks that has the task."""
    if len(protocols := task(name).protocols) == 1:
        return protocols[0]
    paths: dict[str, Protocol] = {"/v2/health/ready": "kserve-v2", "/v1/models": "openai"}
    answers = {}
    for path, protocol in paths.items():
        answers[path] = server.get(path)
        if answers[path].ok:
            return protocol
    for path, answer in answers.items():
        if answer.status in (401, 403):
            raise server.refused(path, answer)
    found = " and ".join(f"{path} returned HTTP {answer.status}" for path, answer in answers.items())
    raise PressoirError(
        f"{server.url} supports neither KServe v2 nor the OpenAI protocol: {found}; check url"
    )


def _cut(text: str, start: int, end: int) -> int:
    """The last position up to `end` that is before white space; `end` where there is none after `start`."""
    for position in range(end, start, -1):
        if position == len(text) or text[position].isspace():
            return position
    return end
