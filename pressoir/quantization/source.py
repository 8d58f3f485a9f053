"""The model to be quantised, by its files: which matrices it has, and what each is for.

No weight is loaded to find that out. The architecture is built without memory for its weights, so that the
kind of each module is known; names, shapes and types come from the headers of the safetensors files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pressoir.errors import QuantizationError, SourceError
from pressoir.extensions.task import task
from pressoir.formats import tensor_files
from pressoir.formats.folder import check_not_quantized, task_of
from pressoir.formats.tensor_bytes import TensorBytes
from pressoir.models import skeleton, weight_layers
from pressoir.models.execution_order import model_name

CHUNK_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class Matrix:
    """A weight that can be quantised."""

    name: str
    """The module's, such as `model.layers.0.mlp.down_proj`."""
    kind: str
    """`linear`, `conv1d` or `embedding`."""
    role: str
    """`matmul`, `embedding` or `head`."""
    shape: tuple[int, int]
    """(out, in), also where the model keeps it transposed."""
    tied_to: str | None = None
    """The embedding whose weight it is."""

    @property
    def weights(self) -> int:
        """How many."""
        return self.shape[0] * self.shape[1]


class SourceModel:
    """A causal LM in safetensors; only its headers have been read.

    Raises:
        QuantizationError: the folder is quantised already, is not a causal LM, or has no matrix products.
        SourceError: it lacks a configuration, safetensors files or some of the weights.
    """

    def __init__(self, folder: Path) -> None:
        check_not_quantized(folder)
        if (declared := task(task_of(folder))).kind != "language model":
            raise QuantizationError(
                f"{folder} is a model for {declared.name}; q8 to q2 are for causal language models, use int8"
            )
        self.folder = folder
        self.skeleton: PreTrainedModel = skeleton.build(folder)
        shapes = {name: tuple(p.shape) for name, p in self.skeleton.state_dict(keep_vars=True).items()}
        prefix = self.skeleton.base_model_prefix
        files = tensor_files.tensors_of(folder)
        renamed = {model_name(name, shapes, prefix): tensor for name, tensor in files.items()}
        self.unknown = sorted(renamed.keys() - shapes.keys())
        """Tensors of the files that the architecture does not have."""
        shared = {name: group for group in skeleton.tied(self.skeleton) for name in group}
        table = self._name_of(self.skeleton.get_input_embeddings())
        owners = {name: table if table in group else group[0] for name, group in shared.items()}
        buffers = dict(self.skeleton.named_buffers())
        self._tensors: dict[str, TensorBytes] = {}
        for name, shape in shapes.items():
            stored = next((other for other in shared.get(name, [name]) if other in renamed), None)
            if stored is None and name in buffers:  # computed when the model is built
                continue
            if stored is None or renamed[stored].shape != shape:
                found = "has none" if stored is None else f"has {list(renamed[stored].shape)}"
                raise SourceError(
                    f"{folder}: config.json specifies {name} {list(shape)}, but the weight file {found}; "
                    "download the model again"
                )
            self._tensors[name] = renamed[stored]
        self.matrices = dict(self._find_matrices(owners))
        if not any(matrix.role == "matmul" for matrix in self.matrices.values()):
            raise QuantizationError(f"{folder} has no linear layer, so there is nothing to quantise")
        self.names = [name for name in self._tensors if owners.get(name, name) == name]
        """Every tensor, in the model's order; of those that share their values, the first."""
        matrices = {f"{name}.weight" for name in self.matrices}
        self.other_weights = sum(prod(self.shape(name)) for name in self.names if name not in matrices)
        """Number of values that are in no such matrix."""
        self.embedding = next((n for n, matrix in self.matrices.items() if matrix.role == "embedding"), None)
        """Name of the token embedding."""
        self.file_bytes = sum(tensor.length for tensor in files.values())
        self.parameters = sum(parameter.numel() for parameter in self.skeleton.parameters())

    def read(self, name: str) -> Tensor:
        """A tensor by its name in the model, in the model's orientation, float32 if it is floating."""
        return _float(tensor_files.read(self._tensors[name]))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, by its name in the model."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """What a tensor is as `read` gives it, as safetensors names it."""
        stored = self._tensors[name].dtype
        return "F32" if stored in ("F64", "F32", "F16", "BF16") else stored

    def matrix(self, name: str) -> Tensor:
        """The float32 weight (out, in) of a matrix."""
        weight = self.read(f"{name}.weight")
        return weight.T.contiguous() if self.matrices[name].kind == "conv1d" else weight

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The float32 weight (out, in) of a matrix, some rows at a time, each with the first row's index.

        A matrix that is stored transposed comes whole.
        """
        matrix = self.matrices[name]
        if matrix.kind == "conv1d":
            yield 0, self.matrix(name)
            return
        step = max(CHUNK_WEIGHTS // matrix.shape[1], 1)
        for start in range(0, matrix.shape[0], step):
            rows = slice(start, start + step)
            yield start, _float(tensor_files.read(self._tensors[f"{name}.weight"], rows))

    def _name_of(self, module: nn.Module | None) -> str:
        """Name of a module's weight."""
        return next(
            (f"{name}.weight" for name, other in self.skeleton.named_modules() if other is module), ""
        )

    def _find_matrices(self, owners: Mapping[str, str]) -> Iterator[tuple[str, Matrix]]:
        table, head = self.skeleton.get_input_embeddings(), self.skeleton.get_output_embeddings()
        for name, module in self.skeleton.named_modules():
            kind = weight_layers.kind_of(module)
            if kind is None or (kind == "embedding" and module is not table):
                continue
            rows, columns = self.shape(f"{name}.weight")
            role = {id(table): "embedding", id(head): "head"}.get(id(module), "matmul")
            owner = owners.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight")
            if weight_layers.kind_of(self.skeleton.get_submodule(owner)) is None:
                continue  # a head that shares the weight of an embedding which stays as it is
            yield (
                name,
                Matrix(
                    name,
                    kind,
                    role,
                    (columns, rows) if kind == "conv1d" else (rows, columns),
                    None if owner == name else owner,
                ),
            )


def _float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
