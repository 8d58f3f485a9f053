"""What is fuzzed: each class damages a valid example, and gives the steps in which the product uses it."""

import json
import shutil
from functools import partial

import numpy as np
import onnx
import yaml
from mutations import (
    NUMBERS,
    RAW,
    STRINGS,
    YAML,
    changed,
    damaged,
    json_text,
    other_file,
    to_json,
    yaml_text,
)
from onnx import TensorProto

from pressoir.config import examples
from pressoir.data import columns, first_recipe, layout, sentences
from pressoir.data.inspection import inspect, splits_of
from pressoir.evaluation import datasets
from pressoir.evaluation.config import DataSetConfig, EvaluationConfig
from pressoir.evaluation.estimates import footprint
from pressoir.formats import folder as folders
from pressoir.formats import (
    int8_checkpoint,
    onnx_weights,
    packed_checkpoint,
    packed_streams,
    packing,
    sharding,
    tensor_bytes,
    tensor_files,
)
from pressoir.formats.folder_check import check
from pressoir.formats.tokenizer_limit import most_tokens
from pressoir.formats.unsharding import unshard
from pressoir.inference.tokenizers.tokenizers import FastTokenizer, LanguageModelTokenizer
from pressoir.models import loading
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import DataConfig, ShardConfig
from pressoir.recipe_search.config import SearchConfig
from pressoir.registry.catalogue import Catalogue, Entry, ServingEntry, Urls, dump
from pressoir.registry.registry import Registry
from pressoir.reporting import LogReporter
from pressoir.serving.config import ServingConfig
from pressoir.serving.deployment import deployed
from pressoir.serving.http.chat import ChatTemplate
from pressoir.sources import describe, resolve, verify
from pressoir.stage import StageContext
from pressoir.stages import shard
from pressoir.store.artifact import read_artifact
from pressoir.store.store import Store

DOCUMENTS = [Recipe, EvaluationConfig, ServingConfig, SearchConfig]


def copied(example, own):
    """A model folder of the input, to be damaged."""
    return shutil.copytree(example, own / "input" / "model")


def edited(rng, path, own):
    """Damage a file of the input: mostly what a JSON file says, sometimes its bytes, seldom what it is."""
    kind = rng.randrange(12)
    if kind == 0:
        other_file(rng, path, own / "outside" / "file")
    elif kind < 3 or path.suffix != ".json":
        path.write_bytes(damaged(rng, path.read_bytes()))
    else:
        path.write_bytes(json_text(rng, json.loads(path.read_text(encoding="utf-8"))))


# --- configurations ---


class Configurations:
    """Recipes, and configurations of evaluations, servers and searches."""

    def __init__(self):
        self.examples = [
            (kind, path.read_text(encoding="utf-8"))
            for kind in DOCUMENTS
            for path in examples(kind.LABEL).values()
        ]

    def __call__(self, rng, own):
        kind, text = rng.choice(self.examples)
        path = own / "input" / "some.yaml"
        how = rng.randrange(12)
        if how == 0:
            path.write_bytes(damaged(rng, text.encode()))
        elif how == 1:
            path.touch()
            other_file(rng, path, own / "outside" / "file") if rng.randrange(2) else path.write_bytes(
                bytes(2 * 10**6)
            )
        elif how < 6:
            path.write_bytes(yaml_text(rng, text))
        else:
            tree = yaml.safe_load(text)
            if kind is Recipe and rng.randrange(2):
                tree = Recipe.from_dict(tree).model_dump(mode="json")
            path.write_bytes(to_json(changed(rng, tree)).encode("utf-8", "surrogatepass"))
        if path.is_fifo():  # from the command line a pipe is read until its end
            path.unlink()
        return [partial(self.use, kind, path)]

    @staticmethod
    def use(kind, path):
        document = kind.from_yaml(path)
        content = document.model_dump(mode="json")
        text = yaml.safe_dump(content, allow_unicode=True)
        text.encode()
        assert kind.from_dict(yaml.safe_load(text)) == document
        if kind is Recipe:
            resolve.check_reference(document.model)


