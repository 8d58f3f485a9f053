"""How much each matrix matters: what the model's output loses when it alone is quantised.

Each matrix inside the decoder's layers is quantised alone, at 2, 3, 4 and 8 bits, by the algorithm that will
be used, and the model's output distribution is compared with the float model's on held-out calibration text.
The sensitivity is the mean KL divergence, in nats a token. Evaluation text is never read.

A trial starts from the stored states before its decoder layer, so that only later layers are run again; a
model of L layers with m matrices each takes 2·m·L² runs of one layer over the held-out text.

Source: Cai et al., ZeroQ, CVPR 2020, arXiv:2001.00281, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from pressoir.quantization.calibration import DecoderStream, Hidden
from pressoir.reporting import Reporter

BITS = (2, 3, 4, 8)
Sensitivity = dict[str, dict[int, float]]
"""Mean KL divergence by matrix and bits."""
Trial = Callable[[str, Tensor, Tensor | None, int], Tensor]
"""From a matrix's name, its weight (out, in), its inputs' Hessian and bits to the dequantised weight."""

_PENDING_BYTES = 1 << 26  # hidden states of trials that go through the later layers together


def measure(
    held_out: DecoderStream,
    calibration: DecoderStream | None,
    trial: Trial,
    names: set[str],
    reporter: Reporter,
) -> tuple[Sensitivity, float]:
    """Sensitivities of the matrices `names` at each level, and the float model's perplexity.

    Both are of the held-out text. Hessians are of the `calibration` text in the float model; None without it.
    """
    result: Sensitivity = {name: {} for name in held_out.source.matrices if name in names}
    total, done = len(result) * len(BITS), 0
    inputs = final = held_out.embed()
    for layer in range(len(held_out)):
        final = held_out.through(layer, final)
    seen = calibration.embed() if calibration else None
    most = max(len(BITS), _PENDING_BYTES // sum(batch.nbytes for batch in inputs))
    for layer in range(len(held_out)):
        pending: list[tuple[str, int]] = []
        states: Hidden = []
        matrices = list(_matrices(held_out, calibration, layer, seen, names))
        for count, (name, hessian) in enumerate(matrices, start=1):
            weight = held_out.source.matrix(name)
            for bits in BITS:
                states += held_out.through(layer, inputs, {name: trial(name, weight, hessian, bits)})
                pending.append((name, bits))
            if len(pending) + len(BITS) > most or count == len(matrices):
                for later in range(layer + 1, len(held_out)):
                    states = held_out.through(later, states)
                for (matrix, bits), value in zip(pending, held_out.divergences(final, states), strict=True):
                    result[matrix][bits] = max(value, 0.0)  # below 0 by rounding alone
                done += len(pending)
                reporter.progress(done, total, "sensitivities measured")
                pending, states = [], []
        inputs = held_out.through(layer, inputs)
        if calibration and seen:
            seen = calibration.through(layer, seen)
    return result, held_out.perplexity(final)


def _matrices(
    held_out: DecoderStream,
    calibration: DecoderStream | None,
    layer: int,
    seen: Hidden | None,
    names: set[str],
) -> Iterator[tuple[str, Tensor | None]]:
    """The matrices of one layer, with their Hessians where there is calibration text."""
    if calibration is None or seen is None:
        yield from ((name, None) for name in held_out.inside(layer) if name in names)
        return
    with calibration.filled(layer):
        for group, hessian in calibration.hessians(layer, seen, names):
            yield from ((name, hessian) for name in group)
