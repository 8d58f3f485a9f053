"""A weight-only quantisation algorithm: what its file declares, and how it is found by name.

A package adds one with an object of type `Quantizer` and an entry point of the group `pressoir.quantizers`::

    [project.entry-points."pressoir.quantizers"]
    my_algorithm = "my_package.my_module:QUANTIZER"

Recipes, the command line and the form then accept `my_algorithm`; nothing else needs to be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pressoir.errors import ExtensionError
from pressoir.extensions import loader

if TYPE_CHECKING:
    from torch import Tensor

GROUP: loader.Group = "pressoir.quantizers"


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix (out, in) in `bits`: weight = (code − zero point) × scale."""

    bits: int
    codes: Tensor
    """uint8 (out, in), 0 … 2^bits − 1."""
    scales: Tensor
    """float32 (out, in / block_size)."""
    zero_points: Tensor
    """uint8 (out, in / block_size), 0 … 2^bits − 1."""

    def dequantize(self) -> Tensor:
        """float32 (out, in)."""
        rows, columns = self.codes.shape
        blocks = self.codes.reshape(rows, self.scales.shape[1], -1).float()
        return ((blocks - self.zero_points[..., None]) * self.scales[..., None]).reshape(rows, columns)


@dataclass(frozen=True)
class Quantizer:
    """One algorithm. Its functions are deterministic and raise `QuantizationError`, with the layer's name."""

    name: str
    """As recipes name it; the same as the entry point's."""
    quantize: Callable[..., QuantizedMatrix]
    """`quantize(weight, bits, block_size, name)`: a float32 matrix (out, in), without data.

    It may get some rows of a matrix at a time, so a row's result must not depend on other rows.
    """
    calibrated: Callable[..., QuantizedMatrix] | None = None
    """`calibrated(weight, hessian, bits, block_size, name=name)`: a whole matrix, with the mean of x xᵀ
    (in, in) over its inputs x on the calibration text. None: the algorithm needs no text.

    Matrices outside the decoder's layers, and those that the text never used, still go to `quantize`.
    """
    options: tuple[str, ...] = ()
    """The fields of `QuantizeConfig` that belong to this algorithm; refused with algorithms that do not list
    them. `calibrated` gets them as keywords, `quantize` where there is no `calibrated`."""

    def __call__(
        self,
        weight: Tensor,
        bits: int,
        block_size: int,
        name: str,
        hessian: Tensor | None,
        options: Mapping[str, Any],
    ) -> QuantizedMatrix:
        """Quantise a matrix or, without a Hessian, some of its rows; `options`: values of `self.options`."""
        if self.calibrated is None:
            return self.quantize(weight, bits, block_size, name, **options)
        if hessian is None:
            return self.quantize(weight, bits, block_size, name)
        return self.calibrated(weight, hessian, bits, block_size, name=name, **options)


def find(name: str) -> Quantizer:
    """The algorithm that is declared under `name`; its module, and with it torch, is imported.

    Raises:
        ExtensionError: there is none, it cannot be imported, or it is not a `Quantizer` of that name.
    """
    found = loader.load(GROUP, name)
    if not isinstance(found, Quantizer) or found.name != name:
        raise ExtensionError(
            f"{GROUP} declares {name!r} as {found!r}; expected a Quantizer whose name is {name!r}"
        )
    return found