class Overrides:
    """Values of `--set`."""

    def __init__(self):
        content = Recipe.from_yaml("demo").model_dump(mode="json")
        self.fields = [
            *self.names(content),
            "text.evaluation",
            "merge.models",
            "prune.target",
            "distill.student.layers",
        ]

    def names(self, tree, above=""):
        for key, value in tree.items():
            yield f"{above}{key}"
            if isinstance(value, dict):
                yield from self.names(value, f"{above}{key}.")

    def __call__(self, rng, own):
        override = f"{self.field(rng)}{rng.choice(['=', '=', '=', '==', ''])}{self.value(rng)}"
        return [lambda: Recipe.from_yaml("demo", [override]).to_yaml().encode()]

    def field(self, rng):
        field = rng.choice(self.fields)
        others = [f"{field}.x", f".{field}", "x." * 200 + field, field + rng.choice(STRINGS)]
        return field if rng.randrange(5) else rng.choice(others)

    def value(self, rng):
        kind = rng.randrange(6)
        if kind < 2:
            return rng.choice((YAML, RAW)[kind])
        if kind == 2:
            return str(rng.choice([*STRINGS, *NUMBERS]))
        if kind == 3:
            return to_json(changed(rng, [1, "a", {"b": [2.5]}]))
        return rng.choice(["1", "2", "0.5", "true", "null", "a", "{}", "[1, 2]"])


# --- weights ---


def with_header(rng, content):
    """A safetensors file whose header says something else, with or without its right length."""
    length = int.from_bytes(content[:8], "little")
    header = json_text(rng, json.loads(content[8 : 8 + length]))
    told = rng.choice(
        [len(header)] * 8 + [0, 7, len(header) - 1, len(header) + 1, len(content), 2**31, 2**63, 2**64 - 1]
    )
    return told.to_bytes(8, "little") + header + content[8 + length :]


def read_all(folder):
    for tensor in tensor_files.tensors_of(folder).values():
        tensor_files.read(tensor)


class Safetensors:
    """Weights, plain, int8 and packed, and the description of how they are quantised."""

    def __init__(self, plain, int8, packed):
        def dequantize(folder):
            return list(packed_checkpoint.dequantized_tensors(folder))

        self.models = [(plain, read_all), (int8, int8_checkpoint.dequantized_state), (packed, dequantize)]

    def __call__(self, rng, own):
        model, use = rng.choice(self.models)
        folder = copied(model, own)
        weights, description = folder / "model.safetensors", folder / "quantization.json"
        kind = rng.randrange(10)
        if kind == 0:
            edited(rng, weights, own)
        elif kind < 5 and description.exists():
            edited(rng, description, own)
        else:
            weights.write_bytes(with_header(rng, weights.read_bytes()))
        return [
            partial(folders.check_model_folder, folder, "some/model"),
            partial(read_all, folder),
            partial(check, folder),
            partial(use, folder),
            lambda: footprint.weights(folder, "pytorch", footprint.settings(folder)),
            *([partial(shard_into, folder, own)] if rng.randrange(8) == 0 else []),  # runs the model
        ]


def shard_into(folder, own):
    out, work = own / "output" / "cut", own / "output" / "work"
    for path in (out, work):
        path.mkdir()
    shard.run(
        {"model": folder}, ShardConfig(shards=2), StageContext(out, work, LogReporter(), seed=0, threads=1)
    )


def unshard_into(folder, own):
    out = own / "output" / "whole"
    out.mkdir()
    unshard(folder, out, LogReporter())


class Index:
    """`model.safetensors.index.json`."""

    def __init__(self, model):
        self.model = model

    def __call__(self, rng, own):
        folder = copied(self.model, own)
        (folder / sharding.MANIFEST).unlink()  # which has the index's digest
        edited(rng, folder / tensor_bytes.INDEX, own)
        return [
            partial(folders.check_model_folder, folder, "some/model"),
            partial(read_all, folder),
            partial(check, folder),
            lambda: footprint.weights(folder, "pytorch", footprint.settings(folder)),
            partial(resolve.resolve, str(folder), Store(own / "output" / "home")),
            *([partial(shard_into, folder, own)] if rng.randrange(8) == 0 else []),  # runs the model
        ]


