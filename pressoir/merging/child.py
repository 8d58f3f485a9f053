"""The process in which mergekit runs: `python -m pressoir.merging.child FOLDER OUT SEED`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pressoir.merging.configuration import CONFIG
from pressoir.merging.process import ARCHITECTURE
from pressoir.merging.resources import SHARD_BYTES


def main(folder: Path, out: Path, seed: int) -> None:
    """Merge as the files in `folder` say, into `out`; fail if a value of the result is not finite."""
    import torch
    import yaml
    from mergekit.architecture import ModelArchitecture, ModuleDefinition
    from mergekit.architecture.json_definitions import (
        NAME_TO_ARCH,
        JsonModuleArchDef,
        JsonModuleArchitecture,
    )
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors import safe_open

    os.chdir(folder)  # the configuration names models as ./parent_0
    definition = json.loads(Path(ARCHITECTURE).read_text(encoding="utf-8"))
    module = JsonModuleArchitecture(definition=JsonModuleArchDef.model_validate(definition))
    NAME_TO_ARCH[definition["architectures"][0]] = [
        ModelArchitecture(
            modules={"default": ModuleDefinition(architecture=module)},
            architectures=definition["architectures"],
            model_type=definition["model_type"],
        )
    ]
    source = Path(CONFIG).read_text(encoding="utf-8")
    configuration = MergeConfiguration.model_validate(yaml.safe_load(source))
    options = MergeOptions(
        random_seed=seed,
        copy_tokenizer=False,
        write_model_card=False,
        clone_tensors=configuration.slices is not None,  # one layer may stand in several places
        out_shard_size=SHARD_BYTES,
    )
    run_merge(configuration, str(out), options=options, config_source=source)
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not torch.isfinite(file.get_tensor(name)).all():
                    sys.exit(
                        f"{name} of the result has values that are not finite; merge in float32, store in "
                        "bfloat16 or float32 (out_dtype), or use smaller weights"
                    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
