"""Pressoir: press Transformer models into small, fast ones, and prove what each step cost.

The names in `__all__` are the public interface: the commands as functions, the types they take and return,
what opens a compressed model, and the errors. Each is imported when it is first used, so the package is light
to import: nothing heavy (torch, onnxruntime, transformers, Prefect, MLflow) is loaded before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pressoir.aliases import install

if TYPE_CHECKING:
    from pressoir.errors import (
        DataError,
        ExtensionError,
        MergeError,
        ParityError,
        PressoirError,
        QuantizationError,
        RecipeError,
        RegistryError,
        ShardError,
        SourceError,
        StoreError,
        UnreachableError,
    )
    from pressoir.evaluation.config import EvaluationConfig
    from pressoir.evaluation.run import EvaluationResult
    from pressoir.flows.batch_evaluation import batch_evaluation as evaluate
    from pressoir.flows.compress import compress
    from pressoir.flows.deploy import deploy
    from pressoir.flows.press import press
    from pressoir.flows.search import search
    from pressoir.inference.automatic_speech_recognition import SpeechRecognizer
    from pressoir.inference.feature_extraction import SentenceEncoder
    from pressoir.inference.text_classification import TextClassifier
    from pressoir.inference.text_generation import TextGenerator
    from pressoir.inference.token_classification import TokenClassifier
    from pressoir.inference.translation import Translator
    from pressoir.pipeline.runner import CompressResult
    from pressoir.recipe.recipe import Recipe
    from pressoir.recipe_search.config import SearchConfig
    from pressoir.recipe_search.outcome import SearchResult
    from pressoir.recipe_search.press import PressResult
    from pressoir.registry.registry import Registry
    from pressoir.serving.config import ServingConfig
    from pressoir.serving.deployment import DeployResult
    from pressoir.serving.errors import ServingError
    from pressoir.serving.http.serve import serve
    from pressoir.store.artifact import Artifact
    from pressoir.store.store import Store

__version__ = "0.2.0"
__all__ = [
    "Artifact",
    "CompressResult",
    "DataError",
    "DeployResult",
    "EvaluationConfig",
    "EvaluationResult",
    "ExtensionError",
    "MergeError",
    "ParityError",
    "PressResult",
    "PressoirError",
    "QuantizationError",
    "Recipe",
    "RecipeError",
    "Registry",
    "RegistryError",
    "SearchConfig",
    "SearchResult",
    "SentenceEncoder",
    "ServingConfig",
    "ServingError",
    "ShardError",
    "SourceError",
    "SpeechRecognizer",
    "Store",
    "StoreError",
    "TextClassifier",
    "TextGenerator",
    "TokenClassifier",
    "Translator",
    "UnreachableError",
    "compress",
    "deploy",
    "evaluate",
    "press",
    "search",
    "serve",
]

_MODULES = {
    "pressoir.evaluation.config": "EvaluationConfig",
    "pressoir.evaluation.run": "EvaluationResult",
    "pressoir.flows.batch_evaluation": "evaluate",
    "pressoir.flows.compress": "compress",
    "pressoir.flows.deploy": "deploy",
    "pressoir.flows.press": "press",
    "pressoir.flows.search": "search",
    "pressoir.inference.automatic_speech_recognition": "SpeechRecognizer",
    "pressoir.inference.feature_extraction": "SentenceEncoder",
    "pressoir.inference.text_classification": "TextClassifier",
    "pressoir.inference.text_generation": "TextGenerator",
    "pressoir.inference.token_classification": "TokenClassifier",
    "pressoir.inference.translation": "Translator",
    "pressoir.pipeline.runner": "CompressResult",
    "pressoir.recipe.recipe": "Recipe",
    "pressoir.recipe_search.config": "SearchConfig",
    "pressoir.recipe_search.outcome": "SearchResult",
    "pressoir.recipe_search.press": "PressResult",
    "pressoir.registry.registry": "Registry",
    "pressoir.serving.config": "ServingConfig",
    "pressoir.serving.deployment": "DeployResult",
    "pressoir.serving.errors": "ServingError",
    "pressoir.serving.http.serve": "serve",
    "pressoir.store.artifact": "Artifact",
    "pressoir.store.store": "Store",
}
_HOMES = dict.fromkeys(__all__, "pressoir.errors") | {name: module for module, name in _MODULES.items()}
_THERE = {"evaluate": "batch_evaluation"}  # the name in its module, where that is another

install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), _THERE.get(name, name))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
