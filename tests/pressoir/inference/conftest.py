"""The tiny causal LMs as graphs: exported once, used by the tests of decoders and of generation."""

import pytest

from pressoir.recipe.sections import ExportConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext

TINY = ("tiny_llama", "tiny_gpt2", "tiny_qwen2")


@pytest.fixture(scope="session")
def tiny_graphs(tiny_text, tmp_path_factory, request):
    """Folder of the ONNX graph of each tiny causal LM, by the fixture's name."""
    from pressoir.stages import export

    graphs = {}
    for name in TINY:
        graphs[name] = tmp_path_factory.mktemp(f"{name}-graph")
        context = StageContext(
            graphs[name], tmp_path_factory.mktemp(f"{name}-work"), LogReporter(), seed=0, threads=1
        )
        inputs = {"model": request.getfixturevalue(name), "data": tiny_text}
        export.run(inputs, ExportConfig(), context)
    return graphs


@pytest.fixture(params=TINY)
def lm_and_graph(request, tiny_graphs):
    """Checkpoint and graph of each tiny causal LM in turn."""
    return request.getfixturevalue(request.param), tiny_graphs[request.param]
