"""Run a model while its shards still arrive.

**What.** The model is built without weights. One thread fetches and verifies shards in the order of
execution; another fills in their tensors, and expands quantised ones to floats, layer by layer. Every module
that owns parameters waits, at the start of its forward pass, until it has them. So the model's own code runs,
whatever the architecture, and stops only at the first layer that is not there yet.

**Why.** The first forward pass overlaps with loading. No more than that: one token needs every layer, so the
time to the first token falls from load + compute towards max(load, compute), never below. What the last
shard's layers compute comes after its last byte; smaller shards make that less.

**Cost.** A SHA-256 over every byte, which plain loading does not do. Weights that are stored in the type they
are computed in are used where they are mapped, without a copy; others take memory as usual.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from types import TracebackType

import torch
from torch import nn
from transformers import PreTrainedModel

from pressoir import errors
from pressoir.errors import PressoirError, ShardError
from pressoir.formats.sharding import LoadingCancelledError, ShardRecord
from pressoir.inference.engines.decoder import TorchDecoder
from pressoir.inference.progressive.late_weights import LateWeights
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer
from pressoir.models import skeleton
from pressoir.registry.registry import Registry
from pressoir.sources import resolve
from pressoir.sources.shards import Source, is_url, open_source
from pressoir.store.store import Store

_JOIN_S = 5.0  # they end at their next megabyte, or with their socket


@dataclass(frozen=True)
class Progress:
    """How far loading is; shards only, not configuration and tokenizer."""

    done_bytes: int
    """Verified, or fetched and being verified."""
    total_bytes: int
    shard: int
    """Number of the shard at hand, from 0."""
    shards: int
    name: str
    """Its file."""
    bytes_per_s: float
    """Mean since loading began."""


OnProgress = Callable[[Progress], None]


class ProgressiveLoader:
    """A model whose weights are being loaded; `model` may be used at once.

    A context manager: leaving it cancels what is not loaded yet.
    """

    model: PreTrainedModel
    """In evaluation mode. Its forward pass waits for layers that are not there yet, and raises what stopped
    the loading: ShardError with the name of a corrupt shard, LoadingCancelledError, SourceError."""

    def __init__(
        self,
        source: Source,
        *,
        initial_shards: int = 1,
        on_progress: OnProgress | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Begin to load; return as soon as the first `initial_shards` shards are there.

        Raises:
            ShardError: `initial_shards` is negative, the shards are a graph's, or one is damaged.
            SourceError: the model is not known, or its weights are not all there.
        """
        self._source, self._on_progress = source, on_progress
        self._error: BaseException | None = None
        self._settled = threading.Event()  # loaded, or stopped
        try:
            if initial_shards < 0:
                raise ShardError(f"initial_shards is {initial_shards}; specify 0 or more")
            if source.manifest.kind != "checkpoint":
                raise ShardError(
                    f"{source.folder} contains an ONNX graph, which cannot be loaded progressively; load "
                    "the shards of its checkpoint, or open it with TextGenerator.open"
                )
            self.model = skeleton.build(source.folder, dtype)
            self._weights = LateWeights(self.model, source.folder, source.manifest)
        except BaseException:
            source.close(complete=False)
            raise
        self._ready = {module: threading.Event() for module in self._weights.modules}
        self._hooks = {module: module.register_forward_pre_hook(self._await) for module in self._ready}
        self._shards_loaded = 0
        self._loaded = [threading.Event() for _ in source.manifest.shards]
        self._fetched: queue.SimpleQueue[tuple[ShardRecord, mmap] | BaseException | None] = (
            queue.SimpleQueue()
        )
        self._fetching = threading.Thread(target=self._fetch, name="pressoir-fetch", daemon=True)
        self._filling = threading.Thread(target=self._fill, name="pressoir-fill", daemon=True)
        self._fetching.start()
        self._filling.start()
        try:
            for number, loaded in enumerate(self._loaded[:initial_shards]):
                loaded.wait()
                if number >= self._shards_loaded:  # a later one's error is raised where it is needed
                    self._raise_error()
        except BaseException:
            self.cancel()
            raise

    @classmethod
    def from_folder(
        cls,
        place: Path | str,
        *,
        initial_shards: int = 1,
        on_progress: OnProgress | None = None,
        dtype: torch.dtype = torch.float32,
        home: Path | None = None,
    ) -> ProgressiveLoader:
        """Load a sharded folder, or the one at an `http(s)://` URL, which is fetched below `home`.

        Raises:
            ShardError, SourceError: see the class, and `pressoir.sources.shards`.
        """
        source = open_source(place, home)
        return cls(source, initial_shards=initial_shards, on_progress=on_progress, dtype=dtype)

    @classmethod
    def load_from_registry(
        cls,
        id: str,
        *,
        initial_shards: int = 1,
        on_progress: OnProgress | None = None,
        dtype: torch.dtype = torch.float32,
        home: Path | None = None,
    ) -> ProgressiveLoader:
        """Load a registered model whose files are sharded, from wherever its entry says.

        Raises:
            RegistryError: the registry has no such id.
            ShardError: its files are not sharded, or not as the entry says.
            SourceError: they cannot be found.
        """
        store = Store(home)
        entry = Registry(store.home).get(id)
        try:
            base = entry.urls.base
            location = base if is_url(base) else resolve.locate_entry(entry, store)[1]
            source = open_source(location, store.home)
        except errors.UnreachableError:
            if not entry.urls.mirrors:
                raise
            source = open_source(resolve.locate_entry(entry, store)[1], store.home)
        names = tuple(record.file for record in source.manifest.shards)
        if entry.urls.shards and names != entry.urls.shards:
            source.close(complete=False)
            raise ShardError(
                f"the registry names {len(entry.urls.shards)} shards of {id!r}, but {source.folder} has "
                f"{len(names)} different ones; register the model again"
            )
        return cls(source, initial_shards=initial_shards, on_progress=on_progress, dtype=dtype)

    def wait(self) -> None:
        """Return when every shard is loaded.

        Raises:
            PressoirError: what stopped the loading.
        """
        self._settled.wait()
        self._join()
        self._raise_error()

    @property
    def done(self) -> bool:
        """Whether every shard is loaded."""
        return self._settled.is_set() and self._error is None

    @property
    def folder(self) -> Path:
        """Where configuration and tokenizer are, on this machine."""
        return self._source.folder

    def cancel(self) -> None:
        """Stop loading, if it has not ended; a forward pass that waits raises LoadingCancelledError."""
        if self.done:
            return
        self._source.cancel()
        self._stop(LoadingCancelledError(f"loading {self.folder} was cancelled"))
        self._join()

    def decoder(self) -> TorchDecoder:
        """The model as what generates text; it may be used at once."""
        return TorchDecoder(self.model)

    def generator(self) -> TextGenerator:
        """The model with its tokenizer; it may be used at once."""
        return TextGenerator(self.decoder(), LanguageModelTokenizer.open(self.folder))

    def __enter__(self) -> ProgressiveLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _fetch(self) -> None:
        """First thread: verified shards, one after the other."""
        manifest, done, began = self._source.manifest, 0, time.monotonic()

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if self._on_progress is not None:
                rate = done / max(time.monotonic() - began, 1e-9)
                position = (record.order, len(manifest.shards), record.file)
                self._on_progress(Progress(done, manifest.total_bytes, *position, rate))

        try:
            for record in manifest.shards:
                self._fetched.put((record, self._source.shard(record, tell)))
            self._fetched.put(None)
        except BaseException as error:  # raised again where somebody waits
            self._fetched.put(error)

    def _fill(self) -> None:
        """Second thread: their tensors into the model; then the source is closed."""
        try:
            while (item := self._fetched.get()) is not None and self._error is None:
                if isinstance(item, BaseException):  # what came before it is used first
                    raise item
                record, mapped = item
                for module in self._weights.fill(self.folder / record.file, record, mapped):
                    self._ready[module].set()
                self._shards_loaded += 1
                self._loaded[record.order].set()
        except BaseException as error:  # raised again where somebody waits
            self._stop(error)
            self._source.cancel()
        self._fetching.join()
        try:
            self._source.close(complete=self._error is None)
        except BaseException as error:  # the weights are all there, but the next run will not find them
            self._stop(error)
        self._settled.set()

    def _join(self) -> None:
        """Give the threads of a stopped load the time to let go of their files."""
        threads = (self._fetching, self._filling)
        if threading.current_thread() not in threads:  # `on_progress` may cancel
            for thread in threads:
                thread.join(_JOIN_S)

    def _stop(self, error: BaseException) -> None:
        """Let everybody who waits, and will wait, get `error`; the first one counts."""
        self._error = self._error or error
        for event in (*self._ready.values(), *self._loaded, self._settled):
            event.set()

    def _await(self, module: nn.Module, _: object) -> None:
        """Forward pre-hook: block until the module has its weights."""
        self._ready[module].wait()
        if not self._weights.whole(module):
            self._raise_error()
        if (hook := self._hooks.pop(module, None)) is not None:
            hook.remove()

    def _raise_error(self) -> None:
        if isinstance(self._error, PressoirError):
            raise type(self._error)(*self._error.args) from self._error
        if self._error is not None:
            raise ShardError(f"loading {self.folder} stopped: {self._error!r}") from self._error


load_from_registry = ProgressiveLoader.load_from_registry
