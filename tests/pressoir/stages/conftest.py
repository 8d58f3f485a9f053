"""A stage by itself, in folders of its own."""

import dataclasses

import pytest


@pytest.fixture
def step(context):
    """`step(name, stage, config, **inputs)` runs a stage, and gives its folder and its metrics."""

    def run(name, module, config, **inputs):
        own = dataclasses.replace(context, out_dir=context.out_dir / name, work_dir=context.work_dir / name)
        for folder in (own.out_dir, own.work_dir):
            folder.mkdir()
        return own.out_dir, module.run(inputs, config, own)

    return run