class Manifests:
    """`shard_manifest.json` of checkpoints and graphs, and `artifact.json`."""

    def __init__(self, *sharded, artifact):
        self.sharded, self.artifact = sharded, artifact

    def __call__(self, rng, own):
        if rng.randrange(3) == 0:
            return self.artifacts(rng, own)
        folder = copied(rng.choice(self.sharded), own)
        edited(rng, folder / sharding.MANIFEST, own)
        return [
            partial(check, folder),
            partial(unshard_into, folder, own),
            lambda: verify.check(self.entry(folder), Store(own / "output" / "home"), fetch=False),
        ]

    @staticmethod
    def entry(folder):
        return Entry(
            id="x",
            name="x",
            type="causal-lm",
            size_mb=1,
            license="MIT",
            urls=Urls(base=str(folder), shards=("a",)),
        )

    def artifacts(self, rng, own):
        store = Store(own / "output" / "home")
        folder = shutil.copytree(self.artifact, store.root / self.artifact.parent.name / self.artifact.name)
        edited(rng, folder / "artifact.json", own)
        return [
            partial(read_artifact, folder),
            lambda: [store.verify(one) for one in store.artifacts()],
            partial(check, folder),
            lambda: store.collect(set(), 0.0, dry_run=True),
            lambda: resolve.resolve(f"store:{folder.parent.name}/{folder.name}", store),
        ]


class Graphs:
    """ONNX graphs: where their external data lie, their dimensions, their metadata."""

    ENTRIES = ("location", "offset", "length", "checksum")

    def __init__(self, *graphs):
        self.graphs = graphs

    def __call__(self, rng, own):
        folder = copied(rng.choice(self.graphs), own)
        path = folder / "model.onnx"
        if rng.randrange(6) == 0:
            edited(rng, rng.choice([path, *folder.glob("*.data"), *folder.glob("shard_*")]), own)
        else:
            model = onnx.load(path, load_external_data=False)
            for _ in range(rng.choice([1, 1, 3])):
                self.change(rng, model)
            path.write_bytes(model.SerializeToString())
        return [
            lambda: onnx_weights.check_places(onnx_weights.load(path), folder),
            partial(check, folder),
            partial(describe.check_graphs, folder, "some/model"),
            lambda: list(packed_streams.expand(path)),
            lambda: footprint.weights(folder, "onnxruntime", footprint.settings(folder)),
            partial(shard_into, folder, own),
        ]

    def change(self, rng, model):
        tensor, kind = rng.choice(model.graph.initializer), rng.randrange(9)
        if kind < 4:
            tensor.data_location = TensorProto.EXTERNAL
            entry = rng.choice(list(tensor.external_data) or [tensor.external_data.add()])
            entry.key = entry.key if rng.randrange(5) and entry.key else rng.choice(self.ENTRIES)
            entry.value = rng.choice(
                [*STRINGS, *map(str, NUMBERS), "model.onnx", "model.onnx.data", "config.json"]
            )
        elif kind == 4:
            tensor.dims[:] = rng.choice(
                [[], [0], [-1, 4], [2**62, 2], [2**31, 2**31], [1] * 70, [7], [*tensor.dims, 0]]
            )
        elif kind == 5:
            tensor.data_type = rng.choice([*range(24), 999, -1])
        elif kind == 6:
            tensor.name = rng.choice(STRINGS)
        elif kind == 7:
            tensor.raw_data = rng.choice([b"", b"x", bytes(1000)])
        else:
            del model.metadata_props[:]
            names = [*STRINGS, to_json(changed(rng, [tensor.name, "b"])), json.dumps([tensor.name])]
            onnx.helper.set_model_props(model, {packed_streams.KEY: rng.choice(names)})


