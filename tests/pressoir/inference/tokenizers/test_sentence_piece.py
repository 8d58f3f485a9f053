"""Marian's and M2M100's tokenizers without transformers: ids and texts are those of transformers' own."""

import json
import random
import shutil
import subprocess
import sys
import warnings

import pytest

from pressoir.errors import SourceError
from pressoir.export import encoder_decoder
from pressoir.inference.tokenizers.encoder_decoder import open_vocabulary
from pressoir.inference.tokenizers.sentence_piece import SentencePieceTokenizer, is_readable
from pressoir.inference.translation import Translator
from pressoir.models import loading

SENTENCES = [
    "the film was good and the soup was not",
    "Le café d'été coûte 3,50 €, n'est-ce pas ?",
    "Привет, как дела? Всё хорошо.",
    "映画はとても良かったです。",
    "这部电影非常好看。",
    "영화가 정말 재미있었어요.",
    "كان الفيلم رائعاً جداً",
    "η ταινία ήταν καλή",
    "फ़िल्म बहुत अच्छी थी।",
    "it 's here , isn't it ? 🙂 👩‍👩‍👧 x ▁ y",
]
ODD = [
    *(" ", "  ", "\t", "\n", "\r\n", "\x00", "\x07", "\x1b", "\x85", "\xa0", "\u200b", "\u2028", "\u3000"),
    *(
        "\ufeff",
        "\ufffd",
        "▁",
        "▁▁",
        "e\u0301",
        "🙂",
        "👩‍👩‍👧",
        "𝔘",
        "ﬁ",
        "Ⅷ",
        " .",
        " ,",
        " n't",
        " 's",
        "!?",
    ),
    *("</s>", "<s>", "<unk>", "<pad>", "</s", "<<s>>", "__fr__", "__en__", "__xx__", "___fr___", "fr_XX"),
    *(">>fra<<", ">>fra<< ", ">>zzz<<", ">><<", ">>", "<<", "<x>", "<x>y", "@new@"),
]


def texts(count):
    """Sentences of many scripts, cut and mixed with odd characters and tokens; beginnings and ends too."""
    generator = random.Random(0)
    for _ in range(count):
        parts = []
        for _ in range(generator.randint(0, 6)):
            sentence = generator.choice(SENTENCES)
            start = generator.randrange(len(sentence))
            parts.append(sentence[start : start + generator.randint(1, 20)])
            parts.append(generator.choice(ODD) * generator.choice([0, 0, 1, 1, 2]))
            parts.append(chr(generator.choice([generator.randrange(0x300), generator.randrange(0xD800)])))
        yield generator.choice(["", "", " ", *ODD]) + "".join(parts)


def train(path, **options):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_prefix=str(path.with_suffix("")),
        vocab_size=440 if options.get("byte_fallback") else 180,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.with_suffix(".vocab").unlink()
    path.with_suffix(".model").rename(path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def marian(folder, separate=False, piece_options=None, **settings):
    source = train(folder / "source.spm", **(piece_options or {}))
    target = train(folder / "target.spm", model_type="bpe", character_coverage=0.98)
    names = ["</s>", "<unk>", ">>fra<<", ">>deu<<", "fr_XX"]
    names += source[3:-9] if separate else [*source[3:-9], *target[3:]]  # some pieces are unknown
    (folder / "vocab.json").write_text(
        json.dumps({n: i for i, n in enumerate(dict.fromkeys([*names, "<pad>"]))})
    )
    if separate:
        names = ["</s>", "<unk>", *target[3:], "<pad>"]
        (folder / "target_vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    own = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": separate, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "config.json").write_text(json.dumps({"model_type": "marian"}))


def m2m100(folder, **settings):
    pieces = train(folder / "sentencepiece.bpe.model", model_type="bpe")
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:]]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    own = {"tokenizer_class": "M2M100Tokenizer", "src_lang": "fr", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "config.json").write_text(json.dumps({"model_type": "m2m_100"}))


def added(*names):
    """Tokens that were added to a vocabulary, as a folder of old holds them."""
    return lambda folder: (folder / "added_tokens.json").write_text(
        json.dumps({name: 5000 + index for index, name in enumerate(names)})
    )


def special(**tokens):
    return lambda folder: (folder / "special_tokens_map.json").write_text(json.dumps(tokens))


