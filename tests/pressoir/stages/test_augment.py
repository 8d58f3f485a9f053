"""Augment: what may be replaced and by what, the teacher's labels, and nothing of validation or test."""

import dataclasses
import json
import random

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, PreTrainedTokenizerFast

from pressoir.data import sentences
from pressoir.errors import RecipeError, SourceError
from pressoir.models import loading
from pressoir.recipe.sections import AugmentConfig, DataConfig, OutputsConfig, StudentConfig
from pressoir.stages import augment, teacher_outputs
from pressoir.training import augmentation

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="session")
def tiny_masked_lm(tiny_bert, tmp_path_factory):
    """Folder of a random 2-layer BERT with a masked-LM head, and the tokenizer of `tiny_bert`."""
    folder = tmp_path_factory.mktemp("tiny-masked-lm")
    tokenizer = loading.load_tokenizer(tiny_bert)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertForMaskedLM(config)
    for parameter in model.parameters():  # so that its expectations differ from place to place
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    loading.save_model(model, folder)
    loading.save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def wavering_teacher(tiny_classifier, tiny_data, tmp_path_factory):
    """`tiny_classifier`, its head made so that it gives about half of the sentences either label, clearly."""
    folder = tmp_path_factory.mktemp("wavering-teacher")
    model, tokenizer = loading.load_classifier(tiny_classifier), loading.load_tokenizer(tiny_classifier)
    with torch.no_grad():
        model.classifier.weight *= 1000
        logits = _logits(model, tokenizer, sentences.load_split(tiny_data, "train")["text"][:])
        model.classifier.bias[1] += (logits[:, 0] - logits[:, 1]).median()
    loading.save_model(model, folder)
    loading.save_tokenizer(tokenizer, folder)
    return folder


def _logits(model, tokenizer, texts):
    encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**encoded).logits


def texts_of(folder, split):
    return sentences.load_split(folder, split)["text"][:]


