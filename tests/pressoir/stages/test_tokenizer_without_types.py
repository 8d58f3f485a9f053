"""A BERT whose tokenizer gives no `token_type_ids`, as those of multilingual MiniLM and E5, in all stages."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from pressoir.benchmark.classifier_report import Benchmark
from pressoir.data import sentences
from pressoir.inference.engines.classifier import OnnxEngine
from pressoir.inference.text_classification import TextClassifier, softmax
from pressoir.models import loading
from pressoir.recipe.sections import (
    BenchmarkConfig,
    DistillConfig,
    ExportConfig,
    OutputsConfig,
    QuantizeConfig,
    TeacherConfig,
)
from pressoir.serving.worker.worker_model import LoadJob, open_classifier
from pressoir.stages import benchmark, distill, export, quantize, teacher, teacher_outputs

TEXTS = ["the film was good", "the song was awful and the hotel was grim and cold", "bad"]


@pytest.fixture(scope="module")
def multilingual(tiny_bert, tiny_data, tmp_path_factory):
    """Folder of the tiny BERT with a Unigram tokenizer of XLM-R's kind: `<s> … </s>`, padding token 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("multilingual")
    words = sorted(
        {f"▁{w}" for text in sentences.load_split(tiny_data, "train")["text"] for w in text.split()}
    )
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *words]
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "cls_token": "<s>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        **names,
    ).save_pretrained(folder)
    model = loading.load_encoder(tiny_bert)
    model.resize_token_embeddings(len(pieces))
    loading.save_model(model, folder)
    return folder


def answer(steps):
    """What the worker's operation returns in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value[0]


def test_every_stage_and_the_server_take_it(multilingual, tiny_data, context, no_cold_starts):
    made = {"data": tiny_data}

    def step(name, module, config, **inputs):
        own = dataclasses.replace(context, out_dir=context.out_dir / name, work_dir=context.work_dir / name)
        for folder in (own.out_dir, own.work_dir):
            folder.mkdir()
        module.run(inputs, config, own)
        made[name] = own.out_dir

    fast = {"epochs": 1, "batch_size": 32, "learning_rate": 3e-3}
    step("teacher", teacher, TeacherConfig(**fast), model=multilingual, data=tiny_data)
    taught = {"teacher": made["teacher"], "data": tiny_data}
    step("outputs", teacher_outputs, OutputsConfig(hidden=True, student=None), **taught)
    step("distill", distill, DistillConfig(**fast, student={"layers": 4}), outputs=made["outputs"], **taught)
    step("onnx", export, ExportConfig(), model=made["distill"], data=tiny_data)
    config = QuantizeConfig(max_accuracy_drop=None)
    step("quantize", quantize, config, model=made["distill"], data=tiny_data)
    step("int8", export, ExportConfig(), model=made["quantize"], data=tiny_data)
    rows = {name: made[name] for name in ("teacher", "onnx", "int8")}
    step("benchmark", benchmark, BenchmarkConfig(latency_samples=10, warmup=0), data=tiny_data, **rows)
    report = Benchmark.read(made["benchmark"] / "benchmark.json")
    assert [row.runtime for row in report.rows] == ["pytorch", "onnxruntime", "onnxruntime"]

    tokenizer = transformers.AutoTokenizer.from_pretrained(made["distill"])
    assert "token_type_ids" not in tokenizer(TEXTS)
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(made["distill"]).eval()
    with torch.no_grad():
        expected = model(**encoded).logits.numpy()
    graph = TextClassifier.open(made["onnx"], 1)
    assert "token_type_ids" in {value.name for value in graph.engine.session.get_inputs()}
    by_python = TextClassifier(OnnxEngine(made["onnx"] / "model.onnx", 1), tokenizer, graph.labels)
    for found in (graph.logits(TEXTS), by_python.logits(TEXTS)):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    names = {"name": "m", "digest": "", "task": "text-classification", "runtime": "onnxruntime"}
    served = open_classifier(LoadJob(folder=made["onnx"], threads=1, **names))
    steps = served.operations["classify"](texts=TEXTS, max_length=None, max_tokens=0)
    np.testing.assert_allclose(answer(steps)["probabilities"], softmax(expected), atol=1e-4)
