"""What all endpoints have in common: the service, its limits, and what is known of its models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from fastapi import Request

from pressoir.errors import PressoirError
from pressoir.extensions.task import task
from pressoir.serving.config import ServingConfig
from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.metrics import Metrics
from pressoir.serving.http.refusals import HttpError
from pressoir.serving.pool.sharing import Tier
from pressoir.serving.service import MOST_EMBEDDED, Service
from pressoir.store.store import Store

log = logging.getLogger("pressoir")

_LEAST_JSON = 1 << 20
_TOKENS = 8192  # of a tier whose settings do not limit a text
_TOKEN_BYTES = 12  # twice six: a character may be written as \uXXXX, and a token may have several


class Backend:
    """The service behind an app."""

    def __init__(self, service: Service, store: Store, limits: HttpLimits, metrics: Metrics) -> None:
        self.service, self.store, self.limits, self.metrics = service, store, limits, metrics
        self.failure: PressoirError | None = None
        """Why the service could not start."""
        self._info: dict[str, dict[str, Any]] = {}

    @property
    def config(self) -> ServingConfig:
        """What is served now."""
        return self.service.models.config

    async def start(self) -> None:
        """Start the service; a failure is kept and logged."""
        try:
            await self.service.start()
        except PressoirError as error:
            self.failure = error
            log.error("the service cannot start: %s", error)
        except Exception as error:
            self.failure = PressoirError(f"the service cannot start: {type(error).__name__}: {error}")
            log.exception("the service cannot start")

    def tier(self, request: Request, name: str | None, operation: str | None = None) -> Tier:
        """The tier of a request (see `ModelHost.lookup`), noted for the log; raises UnknownTierError."""
        found = self.service.models.lookup(name, operation)
        request.state.tier = found.name
        return found

    def model_info(self, tier: Tier) -> dict[str, Any]:
        """Description of a tier's model (`Service.info`); empty until it was first loaded."""
        key = tier.spec.key
        entry = self.service.models.pool.entries.get(key)
        if entry is not None:
            self._info[key] = dict(entry.model.info)
        return self._info.get(key, {})

    async def info(self, tier: Tier) -> dict[str, Any]:
        """The same, of a model that is loaded for it if need be."""
        return self.model_info(tier) or await self.service.info(tier)

    def check_lengths(self, texts: Iterable[Any]) -> None:
        """Refuse a text that is too long; raises HttpError."""
        limit = self.limits.max_text_characters
        for index, text in enumerate(texts):
            if isinstance(text, str) and len(text) > limit:
                message = (
                    f"text {index} has {len(text)} characters, but at most {limit} are allowed; split it"
                )
                raise HttpError(422, "too_long", message)

    def max_json_bytes(self) -> int:
        """Size of the largest JSON body that is read; see `HttpLimits.max_json_bytes`."""
        if self.limits.max_json_bytes is not None:
            return self.limits.max_json_bytes
        most = _LEAST_JSON
        for tier in self.service.models.tiers.values():
            if task(tier.spec.task).sound:
                return self.limits.max_body_bytes
            settings = tier.config.settings
            embeds = "embed" in task(tier.spec.task).operations
            texts = MOST_EMBEDDED if embeds else settings.max_batch
            most = max(most, texts * (settings.max_length or _TOKENS) * _TOKEN_BYTES)
        return min(most, self.limits.max_body_bytes)

    async def is_ready(self, tier: Tier) -> bool:
        """Whether a request to a tier is answered: now, or once its model is loaded from files that exist."""
        models = self.service.models
        if models.is_loaded(tier):
            return True
        return models.ready and await asyncio.to_thread(models.has_files, tier)
