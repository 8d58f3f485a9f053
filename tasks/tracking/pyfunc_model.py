"""The model that MLflow serves: it opens a registered artifact where it lies in the store.

MLflow keeps this file and a few lines of configuration (models from code), not the weights; so what is served
is the registered artifact itself, checked against its digest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from pressoir.data.texts import PAIR
from pressoir.errors import StoreError
from pressoir.inference.predictor import open_predictor
from pressoir.store.store import Store
from pressoir.system.files import folder_digest
from pressoir.system.runtime import available_cpus


class StoredModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Texts in the column `text` in, with the second ones in `text_pair` where the model takes pairs; out one
    column of probabilities a label, or each text's continuation."""

    def load_context(self, context: Any) -> None:
        """Open the artifact in the store it was registered from, or where PRESSOIR_HOME says it is now."""
        config = context.model_config
        homes = [Path(home) for home in (config["home"], os.environ.get("PRESSOIR_HOME")) if home]
        candidates = [Store(home).root / config["stage"] / config["key"] for home in homes]
        folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
        if folder is None:
            raise StoreError(
                f"the store {' or '.join(map(str, homes))} does not contain "
                f"{config['stage']}/{config['key']}; set PRESSOIR_HOME to its current location, or run its "
                "recipe again"
            )
        if folder_digest(folder)[0] != config["digest"]:
            raise StoreError(
                f"{folder} differs from the registered model (digest {config['digest']}); run its recipe "
                "again"
            )
        self.predictor = open_predictor(folder, available_cpus())

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """The columns of `open_predictor`, a row a text."""
        texts = model_input["text"].astype(str).tolist()
        if self.predictor.pairs:
            texts = list(zip(texts, model_input[PAIR].astype(str).tolist(), strict=True))
        columns = self.predictor.predict(texts)
        return pd.DataFrame(columns, columns=list(self.predictor.columns))


mlflow.models.set_model(StoredModel())
