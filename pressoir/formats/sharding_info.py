"""`SHARDING_INFO.md`: describes a sharded folder to its users, with snippets that run in it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pressoir.errors import SourceError
from pressoir.formats import onnx_weights
from pressoir.formats.folder import GRAPH, QUANTIZATION, read_json
from pressoir.formats.sharding import MANIFEST, ShardManifest

_CHECK = f"""## Check the files

```python
import hashlib
import json
from pathlib import Path
from typing import Any

manifest = json.loads(Path("{MANIFEST}").read_text())
for record in manifest["shards"] + manifest["files"]:
    with Path(record["file"]).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == record["sha256"], record["file"]
print("all files are intact")
```

`pressoir verify .` does the same, and `pressoir unshard --model . --output DIR` makes one file of them again.
"""

_GRAPH = """## Open it in ONNX Runtime

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
feed = {value.name: np.ones((1, 4), dtype=np.int64) for value in session.get_inputs()}  # (batch, seq)
print(session.run(["logits"], feed)[0])
```
"""

_GENERATE = """## Generate text

```python
from pathlib import Path

from pressoir.inference.text_generation import TextGenerator

for piece in TextGenerator.open(Path("."), threads=2).generate("The", max_new_tokens=8):
    print(piece, end="", flush=True)
```
"""

_TRANSFORMERS = """## Open it in transformers

```python
from transformers import {kind}

model = {kind}.from_pretrained(".", local_files_only=True)
```
"""

_PROGRESSIVE = """## Run it while it loads

```python
from pressoir.inference.progressive.loader import ProgressiveLoader

with ProgressiveLoader.from_folder(".", initial_shards=1) as loader:  # or the URL of this folder
    model = loader.model  # a transformers model; a forward pass waits for each layer that is not there yet
    loader.wait()
```
"""


def describe(manifest: ShardManifest, folder: Path) -> str:
    """The text for `folder`, whose shards are as `manifest` says."""
    rows = "\n".join(
        f"| `{record.file}` | {record.role} | {record.bytes / 1e6:.2f} | {len(record.tensors)} | "
        f"`{record.tensors[0].name}` | `{record.sha256[:16]}…` |"
        for record in manifest.shards
    )
    size = f"{len(manifest.shards)} safetensors files ({manifest.total_bytes / 1e6:.2f} MB)"
    if manifest.kind == "onnx":
        intro = f"""# A sharded ONNX model

`{GRAPH}` is the graph; its weights lie in {size}, in the order in which the graph first uses them. They are
the graph's external data and ordinary safetensors files at once: the same bytes, not two copies."""
        links = """
Keep all files in one folder, and do not replace them by links: ONNX Runtime refuses linked external data.
"""
        snippets = [_GENERATE if _decodes(folder) else _GRAPH]
    else:
        intro = f"""# A sharded checkpoint

The weights lie in {size}, in the order in which a forward pass needs them."""
        if manifest.tied:
            pairs = ", ".join(f"`{copy}` is `{stored}`" for copy, stored in manifest.tied.items())
            intro += f" What is tied is stored once: {pairs}."
        links = ""
        names = _field(folder, "config.json", "architectures")
        quantised = _field(folder, QUANTIZATION, "format_version")
        kind = str(names[0]) if isinstance(names, list) and names else ""
        snippets = [_TRANSFORMERS.format(kind=kind)] if kind.isidentifier() and quantised is None else []
        if kind and quantised != 1:  # the first format has dynamic activations, which PyTorch does not
            snippets.append(_PROGRESSIVE)
    safetensors = f"""## Open a shard in safetensors

```python
from safetensors import safe_open

with safe_open("{manifest.shards[0].file}", framework="np") as shard:
    for name in shard.keys():
        print(name, shard.get_slice(name).get_dtype(), shard.get_slice(name).get_shape())
```
"""
    table = f"""`{MANIFEST}` has the SHA-256 of each.

| shard | role | MB | tensors | first tensor | SHA-256 |
|---|---|---:|---:|---|---|
{rows}
{links}"""
    return f"{intro}\n{table}\n" + "\n".join([*snippets, safetensors, _CHECK])


def _decodes(folder: Path) -> bool:
    """Whether the graph takes a cache, as a decoder does."""
    inputs = onnx_weights.load(folder / GRAPH).graph.input
    return any(value.name.startswith("past_key_values") for value in inputs)


def _field(folder: Path, name: str, field: str) -> Any:
    """A field of a JSON file; None where there is none."""
    with suppress(SourceError):
        return read_json(folder / name).get(field)
    return None