# --- the registry, settings of models, data ---


class Models:
    """`models.json`, with models and deployed servers."""

    def __init__(self, text):
        self.tree = json.loads(text)

    def __call__(self, rng, own):
        home = own / "output" / "home"
        home.mkdir()
        path = home / "models.json"
        path.write_bytes(to_json(self.tree).encode())
        if rng.randrange(8):
            path.write_bytes(json_text(rng, self.tree))
        else:
            edited(rng, path, own)
        registry, store = Registry(home), Store(home)
        return [
            registry.content,
            registry.references,
            lambda: [verify.check(entry, store, fetch=False) for entry in registry.own().values()],
            lambda: registry.forget(lambda entry: verify.is_gone(entry, store), dry_run=True),
            lambda: [deployed(name, registry) for name in registry._own().serving],
            lambda: registry.put(
                "mine", lambda old: next(iter(registry.models().values())).model_copy(update={"id": "mine"})
            ),
            lambda: resolve.locate("mine", store, fetch=False),
            lambda: registry.remove("mine"),
        ]


def first(registry):
    return next(iter(registry.models().values()))


class Settings:
    """`config.json`, tokenizers and their settings."""

    NAMES = ("config.json", "tokenizer.json", "tokenizer_config.json")
    OTHERS = ("special_tokens_map.json", "generation_config.json", "chat_template.jinja")

    def __init__(self, classifier, language_model):
        self.models = [(classifier, loading.load_classifier), (language_model, loading.load_causal_lm)]

    def __call__(self, rng, own):
        model, load = rng.choice(self.models)
        folder = copied(model, own)
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        (folder / "README.md").write_text("---\nlicense: mit\n---\ntext\n")
        name = rng.choice([*self.NAMES * 3, *self.OTHERS])
        if rng.randrange(8) == 0:
            (folder / "README.md").write_bytes(
                b"---\n" + yaml_text(rng, "license: [mit, apache-2.0]\n") + b"\n---\n"
            )
        elif (folder / name).exists():
            edited(rng, folder / name, own)
        return [
            partial(folders.task_of, folder),
            partial(folders.declared_by, folder),
            partial(most_tokens, folder),
            partial(describe.license_of, folder),
            lambda: ChatTemplate(folder).render([{"role": "user", "content": "a"}]),
            lambda: LanguageModelTokenizer.open(folder).encode("good film"),
            lambda: FastTokenizer(folder)(["good film"]),
            partial(load, folder),
            lambda: self.work(footprint.settings(folder)),
        ]

    @staticmethod
    def work(config):
        for runtime in ("pytorch", "onnxruntime"):
            footprint.encoder(config, 16, runtime, fused=True)
            footprint.causal_lm(config, 16, runtime)
            footprint.translation(config, 16, 16, 1, runtime)


