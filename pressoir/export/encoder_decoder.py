"""Write a translation or speech model as ONNX graphs, in float32 or int8, and prove what they compute.

**What.** M2M100 and NLLB, mBART, Marian, T5 (translation), BART, Pegasus (summaries) and Whisper (speech)
become an encoder and one decoder with a cache; wav2vec2 and its kin with a CTC head become one graph
(`pressoir.export.encoder_decoder_graph`).
With `int8`, linear layers, token embeddings and the head are stored as int8 codes, a scale an output channel
or token; activations are quantised as they come, per tensor. Convolutions, norms, biases, position tables and
a CTC head stay float32.

**Why.** ONNX Runtime decodes without the overhead of PyTorch's modules, needs no PyTorch, and has integer
kernels; most of a small translation model is its vocabulary, which shrinks to a quarter.

**Cost.** Seconds to minutes. Parity is a gate (`pressoir.export.encoder_decoder_parity`): transformers'
`generate` decodes a few inputs greedily; then both runtimes are given those tokens, and each next token's
logits are compared. Float32: max |Δlogit| within `max_logit_difference`, and the graphs' own greedy decoding,
in one padded batch, and their beams must give the same tokens under the model's generation settings (two
tokens whose logits are that close may change places). Int8: PyTorch's float32 model and the graphs must
agree on the best next token in at least `min_label_agreement` of the positions where float32's best is 1.5
times as probable as its second; agreement in all positions is reported. Inputs are the embedded reviews for
text, and tones and noise for sound: no speech is shipped.

**Sources.** Optimum's exporter, https://huggingface.co/docs/optimum-onnx; int8 as in `stages.quantize`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pressoir.errors import SourceError
from pressoir.export import encoder_decoder_graph, int8_graph
from pressoir.export.encoder_decoder_parity import check_parity
from pressoir.export.graph import operator_counts
from pressoir.export.tracing import REPORT
from pressoir.extensions.task import task
from pressoir.formats.folder import QUANTIZATION, check_not_quantized, is_ctc, task_of
from pressoir.formats.supported import check_exportable
from pressoir.inference.tokenizers.encoder_decoder import TOKENIZER, PythonSeq2SeqTokenizer, open_vocabulary
from pressoir.models import loading
from pressoir.recipe.sections import ExportConfig
from pressoir.stage import StageContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATION = "generation_config.json"
SETTINGS = (
    *("config.json", GENERATION, "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "normalizer.json", "*.spm", "*.model"),
)


def run(
    inputs: Mapping[str, Path], config: ExportConfig, context: StageContext, int8: bool = False
) -> dict[str, float]:
    """Export `inputs["model"]`, a plain float checkpoint.

    Raises:
        ParityError: the graphs do not compute what the checkpoint computes, or optimum cannot make them.
        SourceError: the model does not load, or is for another task. QuantizationError: it is quantised
        already.
    """
    source, out, tell = inputs["model"], context.out_dir, context.reporter.message
    check_exportable(source)
    declared, ctc = task(task_of(source)), is_ctc(source)
    if declared.export != f"{__name__}:run":
        raise SourceError(
            f"{source} is a model for {declared.name}, not for translation or speech recognition"
        )
    check_not_quantized(source)
    model = loading.load_ctc(source) if ctc else loading.load_encoder_decoder(source)
    original = sum(parameter.nbytes for parameter in model.parameters())
    graph_layers = encoder_decoder_graph.layers(model)
    packed, errors = encoder_decoder_graph.quantize(graph_layers) if int8 else ({}, {})
    tell("tracing the float32 model")
    graphs = encoder_decoder_graph.trace(model, config.opset, context.work_dir, config.fuse)
    _copy_settings(source, out, model)
    del model
    for name, layers in packed.items():
        int8_graph.lower_to_int8(graphs[name], layers)
    size = encoder_decoder_graph.save(graphs, out)
    if int8:
        description = {
            "format_version": 1,
            "scheme": "int8",
            "activations": "dynamic",
            "layers": {
                name: {
                    "kind": layer.kind,
                    "bits": 8,
                    "shape": list(layer.codes.shape),
                    "granularity": "output channel" if layer.kind == "linear" else "row",
                    "relative_error": errors[name],
                    "graph": graph,
                }
                for graph, layers in packed.items()
                for name, layer in layers.items()
            },
            "excluded": {"lm_head": "the head of a CTC model is small"} if ctc else {},
            "original_bytes": original,
            "new_bytes": size,
        }
        (out / QUANTIZATION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    parity = check_parity(source, out, config, context, int8)
    report = {
        "opset": config.opset,
        "operators": {name: operator_counts(graph) for name, graph in graphs.items()},
        "parity": parity,
        "graph_bytes": size,
        "original_bytes": original,
    }
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    tell(
        f"parity at {parity['parity_positions']:.0f} positions: max |Δlogit| "
        f"{parity['max_logit_difference']:.2g}, same token {parity['token_agreement']:.4f} "
        f"({parity['decided_token_agreement']:.4f} where decided); {original / 1e6:.1f} → "
        f"{size / 1e6:.1f} MB"
    )
    return {**parity, "graph_mb": size / 1e6, "size_ratio": original / size}


def _copy_settings(source: Path, out: Path, model: PreTrainedModel) -> None:
    """Everything beside the weights that opening the graphs needs."""
    for name in SETTINGS:
        for path in source.glob(name):
            shutil.copyfile(path, out / path.name)
    if is_ctc(source):
        return
    if model.generation_config is not None and not (out / GENERATION).exists():
        model.generation_config.save_pretrained(out)  # with what its class adds to config.json
    if not ((out / TOKENIZER).exists() and task(task_of(source)).sound):  # of which only decoding is used
        copy_tokenizer(source, out)


def copy_tokenizer(source: Path, out: Path) -> None:
    """Write the tokenizer's files as transformers saves them, in today's names and layout, where `out` has no
    `tokenizer.json`, or one that frames texts otherwise than transformers does."""
    original = PythonSeq2SeqTokenizer(source)
    if not (out / TOKENIZER).exists() or open_vocabulary(out).frame() != original.frame():
        original.save(out)
