"""PyTorch's own dynamic int8, as a contender of `benchmarks/peers.py`: made, opened, and probed.

Linear layers get int8 weights, a scale for each output channel, and activations that are quantised as they
come; embedding tables get 8 bits, a scale for each row (`quantize_dynamic`). The model is then traced, so
that it runs without transformers, and saved as TorchScript, which holds the packed weights.

    python benchmarks/peers_torch.py FOLDER --threads 2 --text "a fine film"    # what one cold start costs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark.probe import Probe, run_child
from pressoir.formats.folder import Runtime, read_json
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.tokenizers.tokenizers import FastTokenizer
from pressoir.models.layouts import accepted_inputs
from pressoir.system.memory import peak_rss_mb, rss_mb
from pressoir.system.runtime import use_threads

if TYPE_CHECKING:
    import torch

MODEL, INPUTS = "model.pt", "inputs.json"


class TorchScriptEngine:
    """A traced module on the CPU, under `inference_mode`."""

    runtime: Runtime = "pytorch"
    batch_invariant = False
    """Activations are quantised by one scale for the whole batch."""

    def __init__(self, file: Path) -> None:
        import torch

        inputs = {INPUTS: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript as a whole is deprecated
            self.module: Any = torch.jit.load(file, _extra_files=inputs).eval()
        self._inputs = json.loads(inputs[INPUTS])

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """See `pressoir.inference.engines.classifier.Engine.run`."""
        import torch

        tensors = [torch.from_numpy(inputs[name]) for name in self._inputs]
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.module(*tensors).numpy()
        return logits


def make(teacher: Path, out: Path) -> None:
    """Quantise the classifier in `teacher`, and write it as `model.pt` into `out`."""
    import torch
    from torch import nn

    from pressoir.models.loading import load_classifier

    model = load_classifier(teacher)
    tokens = FastTokenizer(teacher)(["two sentences,", "of which the other is the longer one"])
    names = [name for name in tokens if name in accepted_inputs(model)]

    class Logits(nn.Module):
        """The model as a function of tensors alone."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            """Logits (batch, labels)."""
            logits: torch.Tensor = self.model(**dict(zip(names, tensors, strict=True))).logits
            return logits

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # both are deprecated; PyTorch 2.13 still has them
        from torch.ao import quantization

        layers = {
            nn.Linear: quantization.per_channel_dynamic_qconfig,
            nn.Embedding: quantization.float_qparams_weight_only_qconfig,
        }
        quantised = quantization.quantize_dynamic(model, layers)
        example = tuple(torch.from_numpy(tokens[name]) for name in names)
        traced = torch.jit.trace(Logits(quantised).eval(), example)
        torch.jit.save(traced, out / MODEL, _extra_files={INPUTS: json.dumps(names)})


def open_classifier(folder: Path) -> TextClassifier:
    """The model that `make` wrote, with the tokenizer and the labels beside it."""
    id2label = read_json(folder / "config.json")["id2label"]
    labels = [id2label[index] for index in sorted(id2label, key=int)]
    return TextClassifier(TorchScriptEngine(folder / MODEL), FastTokenizer(folder), labels)


def probe(folder: Path, threads: int, text: str) -> Probe:
    """What opening it in a fresh process costs, as `pressoir.benchmark.probe` measures it of a model folder.

    Raises:
        PressoirError: the child failed; its last line is in the message.
    """
    command = [sys.executable, __file__, str(folder.absolute()), f"--threads={threads}", f"--text={text}"]
    return run_child(command, threads, f"{folder} in PyTorch int8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The child: load, run the model once, print a `Probe` as one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--text", required=True)
    options = parser.parse_args(arguments)

    start = time.perf_counter()
    import tokenizers  # noqa: F401 -- imports are timed apart from loading
    import torch  # noqa: F401

    use_threads(options.threads)
    import_s, baseline = time.perf_counter() - start, rss_mb()
    start = time.perf_counter()
    classifier = open_classifier(options.folder)
    load_s = time.perf_counter() - start
    classifier.predict([options.text])
    found = Probe(import_s=import_s, load_s=load_s, baseline_rss_mb=baseline, peak_rss_mb=peak_rss_mb())
    print(found.model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
