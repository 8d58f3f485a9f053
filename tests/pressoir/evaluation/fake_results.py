"""Results of an evaluation that never ran: every task, and every way to end."""

import json
from datetime import UTC, datetime, timedelta

from pressoir.evaluation import memory_log
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.journal import Prediction
from pressoir.evaluation.planner import Batch, EvaluationPlan, Placement, Skipped
from pressoir.evaluation.records import EvaluationSample, RunOutcome
from pressoir.evaluation.report import scoring
from pressoir.evaluation.report.results import EvaluationOutcome

GB = 10**9
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def samples(count, reference, question="what?", name="{}"):
    return tuple(
        EvaluationSample(id=name.format(i), input=question, reference=reference(i), length=10)
        for i in range(count)
    )


DATA = {
    "reviews": DataSet("text-classification", samples(20, lambda i: i % 2), "a", ("negative", "positive")),
    "digits": DataSet(
        "automatic-speech-recognition", samples(4, lambda _: "one two three", "/machine/a.wav", "{}.wav"), "b"
    ),
    "captions": DataSet("translation", samples(4, lambda i: f"a dog runs over the grass {i}"), "c"),
    "texts": DataSet(
        "causal-lm",
        tuple(EvaluationSample(id=name, input="…", reference=None, length=1) for name in ("wiki", "news")),
        "d",
    ),
    "pairs": DataSet("feature-extraction", samples(6, lambda i: i / 5, ["one", "other"]), "e"),
}


def values(data, noise=0.0):
    """Raw predictions by sample id; `noise` in bits that must not matter."""
    if data.task == "causal-lm":
        return {
            f"{text}:{i}": {"nll": (300.0 + i) * (1 + noise), "tokens": 127}
            for text in ("wiki", "news")
            for i in range(11)
        }
    make = {
        "text-classification": lambda i, one: {
            "label": one.reference if i else 1,
            "logits": [0.1234564 * (1 + noise), -0.2],
        },
        "automatic-speech-recognition": lambda i, one: {"text": "one two", "audio_s": 2.5},
        "translation": lambda i, one: {"text": f"a dog runs over the grass {i}"},
        "feature-extraction": lambda i, one: {"similarity": one.reference**2},
    }[data.task]
    return {one.id: make(i, one) for i, one in enumerate(data.samples)}


def make_result(
    run_id,
    data_name,
    verdict="ok",
    *,
    part=1.0,
    detail="",
    seconds=0.01,
    noise=0.0,
    peaks=(1.0, 1.2),
    **outcome,
):
    """A run on one of `DATA`, of whose samples `part` were predicted; `peaks` measured and predicted, GB."""
    data = DATA[data_name]
    raw = list(values(data, noise).items())
    raw = raw[: round(part * len(raw))]
    score = scoring.score(data, dict(raw))
    measured, predicted = peaks
    fields = {
        "model": run_id,
        "task": data.task,
        "runtime": "pytorch",
        "verdict": verdict,
        "detail": detail,
        "samples": len(raw),
        "total": 22 if data.task == "causal-lm" else len(data.samples),
        "batch_size": 4,
        "predicted_peak_bytes": round(predicted * GB) if predicted else None,
        "measured_peak_bytes": round(measured * GB) if measured else None,
        "load_s": 1.5,
        "metrics": score.metrics,
        "notes": score.notes,
    }
    return EvaluationOutcome(
        run_id=run_id,
        model=run_id.partition(".")[0],
        data_name=data_name,
        data=data,
        outcome=RunOutcome(**fields | outcome),
        predictions=[Prediction(sample, value, seconds, 4) for sample, value in raw],
        score=score,
    )


