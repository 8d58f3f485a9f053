"""Vocabulary pruning: what stays, that nothing changes for text it covers, and that any text can be split."""

import dataclasses
import json
import random
import string
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as kinds
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pressoir.benchmark.size import size_mb
from pressoir.data import sentences
from pressoir.errors import SourceError
from pressoir.inference.engines.classifier import OnnxEngine
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.tokenizers.tokenizers import FastTokenizer
from pressoir.models import loading
from pressoir.models.layouts import count_parameters
from pressoir.pruning import vocabulary
from pressoir.recipe.sections import (
    DataConfig,
    DistillConfig,
    ExportConfig,
    OutputsConfig,
    QuantizeConfig,
    StudentConfig,
    TeacherConfig,
    VocabularyConfig,
)
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import distill, export, quantize, teacher, teacher_outputs
from pressoir.stages import vocabulary as stage

GOOD, BAD = "good great lovely charming".split(), "bad awful dull boring".split()
NOUNS, ANIMALS = "film book meal song".split(), "zebra giraffe flamingo otter".split()
SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "albert", "deberta-v2")
MAX_TOKENS = 24


def sentence(rng, label, nouns):
    words = GOOD if label else BAD
    return f"the {rng.choice(nouns)} was {rng.choice(words)} and the {rng.choice(nouns)} {rng.choice(words)}"


def corpus(count, nouns, seed=0):
    """Different sentences and their labels; the words decide."""
    rng, rows = random.Random(seed), {}
    while len(rows) < count:
        label = len(rows) % 2
        rows.setdefault(sentence(rng, label, nouns), label)
    return list(rows.items())


TEXTS = [text for text, _ in corpus(300, NOUNS + ANIMALS)]