OBJECT = {"content": "<x>", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
FOLDERS = {
    "Marian": (marian, {}, []),
    "Marian, vocabularies apart": (marian, {"separate": True}, []),
    "Marian, bytes of unknown characters": (marian, {"piece_options": {"byte_fallback": True}}, []),
    "Marian, spaces kept": (
        marian,
        {"piece_options": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"}},
        [],
    ),
    "Marian, cleaned up": (marian, {"clean_up_tokenization_spaces": True}, []),
    "Marian, added tokens": (marian, {}, [added("@new@", "<x>", "<x>y", "y")]),
    "Marian, special tokens": (marian, {}, [special(unk_token="<unk>", bos_token=OBJECT)]),
    "M2M100": (m2m100, {}, []),
    "M2M100, cleaned up": (m2m100, {"clean_up_tokenization_spaces": True, "src_lang": None}, []),
    "M2M100, languages special": (
        m2m100,
        {},
        [
            special(
                additional_special_tokens=["__af__", "__am__", "__fr__"],
                eos_token={**OBJECT, "content": "</s>"},
            )
        ],
    ),
    "M2M100, added tokens": (m2m100, {}, [added("@new@", "<x>")]),
    "WMT21": (m2m100, {"language_codes": "wmt21", "src_lang": "de", "num_madeup_words": 1}, []),
}


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizers(request, tmp_path_factory):
    """transformers' tokenizer of a folder as people have it, and ours of what is exported of it."""
    make, settings, changes = FOLDERS[request.param]
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "out"))
    make(source, **settings)
    for change in changes:
        change(source)
    assert not is_readable(source)
    encoder_decoder.copy_tokenizer(source, out)
    assert is_readable(out)
    ours = open_vocabulary(out)
    assert isinstance(ours, SentencePieceTokenizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return loading.load_tokenizer(source), ours


def test_ids_are_those_of_transformers(tokenizers):
    theirs, ours = tokenizers
    before, after = ours.frame()
    different = set()
    for text in (*SENTENCES, *ODD, *texts(2000)):
        expected = theirs(text, verbose=False)["input_ids"]
        assert [*before, *ours.encode(text), *after] == expected, repr(text)
        different.update(expected)
    assert len(different) > 100


def test_truncated_ids_are_those_of_transformers(tokenizers):
    theirs, ours = tokenizers
    before, after = ours.frame()
    for text in texts(300):
        expected = theirs(text, truncation=True, max_length=9)["input_ids"]
        assert [*before, *ours.encode(text)[: 9 - len(before) - len(after)], *after] == expected, repr(text)


def test_decoded_texts_are_those_of_transformers(tokenizers):
    theirs, ours = tokenizers
    generator, most = random.Random(1), max(5004, len(theirs)) + 3
    written = set()
    for number in range(2000):
        last = most if number % 4 == 0 else theirs.vocab_size  # ids that no token has, too
        ids = [generator.randrange(last) for _ in range(generator.randrange(14))]
        expected = theirs.decode(ids, skip_special_tokens=True).strip()
        assert ours.decode(ids) == expected, ids
        written.add(expected)
    assert len(written) > 1200


def test_languages_and_ids_of_tokens_are_those_of_transformers(tokenizers):
    theirs, ours = tokenizers
    codes = getattr(theirs, "lang_code_to_token", {}).values()
    targets = [token for token in theirs.get_vocab() if token.startswith(">>")]
    assert {*codes, *targets} == {t for t in ours.special if t.startswith(">>") or t.strip("_") != t}
    for token in (*ours.special, "</s>", "nothing"):
        assert ours.id(token) == theirs.convert_tokens_to_ids(token)


@pytest.mark.parametrize(
    "changed",
    [
        {"added_tokens_decoder": {"0": {**OBJECT, "content": "</s>", "lstrip": True}}},
        {"added_tokens_decoder": None},
        {"sp_model_kwargs": {"enable_sampling": True}},
        {"tokenizer_class": "BertTokenizer"},
        {"separate_vocabs": True},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_is_not_read_here_is_left_to_transformers(exported, tmp_path, changed):
    folder = shutil.copytree(exported("tiny_marian")[0], tmp_path / "copy")
    assert is_readable(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **changed}))
    assert not is_readable(folder)


@pytest.mark.parametrize("broken", ["vocab.json", "source.spm", "target.spm"])
def test_a_broken_file_is_the_folders_fault(exported, tmp_path, broken):
    folder = shutil.copytree(exported("tiny_marian")[0], tmp_path / "copy")
    (folder / broken).write_text("[]")
    with pytest.raises(SourceError, match=str(folder)):
        Translator.open(folder, 1)


@pytest.mark.process
@pytest.mark.parametrize(("name", "languages"), [("tiny_marian", ()), ("tiny_m2m100", ("en", "fr"))])
def test_exported_models_run_without_pytorch_and_transformers(exported, name, languages):
    code = (
        "import sys, pathlib; from pressoir.inference.translation import Translator; "
        "print(*Translator.open(pathlib.Path(sys.argv[1]), 1).translate(['a'], *sys.argv[2:])); "
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, str(exported(name)[0]), *languages]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "sentencepiece" in child.stdout.split()
    assert not {"torch", "transformers"} & set(child.stdout.split())


def test_a_longest_text_of_the_tokenizers_own_stays_that_of_the_checkpoint(tmp_path, context, tiny_m2m100):
    source = shutil.copytree(tiny_m2m100, tmp_path / "source")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 800}))
    encoder_decoder.copy_tokenizer(source, context.out_dir)
    assert json.loads((context.out_dir / "tokenizer_config.json").read_text())["model_max_length"] == 800