class Data:
    """Files of an evaluation's data: recordings, pairs, lines, texts."""

    TEXT = "the film was good\nthe book was bad\nüber\n"
    PAIRS = "a film\ta book\t2.5\na good meal\tgreat food\t4\n"
    ROWS = ("a {} film\t{}\n", '"a ""{}"", long film",{}\n', '{{"text": "a {} film", "label": "{}"}}\n')
    ENDINGS = (".tsv", ".csv", ".jsonl")
    RECORDINGS = ({"audio": "a.wav", "text": "zero one"}, {"audio": "b.wav", "text": "two"})

    def __call__(self, rng, own):
        folder = own / "input"
        for name in ("a.wav", "b.wav"):
            (folder / name).write_bytes(b"RIFF")
        for name, text in (("a.txt", self.TEXT), ("b.txt", self.TEXT), ("pairs.tsv", self.PAIRS)):
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "list.json").write_text(to_json(list(self.RECORDINGS)))
        tables = self.tables(folder, rng.randrange(3))
        text, pairs, recordings = folder / "a.txt", folder / "pairs.tsv", folder / "list.json"
        steps = {
            text: [
                partial(self.load, task="causal-lm", text=text),
                partial(self.load, task="translation", source=text, reference=folder / "b.txt"),
            ],
            pairs: [partial(self.load, task="feature-extraction", pairs=pairs)],
            recordings: [partial(self.load, task="automatic-speech-recognition", manifest=recordings)],
            tables.train: [partial(sentences.load, tables, 0), partial(self.recipe, tables.train)],
            tables.test: [partial(sentences.test_rows, tables, 0)],
        }
        path = rng.choice([*steps])
        edited(rng, path, own)
        if path.is_fifo() and path != recordings:  # text may come from a pipe, which is read until its end
            path.unlink()
        return steps[path]

    def tables(self, folder, kind):
        files = {split: folder / f"{split}{self.ENDINGS[kind]}" for split in ("train", "test")}
        for split, path in files.items():
            rows = (self.ROWS[kind].format(f"{split} {i}", ("good", "bad")[i % 2]) for i in range(20))
            path.write_text("".join(rows), encoding="utf-8")
        columns = {} if kind == 2 else {"header": False, "text_column": 0, "label_column": 1}
        return DataConfig(source="files", **files, validation_samples=2, **columns)

    @staticmethod
    def load(**config):
        datasets.load(DataSetConfig(**config))

    @staticmethod
    def recipe(path):
        """What `pressoir init` does, with a recipe that is not written."""
        files, output = splits_of([f"train={path}"]), path.with_name("recipe.yaml")
        found = layout.find(path)
        inspected = inspect(files, found, columns.choose(found.columns, found.rows), None)
        first_recipe.check(first_recipe.recipe_text(inspected, "fuzzed", "model", output), output)


# --- examples ---


def make_graph(folder):
    """A graph whose weights lie beside it, one of them as a 3-bit stream, and one in it."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 8)).astype(np.float32).tobytes()
    stream = packing.pack(rng.integers(0, 8, (6, 64), dtype=np.uint8), 3).tobytes()
    places = [
        ("weight", [8, 8], TensorProto.FLOAT, 0, len(weight)),
        ("tied", [8, 8], TensorProto.FLOAT, 0, len(weight)),
        ("stream", [6, 2, 16], TensorProto.UINT8, len(weight), len(stream)),
    ]
    initializers = [onnx.numpy_helper.from_array(np.ones((2, 8), np.float32), "bias")]
    for name, dims, kind, offset, length in places:
        tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        initializers.append(tensor)
    steps = [
        ("MatMul", "x", "weight"),
        ("Add", "MatMul", "bias"),
        ("Mul", "Add", "tied"),
        ("Gather", "Mul", "stream"),
    ]
    nodes = [onnx.helper.make_node(kind, [a, b], [kind]) for kind, a, b in steps]
    ends = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "Gather")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers))
    onnx.helper.set_model_props(model, {packed_streams.KEY: json.dumps(["stream"])})
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.onnx.data").write_bytes(weight + stream)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


def registry_text(model):
    """A registry with two models and a deployed server."""
    entry = Entry(
        id="a",
        name="A",
        type="causal-lm",
        size_mb=1.5,
        license="MIT",
        urls=Urls(
            base=str(model),
            mirrors=("hub:org/name", "store:shard/" + "0" * 64),
            shards=("shard_00.safetensors",),
        ),
        digest="1" * 64,
        weights_sha256="2" * 64,
        metrics={"perplexity": 21.5},
        quantization="q4",
        lineage={"teacher": "3" * 64},
        created_at="2026-01-01T00:00:00+00:00",
    )
    server = ServingEntry(
        id="shop",
        config=ServingConfig.from_dict({"tiers": {"basic": {"model": "a"}}}).model_dump(mode="json"),
        digests={"basic": "1" * 64},
        artifacts={"basic": "4" * 64},
    )
    models = {"a": entry, "b": entry.model_copy(update={"id": "b", "urls": Urls(base="hub:org/name@main")})}
    return dump(Catalogue(models=models, serving={"shop": server}))