@pytest.fixture(scope="session")
def lessons(tmp_path_factory):
    """`lessons(unlabelled=None)`: a data folder without animals in train; half of validation has some."""
    made = {}

    def make(unlabelled=None, max_tokens=MAX_TOKENS):
        if (unlabelled, max_tokens) not in made:
            folder = tmp_path_factory.mktemp("lessons")
            plain, wild = corpus(200, NOUNS), corpus(40, ANIMALS, seed=1)
            splits = {"train": plain[:120], "validation": plain[120:160] + wild, "test": plain[160:]}
            for split, rows in splits.items():
                lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in rows)]
                (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
            files = {split: folder / f"{split}.tsv" for split in splits}
            if unlabelled:
                files["unlabelled"] = folder / "unlabelled.txt"
                files["unlabelled"].write_text(unlabelled + "\n")
            config = DataConfig(source="files", max_tokens=max_tokens, **files)
            (folder / "data").mkdir()
            sentences.save(sentences.load(config, 0), folder / "data", max_tokens)
            made[unlabelled, max_tokens] = folder / "data"
        return made[unlabelled, max_tokens]

    return make


def word_piece(folder, name):
    from tokenizers import normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast, DistilBertTokenizerFast

    words = [*SPECIAL, *string.ascii_lowercase, *GOOD, *ANIMALS, "the", "was", *NOUNS, *BAD, "and", *"!é["]
    words += [f"##{part}" for part in (*string.ascii_lowercase, *"é0]", "ing", "ra", "er")]
    backend = Tokenizer(kinds.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    kind = {"bert": BertTokenizerFast, "distilbert": DistilBertTokenizerFast}[name]
    kind(tokenizer_object=backend, strip_accents=False, model_max_length=64).save_pretrained(folder)
    return {"vocab_size": len(words), "max_position_embeddings": 64, "pad_token_id": 0}


def byte_level(folder):
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import RobertaTokenizerFast

    trained = ByteLevelBPETokenizer(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TEXTS, vocab_size=420, special_tokens=special, show_progress=False)
    backend = trained._tokenizer
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = RobertaTokenizerFast(tokenizer_object=backend, model_max_length=64)
    tokenizer.save_pretrained(folder)
    return {"vocab_size": len(tokenizer), "max_position_embeddings": 66, "pad_token_id": 1}


# Of each type of model with a Unigram tokenizer: its first tokens, and its settings.
UNIGRAM = {
    "xlm-roberta": (("<s>", "<pad>", "</s>", "<unk>", "<mask>"), {"max_position_embeddings": 66}),
    "albert": (("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), {"embedding_size": 16}),
    "deberta-v2": (
        ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"),
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
}


def unigram(folder, kind):
    from tokenizers import decoders, pre_tokenizers, processors
    from transformers import AlbertTokenizerFast, DebertaV2TokenizerFast, XLMRobertaTokenizerFast

    *special, mask = UNIGRAM[kind][0]
    ids = {token: index for index, token in enumerate(special)}
    pad, unknown = (next(t for t in special if name in t.lower()) for name in ("pad", "unk"))
    first, last = (token for token in special if token not in (pad, unknown))
    words = [f"▁{word}" for word in (*GOOD, *ANIMALS, "the", "was", *NOUNS, *BAD, "and")]
    scores = dict.fromkeys(special, 0.0)
    scores |= {piece: -3.0 - place / 10 for place, piece in enumerate([*words, "ing", "ra", "er"])}
    scores |= {letter: -9.0 - place / 10 for place, letter in enumerate([*"▁é", *string.ascii_lowercase])}
    scores |= {"rest": -30.0, mask: 0.0}  # the lowest, of a piece that nothing uses
    backend = Tokenizer(kinds.Unigram(list(scores.items()), unk_id=ids[unknown]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, ids[first]), (last, ids[last])],
    )
    classes = (XLMRobertaTokenizerFast, AlbertTokenizerFast, DebertaV2TokenizerFast)
    own = dict(zip(UNIGRAM, classes, strict=True))[kind]
    tokenizer = own(tokenizer_object=backend, model_max_length=64)
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": ids[pad]}
    return sizes | {"bos_token_id": ids[first], "eos_token_id": ids[last]} | UNIGRAM[kind][1]


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """`classifier(family)`: folder of a random 4-layer classifier with a tokenizer that knows animals."""
    from transformers import (
        AlbertConfig,
        BertConfig,
        DebertaV2Config,
        DistilBertConfig,
        RobertaConfig,
        XLMRobertaConfig,
    )

    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            builders = {"roberta": byte_level, **{kind: partial(unigram, kind=kind) for kind in UNIGRAM}}
            sizes = builders[name](folder) if name in builders else word_piece(folder, name)
            own = {
                "bert": BertConfig,
                "distilbert": DistilBertConfig,
                "roberta": RobertaConfig,
                "xlm-roberta": XLMRobertaConfig,
                "albert": AlbertConfig,
                "deberta-v2": DebertaV2Config,
            }[name]
            if name == "distilbert":
                sizes |= {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64}
            else:
                sizes |= {"hidden_size": 32, "num_hidden_layers": 4}
                sizes |= {"num_attention_heads": 4, "intermediate_size": 64}
            torch.manual_seed(0)
            model = loading.new_classifier(own(**sizes, id2label={0: "0", 1: "1"}, label2id={"0": 0, "1": 1}))
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    torch.nn.init.normal_(parameter, std=0.2)
            loading.save_model(model, folder)
            made[name] = folder
        return made[name]

    return make


@pytest.fixture(scope="session")
def cut(classifier, lessons, tmp_path_factory):
    """`cut(family, **settings)`: the stage's folder and figures for `lessons()`, made once."""
    made = {}

    def make(family, **settings):
        key = family, *sorted(settings.items())
        if key not in made:
            root = tmp_path_factory.mktemp(f"cut-{family}")
            context = StageContext(root, root, LogReporter(), seed=0, threads=2)
            made[key] = press(classifier(family), lessons(), context, **settings)
        return made[key]

    return make


def fresh(context, name):
    """The same context with an output and a work folder of its own."""
    out, work = context.out_dir / name, context.work_dir / f"{name}-work"
    out.mkdir()
    work.mkdir()
    return dataclasses.replace(context, out_dir=out, work_dir=work)


def press(folder, lessons, context, **settings):
    """Run the stage; return its folder and its figures."""
    own = fresh(context, "vocabulary")
    inputs = {"model": folder, "data": lessons}
    return own.out_dir, stage.run(inputs, VocabularyConfig(**settings), own)


def backend(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def split(folder, text):
    tokenizer = backend(folder)
    tokenizer.no_truncation()
    return tokenizer.encode(text).tokens


def logits(folder, texts):
    model, tokenizer = loading.load_classifier(folder), loading.load_tokenizer(folder)
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def train_texts(lessons):
    return sentences.load_split(lessons, "train")["text"][:]


# --- what stays ---


def test_used_pieces_special_tokens_and_single_characters_stay_in_their_order(classifier, lessons, cut):
    out, figures = cut("bert")
    old, new = (json.loads((f / "tokenizer.json").read_text()) for f in (classifier("bert"), out))
    used = {token for text in train_texts(lessons()) for token in split(classifier("bert"), text)}
    single = {p for p in old["model"]["vocab"] if len(p.removeprefix("##")) == 1}
    expected = used | single | {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert list(new["model"]["vocab"]) == [p for p in old["model"]["vocab"] if p in expected]
    assert list(new["model"]["vocab"].values()) == list(range(len(expected)))
    gone = set(old["model"]["vocab"]) - expected
    assert gone == {"[unused0]", *ANIMALS, "##ing", "##ra", "##er"}
    assert (figures["pieces_before"], figures["pieces"], figures["pieces_dropped"]) == (
        len(old["model"]["vocab"]),
        len(expected),
        len(gone),
    )


def test_pieces_of_unlabelled_text_stay_too(classifier, lessons, context):
    out, _ = press(classifier("bert"), lessons("a giraffe\nan otter!"), context)
    kept = backend(out).get_vocab()
    assert {"giraffe", "otter"} <= kept.keys()
    assert not {"zebra", "flamingo"} & kept.keys()


def test_rare_pieces_go_with_a_larger_count_and_their_words_are_spelt(classifier, lessons, context):
    folder = lessons("a giraffe\none otter\nanother otter")
    out, figures = press(classifier("bert"), folder, context, min_count=2)
    assert split(out, "otter giraffe") == [
        *("[CLS]", "otter", "g"),
        *("##i", "##r", "##a", "##f", "##f", "##e", "[SEP]"),
    ]
    assert figures["train_token_coverage"] < 1
    assert figures["train_length_ratio"] > 1


def test_a_character_that_stands_only_inside_longer_pieces_keeps_them(classifier):
    old = json.loads((classifier("bert") / "tokenizer.json").read_text())
    words = [w for w in old["model"]["vocab"] if w not in ("##z", "z")]  # zebra can begin, no word go on
    content = {**old, "model": old["model"] | {"vocab": {word: i for i, word in enumerate(words)}}}
    kept = {words[i] for i in vocabulary.needed(content, [])}
    assert "zebra" in kept
    assert not {"otter", "giraffe", "good"} & kept


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_the_old_rows_bit_for_bit_and_nothing_else_changes(family, classifier, cut):
    out, figures = cut(family, positions=False)
    old, new = loading.load_classifier(classifier(family)), loading.load_classifier(out)
    before, after = backend(classifier(family)).get_vocab(), backend(out).get_vocab()
    rows = [before[piece] for piece in sorted(after, key=after.__getitem__)]
    assert torch.equal(new.get_input_embeddings().weight, old.get_input_embeddings().weight[rows])
    theirs = old.state_dict()
    for name, tensor in new.state_dict().items():
        assert name.endswith("word_embeddings.weight") or torch.equal(tensor, theirs[name])
    assert new.config.vocab_size == len(after) < len(before)
    tokenizer = loading.load_tokenizer(out)
    assert new.config.pad_token_id == tokenizer.pad_token_id == new.get_input_embeddings().padding_idx
    assert figures["parameters"] == count_parameters(new) < figures["parameters_before"]


# --- text that is covered ---


@pytest.mark.parametrize("family", FAMILIES)
def test_covered_text_gets_the_same_pieces_and_the_same_logits(family, classifier, lessons, cut):
    out, figures = cut(family)
    texts = train_texts(lessons())
    for text in texts:
        assert split(out, text) == split(classifier(family), text)
    torch.testing.assert_close(
        logits(out, texts[:32]), logits(classifier(family), texts[:32]), rtol=0, atol=1e-6
    )
    assert figures["train_token_coverage"] == figures["train_sentence_coverage"] == 1
    assert figures["train_length_ratio"] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_and_the_tokenizers_library_read_the_same_tokenizer(family, classifier, lessons, cut):
    out, _ = cut(family)
    theirs = AutoTokenizer.from_pretrained(out)
    texts = [*train_texts(lessons())[:20], "a zebra, an otter: naïve é 電!", "the film " * 40]
    expected = theirs(texts, padding=True, truncation=True, return_tensors="np")
    found = FastTokenizer(out)(texts)
    assert theirs.is_fast
    assert type(theirs) is type(AutoTokenizer.from_pretrained(classifier(family)))
    assert theirs.model_max_length == MAX_TOKENS == expected["input_ids"].shape[1]
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    for name, token in theirs.special_tokens_map.items():
        assert backend(out).token_to_id(token) == getattr(theirs, f"{name}_id")


# --- any text ---


def words_of(seed, count=300):
    """Random words of letters, other scripts and symbols."""
    rng = random.Random(seed)
    letters = string.ascii_letters * 3 + "éèñß電車кот!?-#0123456789"
    return ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("min_count", [1, 1000])
def test_no_word_becomes_unknown_that_was_known(family, min_count, classifier, cut):
    out, _ = cut(family, min_count=min_count)
    old, new = backend(classifier(family)), backend(out)
    unknown = loading.load_tokenizer(out).unk_token
    compared = 0
    for word in [*words_of(3), *ANIMALS, *GOOD, "restarting", "bookworm"]:
        before, after = old.encode(word).tokens, new.encode(word).tokens
        assert after.count(unknown) == before.count(unknown), word
        compared += before != after
    assert compared  # or nothing was put to the test


def test_byte_level_text_comes_back_whole(cut):
    out, _ = cut("roberta")
    tokenizer = loading.load_tokenizer(out)
    for text in ("the zebra was great", "naïve 電車 🦓 кот", *words_of(5, 20)):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_merges_that_lead_to_no_kept_piece_are_gone(classifier, cut):
    out, _ = cut("roberta")
    old, new = (json.loads((f / "tokenizer.json").read_text())["model"] for f in (classifier("roberta"), out))
    kept = [pair for pair in old["merges"] if "".join(pair) in new["vocab"]]
    assert new["merges"] == kept
    assert 0 < len(kept) < len(old["merges"])
    reached = {"".join(pair) for pair in kept}
    assert {piece for piece in new["vocab"] if len(piece) > 1 and piece[0] != "<"} == reached


def test_the_cost_of_an_unknown_character_stays_what_it_was(classifier, cut):
    out, _ = cut("xlm-roberta", min_count=1000)
    old, new = (
        [score for _, score in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]]
        for folder in (classifier("xlm-roberta"), out)
    )
    assert min(new) == min(old)
    assert len(new) < len(old)


# --- positions ---


@pytest.mark.parametrize(("family", "before", "after"), [("bert", 64, 24), ("roberta", 66, 26)])
def test_positions_are_cut_to_what_a_sentence_may_have(family, before, after, classifier, cut):
    folder, (out, figures) = classifier(family), cut(family)
    old, new = loading.load_classifier(folder), loading.load_classifier(out)
    name = f"{old.base_model_prefix}.embeddings.position_embeddings.weight"
    assert torch.equal(new.state_dict()[name], old.state_dict()[name][:after])
    assert (figures["positions_before"], figures["positions"]) == (before, after)
    assert new.config.max_position_embeddings == after
    assert loading.load_tokenizer(out).model_max_length == FastTokenizer(out).model_max_length == MAX_TOKENS
    long = ["the film was good and " * 20]
    shown = {}
    for each in (folder, out):
        tokenizer, model = loading.load_tokenizer(each), loading.load_classifier(each)
        batch = tokenizer(long, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.no_grad():
            shown[each] = model(**batch).logits
    torch.testing.assert_close(shown[out], shown[folder], rtol=0, atol=1e-6)


def test_positions_stay_where_that_is_asked_or_where_there_are_no_more(classifier, lessons, context, cut):
    out, figures = cut("bert", positions=False)
    assert figures["positions"] == 64
    assert loading.load_tokenizer(out).model_max_length == 64
    out, figures = press(classifier("bert"), lessons(max_tokens=200), context)
    assert figures["positions"] == 64
    assert loading.load_tokenizer(out).model_max_length == 64


# --- what is reported ---


def test_coverage_counts_tokens_and_sentences_that_stay_as_they_were(classifier):
    folder = classifier("bert")
    content = json.loads((folder / "tokenizer.json").read_text())
    known = vocabulary.pieces(content)
    ids = vocabulary.needed(content, [known[word] for word in ("the", "film", "was")])
    fewer = Tokenizer.from_str(json.dumps(vocabulary.cut(content, ids)))
    found = vocabulary.coverage(backend(folder), fewer, ["the film was", "the zebra was bad"])
    # zebra becomes five letters, bad three; the, film, was, the, was stay
    assert found == vocabulary.Coverage(tokens=5 / 7, sentences=1 / 2, length=13 / 7)


def test_validation_measures_and_does_not_decide(classifier, lessons, cut):
    out, figures = cut("bert")
    rows = sentences.load_split(lessons(), "validation")["text"][:]
    tokens = [split(classifier("bert"), text)[1:-1] for text in rows]
    alike = sum(word not in ANIMALS for sentence in tokens for word in sentence)
    assert figures["validation_token_coverage"] == alike / sum(map(len, tokens))
    assert figures["validation_sentence_coverage"] == 0.5
    assert figures["validation_length_ratio"] > 1
    assert json.loads((out / "vocabulary.json").read_text()) == figures
    assert figures["size_mb"] == size_mb(out) < figures["size_mb_before"]


def test_the_test_split_is_not_read_and_coverage_is_told(classifier, lessons, context, tmp_path, reporter):
    for name in ("train.jsonl", "validation.jsonl", "data.json"):
        (tmp_path / name).write_bytes((lessons() / name).read_bytes())
    press(classifier("bert"), tmp_path, context)
    [message] = reporter.messages
    assert "50.00% of the sentences are tokenised as before" in message


# --- files ---


def test_a_tokenizer_is_saved_without_white_space_and_loads_the_same(classifier, tmp_path):
    for family in FAMILIES:
        folder = tmp_path / family
        tokenizer = loading.load_tokenizer(classifier(family))
        loading.save_tokenizer(tokenizer, folder)
        content = (folder / "tokenizer.json").read_text()
        assert "\n" not in content
        assert '": ' not in content
        assert json.loads(content) == json.loads((classifier(family) / "tokenizer.json").read_text())
        again = loading.load_tokenizer(folder)
        assert again.get_vocab() == tokenizer.get_vocab()
        texts = ["the zebra was naïve 電", *TEXTS[:20]]
        assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_a_sentencepiece_model_with_the_old_pieces_is_not_shipped(classifier, lessons, context, tmp_path):
    for path in classifier("xlm-roberta").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"the old pieces")
    out, _ = press(tmp_path, lessons(), context)
    assert not (out / "sentencepiece.bpe.model").exists()


def test_cutting_again_changes_nothing(lessons, context, cut):
    once, _ = cut("roberta")
    twice, figures = press(once, lessons(), context)
    assert figures["pieces_dropped"] == 0
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        assert (twice / name).read_bytes() == (once / name).read_bytes()


def test_plain_transformers_loads_the_model(classifier, lessons, cut):
    out, _ = cut("distilbert")
    text = train_texts(lessons())[:4]
    model, tokenizer = (
        kind.from_pretrained(out) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    with torch.no_grad():
        found = model(**tokenizer(text, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(found, logits(classifier("distilbert"), text), rtol=0, atol=1e-6)


# --- what cannot be cut ---


def copied(source, target):
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_another_kind_of_tokenizer_is_refused_with_the_kinds_that_are_not(
    classifier, lessons, context, tmp_path
):
    folder = copied(classifier("bert"), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": "WordLevel", "vocab": content["model"]["vocab"], "unk_token": "[UNK]"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"WordLevel tokenizer cannot be pruned.*WordPiece, BPE, Unigram"):
        press(folder, lessons(), context)


def test_a_tokenizer_that_splits_at_random_is_refused(classifier, lessons, context, tmp_path):
    folder = copied(classifier("roberta"), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match="cannot be pruned: without the unused tokens"):
        press(folder, lessons(), context)


def test_a_tokenizer_with_more_pieces_than_the_model_has_embeddings_is_refused(
    classifier, lessons, context, tmp_path
):
    folder = copied(classifier("bert"), tmp_path)
    model = loading.load_classifier(folder)
    model.resize_token_embeddings(60)
    loading.save_model(model, folder)
    with pytest.raises(SourceError, match="60 embeddings, but its tokenizer has a token with id"):
        press(folder, lessons(), context)


# --- the whole chain ---


def test_teacher_vocabulary_student_int8_and_graph_work_together(classifier, lessons, context):
    taught, outputs, student, packed, graph = (
        fresh(context, name) for name in ("teacher", "outputs", "student", "int8", "onnx")
    )
    folder = lessons()
    teacher.run({"model": classifier("bert"), "data": folder}, TeacherConfig(checkpoint="bert"), taught)
    pressed, _ = press(taught.out_dir, folder, context)
    inputs = {"teacher": pressed, "data": folder}
    layers = StudentConfig(layers=2)
    teacher_outputs.run(inputs, OutputsConfig(hidden=True, student=layers), outputs)
    inputs["outputs"] = outputs.out_dir
    distill.run(inputs, DistillConfig(student=layers, epochs=1, batch_size=16), student)
    quantize.run({"model": student.out_dir, "data": folder}, QuantizeConfig(scheme="int8"), packed)
    loose = ExportConfig(min_label_agreement=0.9)  # random weights feel int8 more than trained ones
    export.run({"model": packed.out_dir, "data": folder}, loose, graph)

    exported = TextClassifier.open(graph.out_dir, 1)
    assert isinstance(exported.engine, OnnxEngine)
    texts = [*sentences.load_split(folder, "test")["text"], "a zebra nobody ever saw, 電"]
    found = exported.logits(texts)
    assert set(found.argmax(axis=1)) == {0, 1}
    expected = logits(student.out_dir, texts).numpy()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
    assert (graph.out_dir / "tokenizer.json").read_bytes() == (pressed / "tokenizer.json").read_bytes()
    assert loading.load_config(graph.out_dir).vocab_size == loading.load_config(pressed).vocab_size
