"""The tiny causal LMs as graphs: exported once, used by the tests of decoders and of generation."""

import pytest

from pressoir.recipe.sections import ExportConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext


@pytest.fixture(scope="module")
def one_torch_thread():
    """Torch computes on one thread: tiny models gain nothing from more, which wait actively."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TINY = ("tiny_llama", "tiny_gpt2", "tiny_qwen2")


@pytest.fixture(scope="session")
def tiny_graphs(tiny_text, built_once, tmp_path_factory, request):
    """Folder of the ONNX graph of each tiny causal LM, by the fixture's name."""
    from pressoir.stages import export

    def graph(name):
        inputs = {"model": request.getfixturevalue(name), "data": tiny_text}

        def make(folder):
            work = tmp_path_factory.mktemp("work")
            export.run(inputs, ExportConfig(), StageContext(folder, work, LogReporter(), seed=0, threads=1))

        return built_once(f"{name}-graph", make)

    return {name: graph(name) for name in TINY}


@pytest.fixture(params=TINY)
def lm_and_graph(request, tiny_graphs):
    """Checkpoint and graph of each tiny causal LM in turn."""
    return request.getfixturevalue(request.param), tiny_graphs[request.param]
