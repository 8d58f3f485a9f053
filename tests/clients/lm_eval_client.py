"""lm-evaluation-harness against a server.

`python tests/clients/lm_eval_client.py http://127.0.0.1:5001 TIER FOLDER`: `FOLDER` is the tier's model, from
which the same scores are computed with transformers alone. Environment of its own: `pip install
"lm-eval[api]" "transformers<5" torch`. Nothing is downloaded: the tasks are files that this script writes. A
score that differs ends it with a status other than 0.
"""

import json
import math
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

CONTEXTS = ("The film was", "The king of the", "He was born in the", "In the first half of the", "It is the")
CHOICES = ("first of the year", "good", "world and the city", "1990s", "of the same name")
TEXTS = (
    "The film was released in the United States .",
    "He was the king of the country , and the city fell .",
)
TASKS = {
    "local_choices": """
        output_type: multiple_choice
        doc_to_text: "{{context}}"
        doc_to_choice: "{{choices}}"
        doc_to_target: gold
        target_delimiter: " "
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "local_text": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
    """,
}


class Local:
    """Log-likelihoods of transformers' own."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def ids(self, text: str) -> list[int]:
        """Of a text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def likelihood(self, before: list[int], ids: list[int]) -> float:
        """Log-probability of `ids` after `before`, nats."""
        with torch.inference_mode():
            scores = self.model(torch.tensor([before + ids])).logits[0].double().log_softmax(-1)
        return sum(scores[len(before) + place - 1, id].item() for place, id in enumerate(ids))


def rows() -> list[dict]:
    """The multiple-choice task."""
    return [
        {"context": text, "choices": list(CHOICES), "gold": place}
        for place, text in enumerate(CONTEXTS * 2)
        if place < len(CHOICES)
    ]


def expected(local: Local) -> dict[str, float]:
    """The scores of both tasks."""
    right = right_norm = 0
    for row in rows():
        before = local.ids(row["context"])
        scores = [
            local.likelihood(before, local.ids(f"{row['context']} {choice}")[len(before) :])
            for choice in CHOICES
        ]
        by_length = [score / len(choice) for score, choice in zip(scores, CHOICES, strict=True)]
        right += scores.index(max(scores)) == row["gold"]
        right_norm += by_length.index(max(by_length)) == row["gold"]
    start = [local.tokenizer.bos_token_id]
    total = sum(local.likelihood(start, local.ids(text)) for text in TEXTS)
    return {
        "acc": right / len(CHOICES),
        "acc_norm": right_norm / len(CHOICES),
        "word_perplexity": math.exp(-total / sum(len(text.split()) for text in TEXTS)),
        "bits_per_byte": -total / sum(len(text.encode()) for text in TEXTS) / math.log(2),
    }


def main(url: str, model: str, folder: str) -> None:
    """Evaluate, and compare."""
    with tempfile.TemporaryDirectory() as name:
        contents = {"local_choices": rows(), "local_text": [{"text": text} for text in TEXTS]}
        for task, content in contents.items():
            data = Path(name, f"{task}.jsonl")
            data.write_text("".join(json.dumps(row) + "\n" for row in content))
            head = f"""
        task: {task}
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {name}}}
        test_split: test"""
            Path(name, f"{task}.yaml").write_text(head + TASKS[task])
        result = simple_evaluate(
            model="local-completions",
            model_args={
                "base_url": f"{url}/v1/completions",
                "model": model,
                "tokenizer": folder,
                "tokenizer_backend": "huggingface",
                "max_length": 256,
                "num_concurrent": 1,
            },
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=name, include_defaults=False),
            batch_size=4,
        )
    found = {
        key.partition(",")[0]: value for task in result["results"].values() for key, value in task.items()
    }
    for metric, value in expected(Local(folder)).items():
        print(f"{metric}: lm-eval {found[metric]:.6f}, transformers {value:.6f}")
        assert math.isclose(found[metric], value, rel_tol=1e-4), metric


if __name__ == "__main__":
    main(*sys.argv[1:])
