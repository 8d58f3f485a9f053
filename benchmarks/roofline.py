"""What bounds the time of one sentence in an exported classifier: arithmetic, memory, or starting operators.

python benchmarks/roofline.py
python benchmarks/roofline.py out/sst2/model --tokens 25

A folder with a `model.onnx` is measured as it is. Without one, a random BERT is made, quantised to int8 and
exported; the figures of speed are real, for none depends on the values of weights. Three bounds are set
beside the measured median at batch 1: all multiply-adds at the speed that this machine's integer product
reaches where it is large; all bytes at the speed of copying as many as the weights have; and as many
operators as ONNX Runtime runs at the time that an operator on one number takes. A second table sets session
settings side by side. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import random_models
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pressoir.benchmark.timing import Inputs, time_in_turn
from pressoir.formats.folder import GRAPH, Runtime
from pressoir.inference.engines.classifier import Engine, OnnxEngine
from pressoir.system.runtime import available_cpus, describe_machine

PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"}
ATTENTIONS = {"Attention", "QAttention", "MultiHeadAttention"}
EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)
CHAIN = 200  # operators


class Session:
    """An engine whose session has settings of its own; `binding` hands arrays over by I/O binding."""

    runtime: Runtime = "onnxruntime"
    batch_invariant = False

    def __init__(self, graph: Path, threads: int, binding: bool = False, **settings: Any) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        for name, value in settings.items():
            if name.startswith(("force_", "intra_op")):
                options.add_session_config_entry(f"session.{name.replace('__', '.')}", value)
            else:
                setattr(options, name, value)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.binding = binding
        self._accepted = {value.name for value in self.session.get_inputs()}

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        feed = {name: array for name, array in inputs.items() if name in self._accepted}
        if not self.binding:
            return np.asarray(self.session.run(None, feed)[0], dtype=np.float32)
        bound = self.session.io_binding()
        for name, array in feed.items():
            bound.bind_cpu_input(name, array)
        bound.bind_output(self.session.get_outputs()[0].name)
        self.session.run_with_iobinding(bound)
        return np.asarray(bound.copy_outputs_to_cpu()[0], dtype=np.float32)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help=f"folder with {GRAPH}; without: a random model")
    parser.add_argument("--tokens", type=int, default=25, help="length of the sentence")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--samples", type=int, default=300, help="timed runs of each setting")
    parser.add_argument("--hidden", type=int, default=384, help="width of the random model")
    parser.add_argument("--layers", type=int, default=3, help="of the random model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        graph = (options.model or random_model(work, options.hidden, options.layers)) / GRAPH
        machine = describe_machine(options.threads)
        print(f"{machine['cpu']}, {options.threads} threads, onnxruntime {ort.__version__}; {graph.parent}")
        roofline(graph, options.tokens, options.threads, options.samples, work)
        settings(graph, options.tokens, options.threads, options.samples)


def random_model(work: Path, hidden: int, layers: int) -> Path:
    """A random BERT classifier in int8, exported."""
    folders = [work / name for name in ("float", "int8", "onnx")]
    random_models.bert(hidden, layers)(folders[0])
    random_models.quantised("int8")(folders[0], folders[1])
    random_models.exported(folders[1], folders[2])
    return folders[2]


def sentence(session: Any, tokens: int) -> dict[str, NDArray[np.int64]]:
    """One sentence for the inputs a graph has, every array (1, tokens); token 1 throughout."""
    ones = np.ones((1, tokens), dtype=np.int64)
    names = [value.name for value in session.get_inputs()]
    return {name: np.zeros_like(ones) if name == "token_type_ids" else ones for name in names}


def roofline(graph: Path, tokens: int, threads: int, samples: int, work: Path) -> None:
    """Print the bounds, the profile by operator, and which bound comes nearest."""
    engine: Engine = OnnxEngine(graph, threads, batch_invariant=False)
    feed = sentence(engine.session, tokens)  # type: ignore[attr-defined]
    p50, p95 = np.percentile(timed({"model": engine}, feed, samples)["model"], [50, 95])
    events, nodes = profile(graph, feed, threads, samples, work)
    macs, weight_bytes, activation_bytes = work_of(graph, events)
    peak, bandwidth = gemm_peak(threads, work), copy_bandwidth(weight_bytes)
    launch = launch_ms(threads, work)
    bounds = {
        "arithmetic": macs / peak * 1e3,
        "memory": (weight_bytes + activation_bytes) / bandwidth * 1e3,
        "starting operators": nodes * launch,
    }
    wordings = {
        "arithmetic": f"{macs / 1e6:.1f} M multiply-adds, at {peak / 1e9:.0f} G/s (int8 product of 512 rows)",
        "memory": f"{weight_bytes / 1e6:.2f} MB of weights read, {activation_bytes / 1e6:.2f} MB of "
        f"activations, at {bandwidth / 1e9:.1f} GB/s (a copy of the weights)",
        "starting operators": f"{nodes} operators run, at {1e3 * launch:.1f} µs (a chain of {CHAIN} Add of "
        "one number)",
    }
    print(f"\nOne sentence of {tokens} tokens: p50 {p50:.3f} ms, p95 {p95:.3f} ms, {samples} runs.\n")
    print("| bound | from | ms | of p50 |\n|---|---|---:|---:|")
    for name, bound in bounds.items():
        print(f"| {name} | {wordings[name]} | {bound:.3f} | {100 * bound / p50:.0f} % |")
    print("\n| operator | nodes | ms, profiled | share |\n|---|---:|---:|---:|")
    found: dict[str, list[float]] = defaultdict(list)
    for node in events.values():
        found[node["operator"]].append(float(np.median(node["us"])) / 1e3)
    total = sum(map(sum, found.values()))
    for name, times in sorted(found.items(), key=lambda item: -sum(item[1])):
        print(f"| {name} | {len(times)} | {sum(times):.3f} | {100 * sum(times) / total:.0f} % |")
    most = max(bounds, key=lambda name: bounds[name])
    rest = p50 - sum(bounds.values())
    print(
        f"\nOf the three bounds {most} is the highest, {100 * bounds[most] / p50:.0f} % of p50; together "
        f"they are {100 * sum(bounds.values()) / p50:.0f} %, and the other {rest:.3f} ms are kernels that do "
        f"not reach the peak on {tokens} rows. Profiling adds to each operator: {total:.3f} ms in all."
    )


def timed(engines: Mapping[str, Engine], feed: Inputs, samples: int) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of every run of each engine, in turn."""
    times = time_in_turn(list(engines.values()), [[feed] * samples] * len(engines), warmup=20)
    return dict(zip(engines, times, strict=True))