RESULTS = (
    make_result("teacher", "reviews"),
    make_result("student", "reviews", runtime="onnxruntime", seconds=0.002, peaks=(0.5, 0.4)),
    make_result("whisper", "digits", seconds=0.5),
    make_result(
        "away", "digits", "unreachable", part=0, detail="no answer", runtime="remote", peaks=(None, 0.1)
    ),
    make_result("marian", "captions"),
    make_result("slow", "captions", "timeout", part=0.5, detail="stopped after 60 s"),
    make_result("gpt2.texts", "texts"),
    make_result(
        "broken", "texts", "damaged", part=0, detail="header | too short", runtime=None, peaks=(None, 0.8)
    ),
    make_result("huge", "texts", "skipped_memory", part=0, peaks=(None, 40.0), batch_size=None),
    make_result(
        "raises",
        "texts",
        "exception",
        part=0,
        detail="Traceback:\n" + "".join(f"  line {i}\n" for i in range(9)) + "ValueError: the last word",
    ),
    make_result("minilm", "pairs"),
)
PLAN = EvaluationPlan(
    budget_bytes=3 * GB,
    batches=(
        Batch(
            name="large",
            placements=(
                Placement(model="teacher", batch_size=8, peak_bytes=2 * GB),
                Placement(model="student", batch_size=4, peak_bytes=GB // 2),
            ),
        ),
        Batch(name="batch-1", placements=(Placement(model="minilm", batch_size=8, peak_bytes=GB),)),
    ),
    skipped=(Skipped(model="huge", peak_bytes=40 * GB, budget_bytes=3 * GB),),
)
CONTEXT = {
    "name": "demo",
    "strategy": "moderate",
    "budget_bytes": 3 * GB,
    "limit_source": "/sys/fs/cgroup/memory.max",
    "threads": 2,
    "versions": {"torch": "2.13.0"},
}


def moment(second):
    return (START + timedelta(seconds=second)).isoformat(timespec="milliseconds")


def session_line(second, **fields):
    line = {"interval_s": 1.0, "alert_percent": 85.0, "limit_gb": 4.0, "limit_source": "machine"}
    return {"kind": "session", "recorded_at": moment(second), **line, **fields}


def sample_line(second, children=None, ram_percent=50.0, **fields):
    children = {label: round(size * GB) for label, size in (children or {}).items()}
    return {
        "kind": "sample",
        "recorded_at": moment(second),
        "ram_percent": ram_percent,
        "ram_used_gb": 4 * ram_percent / 100,
        "swap_gb": 0.0,
        "children": children,
        "alerts": [f"RAM {ram_percent} %"] if ram_percent > 85 else [],
        **fields,
    }


def batch_line(second, name):
    return {"kind": "batch", "recorded_at": moment(second), "name": name}


def end_line(second):
    return {"kind": "end", "recorded_at": moment(second)}


LINES = (
    session_line(0),
    batch_line(0.5, "large"),
    sample_line(1, {"teacher": 1.0}),
    sample_line(2, {"teacher": 1.1, "student": 0.5}, 90.0),
    sample_line(3, {"student": 0.4}, 95.0),
    batch_line(4, "batch-1"),
    sample_line(5, {"minilm": 0.9}),
    end_line(6),
)


def write_log(folder, lines=LINES):
    """The stats of a run's folder whose log has these lines."""
    (folder / memory_log.SAMPLES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return memory_log.stats(folder)


def hostile_results(texts):
    """Runs whose data, labels, predictions and reasons are these texts, and one sample that failed."""
    outcomes = []
    for task, answer in (
        ("translation", lambda i: {"text": f"no {texts[i]}"}),
        ("automatic-speech-recognition", lambda i: {"text": f"no {texts[i]}", "audio_s": 1.0}),
        ("text-classification", lambda i: {"label": 1 - i % 2, "logits": [0.1, 0.2]}),
    ):
        classes = task == "text-classification"
        asked = tuple(
            EvaluationSample(id=str(i), input=text, reference=i % 2 if classes else text, length=1)
            for i, text in enumerate((*texts, texts[0]))
        )
        data = DataSet(task, asked, "f", tuple(texts[:2]) if classes else ())
        raw = {str(i): answer(i) for i in range(len(texts))}
        found = scoring.score(data, raw)
        ended = RunOutcome(model=task, verdict="ok", detail=" ".join(texts), metrics=found.metrics)
        predictions = [Prediction(sample, value, 0.01, 1) for sample, value in raw.items()]
        outcomes.append(EvaluationOutcome(task, task, "data", data, ended, predictions, found))
    return outcomes