def small_data(folder, train, validation, test, unlabelled=None, max_tokens=32):
    """A saved data folder of given sentences, labelled in turn."""
    folder.mkdir()
    paths = {}
    for split, texts in zip(SPLITS, (train, validation, test), strict=True):
        lines = [
            json.dumps({"text": text, "label": ("negative", "positive")[i % 2]})
            for i, text in enumerate(texts)
        ]
        paths[split] = folder / f"{split}-source.jsonl"
        paths[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    if unlabelled is not None:
        paths["unlabelled"] = folder / "unlabelled.txt"
        paths["unlabelled"].write_text("\n".join(unlabelled) + "\n", encoding="utf-8")
    sentences.save(sentences.load(DataConfig(source="files", **paths), seed=0), folder, max_tokens)
    return folder


@pytest.fixture
def run(context, wavering_teacher):
    """`run(model, data, **config)`: the folder that the stage wrote, and its metrics."""
    made = iter(range(100))

    def one(model, folder, seed=0, **config):
        out = context.out_dir / str(next(made))
        out.mkdir()
        own = dataclasses.replace(context, out_dir=out, seed=seed)
        inputs = {"model": model, "teacher": wavering_teacher, "data": folder}
        return out, augment.run(inputs, AugmentConfig(**config), own)

    return one


def word_pieces(*words):
    """An uncased WordPiece tokenizer of these pieces, split as BERT's."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    backend = Tokenizer(tokenizer_models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


def replaceable(text, tokenizer):
    (sentence,) = augmentation.sentences([text], tokenizer)
    return [word.text for word in sentence.replaceable]


# --- which words ---


def test_negations_function_words_contractions_numbers_and_punctuation_stay():
    tokenizer = word_pieces("film", "good", "dull", "isn", "don")
    text = "The film isn't GOOD: I don't, can't and never would; 3 films, b2b, 'dull' & no café…"
    assert replaceable(text, tokenizer) == ["film", "GOOD", "films", "dull", "café"]


def test_a_word_is_all_its_pieces():
    tokenizer = word_pieces("book", "##keep", "##ing", "good")
    (sentence,) = augmentation.sentences(["Good bookkeeping!"], tokenizer)
    good, keeping = sentence.replaceable
    assert (good.is_one_piece, keeping.is_one_piece) == (True, False)
    assert tokenizer.convert_ids_to_tokens(list(keeping.pieces)) == ["book", "##keep", "##ing"]
    assert (keeping.first, keeping.start, keeping.end) == (1, 5, 16)


def test_words_of_a_byte_level_tokenizer_begin_after_the_space(tiny_llama):
    tokenizer = loading.load_tokenizer(tiny_llama)
    (sentence,) = augmentation.sentences(["the film wasn't good"], tokenizer)
    assert [word.text for word in sentence.replaceable] == ["film", "good"]
    assert [word.start for word in sentence.replaceable] == [4, 16]


def test_a_word_that_the_longest_length_cuts_through_stays_and_so_does_what_follows():
    tokenizer = word_pieces("good", "book", "##keep", "##ing")
    tokenizer.model_max_length = 4
    assert replaceable("good book bookkeeping good", tokenizer) == ["good", "book"]


def test_a_tokenizer_that_tells_no_words_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(SourceError, match="fast tokenizer"):
        augmentation.sentences(["a"], BertTokenizer(tmp_path / "vocab.txt"))


def test_a_replacement_takes_the_letter_case_and_the_place_of_the_word():
    tokenizer = word_pieces("film", "good", "dull")
    text = "Film  good,(DULL) — Éclair."
    (sentence,) = augmentation.sentences([text], tokenizer)
    new = dict(zip(sentence.replaceable, ["meal", "fine", "bleak", "soup"], strict=True))
    assert augmentation.alter(text, new) == "Meal  fine,(BLEAK) — Soup."
    assert augmentation.alter(text, {}) == text


# --- by what ---


def test_only_whole_words_that_say_something_may_replace():
    tokenizer = word_pieces("film", "##ing", "good", "the", "not", "x", "3", "!", "b2", "悪")
    assert sorted(augmentation.whole_words(tokenizer).values()) == ["film", "good", "悪"]


def test_whole_words_of_a_byte_level_tokenizer_are_those_after_a_space(tiny_llama):
    tokenizer = loading.load_tokenizer(tiny_llama)
    words = augmentation.whole_words(tokenizer)
    assert {"film", "good"} <= set(words.values())
    assert all(tokenizer.convert_ids_to_tokens(index).startswith("Ġ") for index in words)


def test_neighbours_are_the_nearest_words_of_the_vocabulary_by_cosine():
    words = [f"z{letter}" for letter in "abcdefghijklmnopqrst"]
    tokenizer = word_pieces(*words, "##x")
    torch.manual_seed(0)
    embedding = torch.randn(len(tokenizer), 8)
    known = words[:15]  # the text has these, the vocabulary more
    text = augmentation.sentences([" ".join(known[:8]), " ".join(known[8:]), "zax"], tokenizer)
    neighbours = augmentation.Neighbours(embedding, tokenizer, candidates=4)
    neighbours.BLOCK = 3  # several blocks, the last one smaller
    queries = [(sentence, word) for sentence in text for word in sentence.replaceable]
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in words}
    for (_, word), found in zip(queries[:15], neighbours(queries)[:15], strict=True):
        own = embedding[ids[word.text]]
        near = sorted(
            (other for other in words if other != word.text),
            key=lambda other: -float(F.cosine_similarity(own, embedding[ids[other]], dim=0)),
        )
        assert found == near[:4]
    assert neighbours(queries)[15] == []  # a word of several pieces has none


def test_one_word_alone_has_no_neighbours():
    tokenizer = word_pieces("film")
    text = augmentation.sentences(["film the film"], tokenizer)
    neighbours = augmentation.Neighbours(torch.ones(len(tokenizer), 2), tokenizer, candidates=4)
    assert neighbours([(text[0], word) for word in text[0].replaceable]) == [[], []]


def test_a_masked_lm_is_asked_for_each_word_with_the_rest_of_its_sentence_in_sight(tiny_masked_lm, tiny_data):
    tokenizer = loading.load_tokenizer(tiny_masked_lm)
    model = BertForMaskedLM.from_pretrained(tiny_masked_lm).eval()
    text = augmentation.sentences(texts_of(tiny_data, "train")[:20], tokenizer)
    queries = [(sentence, word) for sentence in text for word in sentence.replaceable]
    propose = augmentation.MaskedLM(model, tokenizer, candidates=5)
    propose.BATCH = 7  # several batches, padded
    found, whole = propose(queries), augmentation.whole_words(tokenizer)
    assert len({tuple(words) for words in found}) > 10
    for (sentence, word), words in zip(queries, found, strict=True):
        masked = sentence.text[: word.start] + "[MASK]" + sentence.text[word.end :]
        encoded = tokenizer(masked, return_tensors="pt")
        place = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            logits = model(**encoded).logits[0, place]
        ranked = [whole[i] for i in logits.argsort(descending=True).tolist() if i in whole]
        assert words == [other for other in ranked if other != word.text][:5]


def test_a_word_of_several_pieces_gives_way_to_one_mask(tiny_masked_lm):
    tokenizer = word_pieces("book", "##keep", "##ing", "good", "fine")
    seen = []
    model = BertForMaskedLM.from_pretrained(tiny_masked_lm)
    model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["input_ids"].tolist()), with_kwargs=True
    )
    (sentence,) = augmentation.sentences(["good bookkeeping good"], tokenizer)
    propose = augmentation.MaskedLM(model, tokenizer, candidates=2)
    ((first, second),) = propose([(sentence, sentence.replaceable[1])])
    good = tokenizer.convert_tokens_to_ids("good")
    assert seen == [[[good, tokenizer.mask_token_id, good]]]
    assert {first, second} <= {"book", "good", "fine"}


# --- the stage ---


@pytest.mark.parametrize("method", ["masked_lm", "neighbours"])
def test_train_grows_by_copies_that_the_teacher_labels(
    run, method, tiny_masked_lm, tiny_data, wavering_teacher
):
    out, metrics = run(tiny_masked_lm, tiny_data, method=method, copies=3)
    before, after = (sentences.load_split(folder, "train").to_list() for folder in (tiny_data, out))
    assert after[: len(before)] == before
    new = after[len(before) :]
    assert len(new) == metrics["altered_rows"] == 3 * len(before) - metrics["copies_dropped"]
    assert len(new) > 2 * len(before)
    assert (metrics["rows_before"], metrics["train_rows"]) == (len(before), len(after))
    assert sentences.info(out)["train_rows"] == len(after)
    model, tokenizer = loading.load_classifier(wavering_teacher), loading.load_tokenizer(wavering_teacher)
    logits = _logits(model, tokenizer, [row["text"] for row in new])
    clear = (logits[:, 0] - logits[:, 1]).abs() > 1e-3  # padding differs: a tie may fall either way
    expected = logits.argmax(dim=1)
    labels = torch.tensor([row["label"] for row in new])
    assert set(labels.tolist()) == {0, 1}
    assert torch.equal(labels[clear], expected[clear])
    assert clear.float().mean() > 0.9


def test_validation_and_test_stay_byte_for_byte(run, tiny_masked_lm, tiny_data):
    out, _ = run(tiny_masked_lm, tiny_data)
    for split in ("validation", "test"):
        assert (out / f"{split}.jsonl").read_bytes() == (tiny_data / f"{split}.jsonl").read_bytes()
    facts, before = sentences.info(out), sentences.info(tiny_data)
    assert (facts["labels"], facts["max_tokens"]) == (before["labels"], before["max_tokens"])


@pytest.mark.parametrize("method", ["masked_lm", "neighbours"])
def test_no_copy_equals_a_sentence_of_any_split_an_unlabelled_one_or_another_copy(
    run, method, tiny_masked_lm, tmp_path
):
    nouns = "film book meal hotel phone chair song tour game soup".split()
    adjectives = "good great fine bad dull poor".split()
    every = [f"{adjective} {noun}" for adjective in adjectives for noun in nouns]
    random.Random(0).shuffle(every)
    held_out = [text.upper() for text in every[20:50]]  # half of all sentences that can be made
    folder = small_data(tmp_path / "d", every[:20], held_out[:15], held_out[15:], every[50:54])
    out, metrics = run(tiny_masked_lm, folder, method=method, copies=20, replace=1.0, candidates=30)
    forms = [sentences.normal_form(text) for text in texts_of(out, "train")]
    assert len(set(forms)) == len(forms)
    assert not set(forms) & sentences.forms(held_out)
    assert metrics["altered_rows"] > 0
    assert metrics["copies_dropped"] == 20 * 20 - metrics["altered_rows"]
    assert metrics["unlabelled_rows"] == 4
    assert forms[-4:] == [sentences.normal_form(text) for text in every[50:54]]


def test_the_figures_say_how_much_was_replaced_and_how_often_the_label_stayed(
    run, tiny_bert, tmp_path, wavering_teacher
):
    nouns = "film book meal hotel phone chair song tour game soup".split()
    train = [f"the {a} and the {b} was good" for a in nouns for b in nouns if a != b]
    folder = small_data(tmp_path / "d", train, ["dull film", "grim"], ["fine film", "lovely"])
    out, metrics = run(tiny_bert, folder, copies=1, replace=0.34, method="neighbours")
    after = sentences.load_split(out, "train").to_list()
    new = after[len(train) :]
    assert metrics["words_replaced_fraction"] == pytest.approx(1 / 7)  # one of three, of seven in all
    model, tokenizer = loading.load_classifier(wavering_teacher), loading.load_tokenizer(wavering_teacher)
    given = _logits(model, tokenizer, train).argmax(dim=1)
    own = torch.tensor([row["label"] for row in after[: len(train)]])
    assert metrics["teacher_agreement_before"] == pytest.approx((given == own).float().mean().item())
    stayed, originals = 0, [(text.split(), row["label"]) for text, row in zip(train, after, strict=False)]
    place = 0
    for row in new:  # copies stand in the order of their originals, of which each differs in one word
        words = row["text"].split()
        while sum(x != y for x, y in zip(words, originals[place][0], strict=True)) != 1:
            place += 1
        stayed += row["label"] == originals[place][1]
        place += 1
    assert metrics["teacher_agreement"] == pytest.approx(stayed / len(new), abs=0.15)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(run, tiny_masked_lm, tiny_data):
    (one, _), (same, _), (other, _) = (
        run(tiny_masked_lm, tiny_data, seed=seed, copies=1) for seed in (1, 1, 2)
    )
    files = [sorted(path.name for path in folder.iterdir()) for folder in (one, same)]
    assert files[0] == files[1] == ["data.json", *sorted(f"{split}.jsonl" for split in SPLITS)]
    assert all((one / name).read_bytes() == (same / name).read_bytes() for name in files[0])
    assert (one / "train.jsonl").read_bytes() != (other / "train.jsonl").read_bytes()


def test_unlabelled_sentences_alone_are_labelled_by_the_teacher(run, tiny_data, tmp_path, wavering_teacher):
    train, validation, test = (texts_of(tiny_data, split)[:10] for split in SPLITS)
    unlabelled = texts_of(tiny_data, "train")[20:60]
    folder = small_data(tmp_path / "d", train, validation, test, unlabelled)
    out, metrics = run(tmp_path / "no base model is needed", folder, copies=0)
    rows = sentences.load_split(out, "train").to_list()
    assert [row["text"] for row in rows] == [*train, *unlabelled]
    model, tokenizer = loading.load_classifier(wavering_teacher), loading.load_tokenizer(wavering_teacher)
    expected = _logits(model, tokenizer, unlabelled).argmax(dim=1).tolist()
    assert [row["label"] for row in rows[10:]] == expected
    assert set(expected) == {0, 1}
    assert sentences.load_unlabelled(out) == []  # they are in train now
    counts = {"rows_before": 10.0, "train_rows": 50.0, "altered_rows": 0.0, "span_rows": 0.0}
    assert metrics == {**counts, "unlabelled_rows": 40.0}


def test_spans_are_runs_of_words_of_their_sentence_that_no_split_has(
    run, tiny_bert, tmp_path, wavering_teacher
):
    train = ["a b c d e f g h", "one two three", "red green blue grey"]
    folder = small_data(tmp_path / "d", train, ["B C D"], ["red  green blue", "x"], ["d e f"])
    out, metrics = run(tiny_bert, folder, copies=0, spans=200)
    texts = texts_of(out, "train")
    letters = train[0].split()
    runs = {" ".join(letters[a:b]) for a in range(8) for b in range(a + 3, 9)} - {train[0], "b c d", "d e f"}
    assert texts[:3] == train  # "one two three" is too short for a part
    assert set(texts[3:-1]) == runs | {"green blue grey"}  # its other part stands in test
    assert texts[-1] == "d e f"
    assert metrics["span_rows"] == len(texts) - 4 == len(set(texts[3:-1]))
    model, tokenizer = loading.load_classifier(wavering_teacher), loading.load_tokenizer(wavering_teacher)
    rows = sentences.load_split(out, "train").to_list()[3:]
    logits = _logits(model, tokenizer, [row["text"] for row in rows])
    clear = (logits[:, 0] - logits[:, 1]).abs() > 1e-3
    assert clear.any()
    assert [r["label"] for r, c in zip(rows, clear, strict=True) if c] == logits.argmax(dim=1)[clear].tolist()


def test_spans_depend_on_the_seed_alone(run, tiny_bert, tiny_data):
    folders = [run(tiny_bert, tiny_data, seed=seed, copies=0, spans=1)[0] for seed in (1, 1, 2)]
    one, same, other = (texts_of(folder, "train") for folder in folders)
    assert one == same != other


def test_nothing_to_add_is_refused(run, tiny_bert, tiny_data):
    with pytest.raises(RecipeError, match=r"augment\.copies and augment\.spans are 0 and data\.unlabelled"):
        run(tiny_bert, tiny_data, copies=0)


def test_auto_takes_the_masked_lm_head_where_there_is_one_and_near_words_elsewhere(
    run, tiny_bert, tiny_masked_lm, tiny_classifier, tmp_path, context
):
    train = ["the film was good", "the book was bad", "the meal was great", "the tour was dull"]
    folder = small_data(tmp_path / "d", train, ["fine song", "grim"], ["warm soup", "cold"])
    known = {word for text in train for word in text.split()}
    for model, head in ((tiny_masked_lm, True), (tiny_bert, False), (tiny_classifier, False)):
        context.reporter.messages.clear()
        out, _ = run(model, folder, copies=8, candidates=20)
        used = {word for text in texts_of(out, "train") for word in text.split()}
        assert used > known  # both draw on the whole vocabulary
        near, _ = run(model, folder, copies=8, candidates=20, method="neighbours")
        assert (texts_of(out, "train") != texts_of(near, "train")) == head
        assert any("no masked-LM head" in line for line in context.reporter.messages) != head


def test_a_masked_lm_that_is_asked_for_and_not_there_is_refused(run, tiny_bert, tiny_data):
    with pytest.raises(
        SourceError, match=r"is missing weights of a masked language model.*method: neighbours"
    ):
        run(tiny_bert, tiny_data, method="masked_lm")


def test_a_masked_lm_whose_tokenizer_has_no_mask_is_refused(run, tiny_masked_lm, tiny_data, tmp_path):
    tokenizer = loading.load_tokenizer(tiny_masked_lm)
    tokenizer.mask_token = None
    loading.save_model(BertForMaskedLM.from_pretrained(tiny_masked_lm), tmp_path / "m")
    loading.save_tokenizer(tokenizer, tmp_path / "m")
    with pytest.raises(SourceError, match="no mask token"):
        run(tmp_path / "m", tiny_data, method="masked_lm")


def test_what_lies_behind_the_longest_length_is_not_altered(run, tiny_bert, tmp_path):
    train = [f"{word} film and book {'good bad ' * 10}end{i}" for i, word in enumerate(["good", "bad"] * 10)]
    folder = small_data(tmp_path / "d", train, ["fine song", "grim"], ["warm soup", "cold"], max_tokens=8)
    out, metrics = run(tiny_bert, folder, copies=2, replace=1.0)
    assert metrics["altered_rows"] > 0
    for text in texts_of(out, "train"):
        assert text.split()[6:-1] == ["good", "bad"] * 9  # 8 tokens are [CLS], five words, a sixth, [SEP]


def test_sentences_in_which_nothing_can_be_replaced_stay_alone(run, tiny_bert, tmp_path):
    train = ["it was not", "they were", "3 and 4", "never"]
    folder = small_data(tmp_path / "d", train, ["fine song", "grim"], ["warm soup", "cold"])
    out, metrics = run(tiny_bert, folder)
    assert texts_of(out, "train") == train
    assert (metrics["altered_rows"], metrics["copies_dropped"]) == (0, 16)


def test_progress_reaches_its_end_and_examples_are_told(run, tiny_masked_lm, tiny_data, context):
    run(tiny_masked_lm, tiny_data)
    totals = {what: total for _, total, what in context.reporter.progressed}
    assert len(totals) == 2
    for what, total in totals.items():
        assert [done for done, _, name in context.reporter.progressed if name == what][-1] == total
    assert sum("→" in line for line in context.reporter.messages) == 3


def test_the_teachers_outputs_are_computed_for_the_new_rows_too(
    run, tiny_bert, tiny_data, context, wavering_teacher
):
    out, metrics = run(tiny_bert, tiny_data, copies=1)
    inputs = {"teacher": wavering_teacher, "data": out}
    teacher_outputs.run(inputs, OutputsConfig(hidden=False, student=StudentConfig()), context)
    import numpy as np

    logits = np.load(context.out_dir / "logits.npy")
    assert len(logits) == metrics["train_rows"]
    new = int(metrics["rows_before"])
    labels = sentences.load_split(out, "train")["label"][:][new:]
    assert (logits[new:].argmax(axis=1) == labels).mean() > 0.98