def profile(
    graph: Path, feed: Inputs, threads: int, runs: int, work: Path
) -> tuple[dict[str, dict[str, Any]], int]:
    """ONNX Runtime's own profile: by node its operator, microseconds a run, and shapes; and the nodes run."""
    session = Session(graph, threads, enable_profiling=True, profile_file_prefix=str(work / "profile"))
    for _ in range(runs):
        session.run(feed)
    nodes: dict[str, dict[str, Any]] = {}
    for event in json.loads(Path(session.session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            given = event["args"]
            node = nodes.setdefault(event["name"], {"operator": given["op_name"], "us": [], **given})
            node["us"].append(event["dur"])
    return nodes, len(nodes)


def _shapes(described: list[dict[str, list[int]]]) -> list[list[int]]:
    return [next(iter(one.values())) for one in described]


def work_of(graph: Path, events: Mapping[str, Mapping[str, Any]]) -> tuple[int, int, int]:
    """Multiply-adds, bytes of weights and bytes of activations of one run, from the shapes of its profile.

    Of weights only those of products count: a look-up reads the rows of its tokens. An activation is what an
    operator writes, and is read once more.
    """
    proto = onnx.load(graph).graph
    tensors = {tensor.name: tensor for tensor in proto.initializer}
    matrices = {
        node.name: tensors[node.input[1]] for node in proto.node if set(node.input[1:2]) & set(tensors)
    }
    macs = weight_bytes = activation_bytes = 0
    for name, event in events.items():
        operator = event["operator"]
        activation_bytes += 2 * int(event["output_size"])
        if operator not in PRODUCTS | ATTENTIONS:
            continue
        inputs, outputs = _shapes(event["input_type_shape"]), _shapes(event["output_type_shape"])
        if operator in ATTENTIONS:
            batch, tokens, inner = outputs[0][:3]
            macs += 2 * batch * tokens * tokens * inner  # scores, and the sum of values
        if (matrix := matrices.get(name.removesuffix("_kernel_time"))) is not None:
            weights = int(np.prod(matrix.dims))
            macs += int(np.prod(inputs[0][:-1])) * weights
            weight_bytes += weights * (1 if matrix.data_type in EIGHT_BITS else 4)
    return macs, weight_bytes, activation_bytes


def gemm_peak(threads: int, work: Path, rows: int = 512, width: int = 1024) -> float:
    """Multiply-adds a second of a large uint8 × int8 product in ONNX Runtime, the best of 30."""
    weight = numpy_helper.from_array(np.ones((width, width), np.int8), "w")
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    path = _save(nodes, [weight], TensorProto.UINT8, TensorProto.INT32, [rows, width], work / "gemm.onnx")
    session = Session(path, threads).session
    feed = {"x": np.ones((rows, width), np.uint8)}
    return rows * width * width / _best_s(lambda: session.run(None, feed), 30)


def copy_bandwidth(size: int) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes, from whichever cache holds them, the best
    of 30; one thread."""
    source = np.ones(max(size, 1 << 16), dtype=np.uint8)
    target = np.empty_like(source)
    return 2 * source.nbytes / _best_s(lambda: np.copyto(target, source), 30)


def launch_ms(threads: int, work: Path) -> float:
    """Milliseconds of one operator on one number: the slope between chains of CHAIN and of one."""
    times = []
    for count in (1, CHAIN):
        one = numpy_helper.from_array(np.ones(1, np.float32), "one")
        names = ["x", *(f"v{i}" for i in range(count - 1)), "y"]
        nodes = [helper.make_node("Add", [names[i], "one"], [names[i + 1]]) for i in range(count)]
        path = _save(nodes, [one], TensorProto.FLOAT, TensorProto.FLOAT, [1], work / f"chain{count}.onnx")
        plain = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = Session(path, threads, graph_optimization_level=plain).session
        feed = {"x": np.ones(1, np.float32)}
        times.append(_median_s(lambda s=session, f=feed: s.run(None, f), 200))
    return (times[1] - times[0]) / (CHAIN - 1) * 1e3


def _save(nodes: list[Any], tensors: list[Any], kind: int, result: int, shape: list[int], path: Path) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", result, shape)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def _seconds(call: Any, count: int) -> list[float]:
    times = []
    for _ in range(count + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times[1:]


def _best_s(call: Any, count: int) -> float:
    return min(_seconds(call, count))


def _median_s(call: Any, count: int) -> float:
    return float(np.median(_seconds(call, count)))


def settings(graph: Path, tokens: int, threads: int, samples: int) -> None:
    """Print p50 and p95 with each session setting."""
    stop: dict[str, Any] = {"force_spinning_stop": "1"}
    engines: dict[str, Engine] = {f"as Pressoir opens it, {threads} threads": OnnxEngine(graph, threads)}
    if threads > 1:
        engines["as Pressoir opens it, 1 thread"] = OnnxEngine(graph, 1)
    engines |= {
        "spinning on between runs (ONNX Runtime's default)": Session(graph, threads),
        "no spinning at all": Session(graph, threads, intra_op__allow_spinning="0"),
        "no memory arena": Session(graph, threads, enable_cpu_mem_arena=False, **stop),
        "no memory pattern": Session(graph, threads, enable_mem_pattern=False, **stop),
        "I/O binding": Session(graph, threads, binding=True, **stop),
    }
    feed = sentence(engines[next(iter(engines))].session, tokens)  # type: ignore[attr-defined]
    times = timed(engines, feed, samples)
    print("\n| session | p50 ms | p95 ms | against the first |\n|---|---:|---:|---:|")
    first = np.median(next(iter(times.values())))
    for name, own in times.items():
        p50, p95 = np.percentile(own, [50, 95])
        print(f"| {name} | {p50:.3f} | {p95:.3f} | {100 * (p50 / first - 1):+.1f} % |")


if __name__ == "__main__":
    main()
