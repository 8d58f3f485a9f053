"""A transformers model without its weights, and the order in which it would use them.

Parameters lie on PyTorch's meta device: they have a shape and a type, but no memory. Buffers that no
checkpoint holds (rotary frequencies, masks, sinusoids) are computed as usual, on the CPU, so that the model
is whole as soon as its parameters are filled in. Building one takes milliseconds, whatever the size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.integrations.accelerate import init_empty_weights
from transformers.utils import logging as transformers_logging

from pressoir.errors import SourceError
from pressoir.formats.folder import read_json
from pressoir.models import loading


def build(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model that `config.json` describes, of the class it names, in evaluation mode.

    Raises:
        SourceError: the configuration is missing or wrong, or of a model that transformers does not know.
    """
    with init_empty_weights(include_buffers=False):
        model = _make(folder, dtype=dtype)
    model.tie_weights()  # moving to the meta device has made new, separate parameters
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_dict(read_json(folder / "generation_config.json"))
    model.eval()
    return model


def executed(folder: Path) -> list[str]:
    """Names of the model's parameters in the order in which a forward pass first uses them.

    The pass runs on fake tensors: only shapes are computed. A parameter that no module's own call
    needs (its parent reads it) is left out. Where an architecture cannot run like that (a router that looks
    at values), the order of its modules is taken.

    Raises:
        SourceError: see `build`.
    """
    order: dict[str, None] = {}
    try:
        # not a public module, but the one that PyTorch's documentation of fake tensors names
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(), torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # other attention kernels look into the mask, whose values nobody knows here
            model = _make(folder, attn_implementation="eager").eval()
            with _recording(model, order):
                model(**_inputs(model))
    except SourceError:
        raise
    except Exception:  # whatever an architecture's code raises where it needs values, or other inputs
        return [name for name, _ in build(folder).named_parameters(remove_duplicate=False)]
    return list(order)


def tied(model: PreTrainedModel) -> list[list[str]]:
    """Groups of parameter names that share one tensor, such as a head tied to its embedding."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _make(folder: Path, **options: Any) -> PreTrainedModel:
    """The model of the class that `config.json` names, a causal LM where it names none."""
    config = loading.load_config(folder)
    names = getattr(config, "architectures", None) or [""]
    kind: Any = getattr(transformers, str(names[0]), None)
    known = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    make = kind._from_config if known else AutoModelForCausalLM.from_config
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model: PreTrainedModel = make(config, **options)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{folder}: config.json is not a valid model configuration: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    return model


@contextmanager
def _recording(model: nn.Module, order: dict[str, None]) -> Iterator[None]:
    """Note each module's own parameters in `order` when the module is first called."""
    names = {module: name for name, module in model.named_modules()}

    def used(module: nn.Module, _: object) -> None:
        for name, _parameter in module.named_parameters(names[module], recurse=False):
            order.setdefault(name)

    hooks = [module.register_forward_pre_hook(used) for module in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs of a shape that the model takes: four tokens, or for Whisper the whole window of its encoder."""
    tokens, config = torch.zeros((1, 4), dtype=torch.long), model.config
    inputs = {model.main_input_name: tokens}
    if model.main_input_name == "input_features":
        inputs = {"input_features": torch.zeros((1, config.num_mel_bins, 2 * config.max_source_positions))}
    return {**inputs, "decoder_input_ids": tokens} if config.is_encoder_decoder else inputs
