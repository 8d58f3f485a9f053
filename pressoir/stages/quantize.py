"""Store weights in int8: one symmetric scale an output channel, one a row of each embedding table.

**What.** A weight row w becomes codes round(w / s) in −127…127 with s = max|w| / 127. The codes and the
scales are what the file holds, see `pressoir.formats.int8_checkpoint`; biases, norms and excluded modules
stay float32. Activations are quantised while the model runs, per tensor, to uint8 (dynamic). With
`embeddings: q4` the word pieces' table has two codes a byte and a scale a block, see
`pressoir.quantization.symmetric`: half the bytes at about ten times the rounding error.

**Why.** A quarter of the bytes, and integer matrix products, which CPUs with VNNI run several times faster
than float ones. Per-channel scales keep a channel of small weights from being rounded away by a neighbour
with large ones.

**Cost.** Seconds, plus two passes over the validation split. An activation's scale depends on the whole
batch, so int8 models are scored one sentence at a time. Where validation accuracy drops by more than
`max_accuracy_drop`, the layers are ranked by how far each one alone moves the model's output (mean KL
divergence), and the most sensitive go back to float32 (a 4-bit table to int8) until the limit holds.

**Sources.** Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018, arXiv:1712.05877; activations follow ONNX `DynamicQuantizeLinear`,
https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html; ranking layers by KL divergence: Cai et al.,
ZeroQ, CVPR 2020, arXiv:2001.00281.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.extensions.task import task
from pressoir.quantization.provenance import key_extras
from pressoir.recipe.sections import QuantizeConfig
from pressoir.stage import ModelSize, Stage, StageContext, StageKeyParts, whole_config


def run(inputs: Mapping[str, Path], config: QuantizeConfig, context: StageContext) -> dict[str, float]:
    """Quantise `inputs["model"]`; the data of `inputs["data"]` calibrates and validates.

    Raises:
        SourceError: the model does not load, or a weight is not finite.
    """
    if config.scheme == "int8":
        from pressoir.formats.folder import task_of
        from pressoir.quantization import int8_embedder, int8_scheme

        if task(task_of(inputs["model"])).kind == "sentence encoder":
            return int8_embedder.run(inputs, config, context)
        return int8_scheme.run(inputs, config, context)
    from pressoir.quantization import weight_only

    return weight_only.run(inputs, config, context)


def key(config: QuantizeConfig) -> StageKeyParts:
    """All fields; of an algorithm of another package also which version of the package."""
    return StageKeyParts(whole_config(config).config | key_extras(config))


def memory(config: QuantizeConfig, size: ModelSize) -> int:
    """Three models; of weights alone one, since they are read, packed and moved layer by layer."""
    return (3 if config.scheme == "int8" else 1) * size.weight_bytes


STAGE = Stage(
    name="quantize",
    version=1,
    kind="quantized-model",
    config=QuantizeConfig,
    run=run,
    key=key,
    searchable=True,
    memory=memory,
)
