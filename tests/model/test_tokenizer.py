"""Tokenizers of model folders: ids of SentencePiece itself, of the golden tokenizers, and after save and load.

The SentencePiece models are trained on the spot and laid out like the releases: reserved pieces at the end of the
vocabulary, ChatML tokens on them by ``added_tokens_decoder``, ``auto_map`` to code that is not there.
"""

from __future__ import annotations

import importlib
import io
import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.constants import IMG_CONTEXT, SPECIAL_TOKENS
from internvl_chat.data.record import Turn
from internvl_chat.data.template import get_template
from internvl_chat.data.tokens import Encoder
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.tokenizer import add_special_tokens, image_token_id, load_tokenizer, save_tokenizer
from internvl_chat.tools.tiny import CORPUS
from tests.data.helpers import GOLDENS, load_json, properties

new_model: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto

CHINESE = (
    "你好，世界。请描述这张图片。图中有多少个数字？答案是四十二，不是三十七。",
    "书生·万象是由上海人工智能实验室联合开发的多模态大语言模型。天气很好，我们去公园散步吧！",
)
CODE = ("def f(x):\n    return {'a': [1, 2.5e-3]}  # <html></html>", "<|> & _ | <0x41> <s> </s> <unk> \t tab\n\n\nend")
CHATML = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
VOCAB = 700
SPECIALS = ("<unk>", "<s>", "</s>", *CHATML, *SPECIAL_TOKENS)


@dataclass(frozen=True)
class Kind:
    """How a SentencePiece model is trained."""

    model_type: str = "bpe"
    prefix: bool = True
    bytes: bool = True
    symbols: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


KINDS = {
    "bpe-prefix": Kind(),
    "bpe": Kind(prefix=False),
    "bpe-symbols": Kind(prefix=False, symbols=("<html>", "\n\n", "[PAD151645]")),
    "bpe-prefix-symbols": Kind(symbols=("<html>", "\n\n", "[PAD151645]")),
    "bpe-nobytes": Kind(bytes=False),
    "unigram-prefix": Kind("unigram"),
    "unigram": Kind("unigram", prefix=False, symbols=("<html>",)),
    "unigram-nobytes": Kind("unigram", bytes=False),
    "bpe-spaces": Kind(options=(("remove_extra_whitespaces", True),)),
}


def corpus() -> list[str]:
    """Lines to learn pieces from; every character of the ASCII table is among them."""
    turns = [turn["value"] for case in load_json("conversations.json")["cases"] for turn in conversation_of(case)]
    lines = [*CORPUS, *CHINESE, *CODE, *turns, "".join(map(chr, range(33, 127)))]
    return [line for text in lines for line in text.splitlines() if line.strip()]


def conversation_of(case: dict[str, Any]) -> list[dict[str, str]]:
    return [turn for turn in case["item"].get("conversations") or () if len(str(turn["value"])) < 2000]


@cache
def train(kind: Kind) -> bytes:
    """A SentencePiece model with six reserved pieces at the end, as file content."""
    out = io.BytesIO()
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **dict(kind.options)}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus() * 2),
        model_writer=out,
        model_type=kind.model_type,
        vocab_size=VOCAB + (256 if kind.bytes else 0),
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=kind.bytes,
        add_dummy_prefix=kind.prefix,
        user_defined_symbols=list(kind.symbols),
        control_symbols=list(kind.control),
        minloglevel=2,
        num_threads=1,
        **options,
    )
    proto = new_model()
    proto.ParseFromString(out.getvalue())
    for number in range(len(CHATML)):
        piece = proto.pieces.add()
        piece.piece, piece.score, piece.type = f"[UNUSED_TOKEN_{141 + number}]", 0.0, 4
    return proto.SerializeToString()


def write_internlm2(folder: Path, kind: Kind, *, old: bool = False, **settings: Any) -> Path:
    """A folder as InternLM2's; with ``old`` the InternVL tokens stand in ``added_tokens.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train(kind))
    size = processor(kind).get_piece_size()
    decoder = dict(enumerate(("<unk>", "<s>", "</s>")))
    decoder |= {size - len(CHATML) + i: name for i, name in enumerate(CHATML)}
    images = {name: size + i for i, name in enumerate(SPECIAL_TOKENS)}
    if old:
        (folder / "added_tokens.json").write_text(json.dumps(images), encoding="utf-8")
    else:
        decoder |= {number: name for name, number in images.items()}
    token = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config = {
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "tokenizer_class": "InternLM2Tokenizer",
        "added_tokens_decoder": {str(i): {"content": name, **token} for i, name in sorted(decoder.items())},
        "additional_special_tokens": [*CHATML, *SPECIAL_TOKENS],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 8192,
        "chat_template": "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}",
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    names = {key: {"content": config[key], **token} for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    names["additional_special_tokens"] = config["additional_special_tokens"]
    (folder / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    return folder


@cache
def processor(kind: Kind) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=train(kind))


def special_ids(kind: Kind) -> dict[str, int]:
    size = processor(kind).get_piece_size()
    names = {name: i for i, name in enumerate(("<unk>", "<s>", "</s>"))}
    names |= {name: size - len(CHATML) + i for i, name in enumerate(CHATML)}
    return names | {name: size + i for i, name in enumerate(SPECIAL_TOKENS)}


def reference(kind: Kind, text: str, bos: bool = True) -> list[int]:
    """Split at special tokens, SentencePiece for each part: what the slow classes did."""
    ids = [1] if bos else []
    known = special_ids(kind)
    for part in re.split("(" + "|".join(map(re.escape, known)) + ")", text):
        ids += [known[part]] if part in known else processor(kind).encode(part)
    return ids


@cache
def texts() -> tuple[str, ...]:
    """Several hundred texts: whole sentences, chats, and words thrown together with all kinds of white space."""
    rng = random.Random(5)
    words = [word for line in corpus() for word in line.split(" ")]
    odd = [
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "😀",
        "👩‍👩‍👧",
        "🇩🇪",
        "é",
        "e\u0301",
        "\u3000",
        "\u2581",
        "ﬁ",
        "½",
        "\u200b",
    ]
    odd += [
        "鑫",
        "龘",
        "日本語",
        "한국어",
        "مرحبا",
        "<0x0A>",
        "<0x41>",
        "<html>",
        "</html>",
        "[PAD151645]",
        "UNUSED",
        "|im_end|>",
    ]
    made = [*corpus()[:150], *odd, "", " ", "a", " a", "a ", "  a  b  ", *(word + odd[0] for word in odd)]
    for _ in range(300):
        made.append(
            "".join(rng.choice((*rng.sample(words, 3), " ", rng.choice(odd))) for _ in range(rng.randint(1, 14)))
        )
    for _ in range(100):
        made.append(
            "".join(rng.choice((*rng.sample(words, 2), " ", rng.choice(SPECIALS))) for _ in range(rng.randint(2, 9)))
        )
    chat = "<|im_start|>system\n你好<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat?<|im_end|>\n"
    return (*made, chat, chat + "<|im_start|>assistant\n", " " + chat + " ")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = write_internlm2(tmp_path_factory.mktemp(name), KINDS[name])
        return made[name]

    return make


@pytest.fixture(scope="module")
def loaded(folder_of: Callable[[str], Path]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in made:
            made[name] = load_tokenizer(folder_of(name))
        return made[name]

    return load


def is_lone_symbol(kind: Kind, text: str) -> bool:
    """A part that is a user-defined piece and nothing else gets no prefix space from us (see ``_make_normalizers``)."""
    parts = re.split("|".join(map(re.escape, SPECIALS)), text)
    return kind.prefix and any(part in kind.symbols for part in parts)


def assert_same(kind: Kind, text: str, ids: list[int]) -> None:
    """Equal ids; where several segmentations are equally likely (unigram: ``#``, ``###``), one of these."""
    expected = reference(kind, text)
    if ids != expected and not is_lone_symbol(kind, text):
        assert kind.model_type == "unigram", text
        assert sorted(ids) == sorted(expected) and len(ids) == len(expected), text


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_those_of_sentencepiece(name: str, loaded: Callable[[str], Any]) -> None:
    tokenizer, kind = loaded(name), KINDS[name]
    assert len(texts()) > 500
    for text in texts():
        assert_same(kind, text, tokenizer(text)["input_ids"])
    equal = [tokenizer(text)["input_ids"] == reference(kind, text) for text in texts()]
    assert sum(equal) > 0.99 * len(equal)


@pytest.mark.parametrize("name", KINDS)
def test_any_text_at_all(name: str, loaded: Callable[[str], Any]) -> None:
    tokenizer, kind = loaded(name), KINDS[name]
    plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
    near = st.lists(st.sampled_from([*"ab <>|_\n", "  ", "你好", "<s>", "</img>", "<html>", "的"]), max_size=12).map(
        "".join
    )

    @properties(120)
    @given(st.one_of(plain, near))
    def check(text: str) -> None:
        assert_same(kind, text, tokenizer(text)["input_ids"])

    check()


@pytest.mark.parametrize("name", KINDS)
def test_decoding_gives_the_text_back(name: str, loaded: Callable[[str], Any]) -> None:
    tokenizer, kind = loaded(name), KINDS[name]
    for text in texts():
        if any(special in text for special in SPECIALS) or is_lone_symbol(kind, text):
            continue
        ids = tokenizer(text)["input_ids"]
        if 0 not in ids and not (kind.options and "\u2581" in text):  # unknown pieces get a sign, "\u2581" is stripped
            assert tokenizer.decode(ids, skip_special_tokens=True) == processor(kind).decode(ids)
        if kind.bytes and "\u2581" not in text and not kind.options:
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", KINDS)
def test_save_and_load(
    name: str, loaded: Callable[[str], Any], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer = loaded(name)
    save_tokenizer(tokenizer, tmp_path, source=folder_of(name))
    again = load_tokenizer(tmp_path)
    assert [again(t)["input_ids"] for t in texts()] == [tokenizer(t)["input_ids"] for t in texts()]
    assert again.get_vocab() == tokenizer.get_vocab() and again.special_tokens_map == tokenizer.special_tokens_map
    assert again.chat_template == tokenizer.chat_template
    assert again.extra_special_tokens == tokenizer.extra_special_tokens == [*CHATML, *SPECIAL_TOKENS]
    assert again.model_max_length == 8192
    written = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in written and written["tokenizer_class"] == "PreTrainedTokenizerFast"
    # A list under the new name stops the last releases of transformers 4.
    assert written["additional_special_tokens"] == [*CHATML, *SPECIAL_TOKENS] and "extra_special_tokens" not in written
    assert (tmp_path / "tokenizer.model").read_bytes() == (folder_of(name) / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("name", ["phi3_like", "internlm2_like"])
def test_a_vocabulary_of_the_real_size(name: str, tmp_path: Path) -> None:
    """32,000 pieces of a public model as tokenizer.model: ids of SentencePiece, and of the golden tokenizer.json.

    Ids do not tell the order of merges here: runs of spaces have low ids and are merged last.
    """
    golden = load_tokenizer(GOLDENS / "tokenizers" / name)
    model = json.loads(golden.backend_tokenizer.to_str())["model"]
    ranks = {"".join(pair): -rank for rank, pair in reversed(list(enumerate(model["merges"])))}
    proto = new_model()
    proto.ParseFromString(train(KINDS["bpe"]))
    del proto.pieces[:]
    for number, text in enumerate(sorted(model["vocab"], key=model["vocab"].__getitem__)):
        piece = proto.pieces.add()
        piece.piece, piece.score = text, ranks.get(text, -1e9)
        piece.type = 2 if number == 0 else 3 if number < 3 else 6 if number < 259 else 1
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(GOLDENS / "tokenizers" / name / file, tmp_path / file)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_vocab() == golden.get_vocab()
    reader = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    plain = [text for text in texts() if not any(special in text for special in golden.added_tokens_encoder)]
    assert len(plain) > 400
    for text in plain:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reader.encode(text)
    for text in texts():
        if "   " not in text:  # three spaces are two pieces, which tokenizer.json ranks apart
            assert tokenizer(text)["input_ids"] == golden(text)["input_ids"], text


def test_the_release_layout(loaded: Callable[[str], Any]) -> None:
    tokenizer, kind = loaded("bpe-prefix"), KINDS["bpe-prefix"]
    size = processor(kind).get_piece_size()
    assert tokenizer.convert_tokens_to_ids(list(CHATML)) == list(range(size - 6, size))
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(size, size + 9))
    assert image_token_id(tokenizer) == size + 2 and len(tokenizer) == size + 9
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    # The reserved piece has its new name only: no text can place the marker by the old one.
    assert size - 1 not in tokenizer("[UNUSED_TOKEN_146]")["input_ids"]
    assert tokenizer.init_kwargs.get("auto_map") is None


def test_added_tokens_json_of_old_folders(tmp_path: Path, loaded: Callable[[str], Any]) -> None:
    tokenizer = load_tokenizer(write_internlm2(tmp_path, KINDS["bpe"], old=True))
    assert tokenizer.get_vocab() == loaded("bpe").get_vocab()
    assert [tokenizer(t)["input_ids"] for t in texts()] == [loaded("bpe")(t)["input_ids"] for t in texts()]


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, False), (True, True), (False, True)])
def test_bos_and_eos_flags(bos: bool, eos: bool, tmp_path: Path) -> None:
    kind = KINDS["bpe"]
    tokenizer = load_tokenizer(write_internlm2(tmp_path / "a", kind, add_bos_token=bos, add_eos_token=eos))
    expected = reference(kind, "Hello there", bos) + [2] * eos
    assert tokenizer("Hello there")["input_ids"] == expected
    save_tokenizer(tokenizer, tmp_path / "b")
    assert load_tokenizer(tmp_path / "b")("Hello there")["input_ids"] == expected


def test_a_bare_model_file_is_enough(tmp_path: Path) -> None:
    kind = KINDS["bpe-symbols"]
    (tmp_path / "tokenizer.model").write_bytes(train(kind))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("Hello <html> there\n\n", "[UNUSED_TOKEN_146]user", " a"):
        assert tokenizer(text)["input_ids"] == [1, *processor(kind).encode(text)]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


def test_control_pieces_are_special_tokens(tmp_path: Path) -> None:
    kind = Kind(control=("<|turn|>",))
    (tmp_path / "tokenizer.model").write_bytes(train(kind))
    tokenizer = load_tokenizer(tmp_path)
    number = processor(kind).piece_to_id("<|turn|>")
    assert tokenizer("<|turn|>a", add_special_tokens=False)["input_ids"] == [number, *processor(kind).encode("a")]
    assert tokenizer.decode([number], skip_special_tokens=True) == ""


def test_llama_that_is_not_legacy_puts_one_prefix_space_only(tmp_path: Path) -> None:
    kind = KINDS["bpe-prefix"]
    tokenizer = load_tokenizer(write_internlm2(tmp_path, kind, legacy=False))
    pieces = tokenizer.tokenize("user<|im_end|>user")
    at = pieces.index("<|im_end|>")
    assert pieces[:at] == processor(kind).encode("user", out_type=str)
    assert not pieces[at + 1].startswith("\u2581") and "".join(pieces[at + 1 :]) == "user"


def test_add_special_tokens_in_order_once(tmp_path: Path) -> None:
    kind = KINDS["bpe-prefix"]
    (tmp_path / "tokenizer.model").write_bytes(train(kind))
    tokenizer = load_tokenizer(tmp_path)
    size = len(tokenizer)
    assert add_special_tokens(tokenizer, extra=("<point>", "小猫")) == 11
    names = [*SPECIAL_TOKENS, "<point>", "小猫"]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(size, size + 11))
    assert add_special_tokens(tokenizer) == 0 and len(tokenizer) == size + 11
    check_whole_tokens(tokenizer, names, tmp_path / "saved")


def check_whole_tokens(tokenizer: Any, names: list[str], folder: Path) -> None:
    """Text is split at each token, with nothing left of it, also after save and load; only the nine are special."""
    save_tokenizer(tokenizer, folder)
    for each in (tokenizer, load_tokenizer(folder)):
        for name in names:
            token = each.convert_tokens_to_ids(name)
            around = [each("see", add_special_tokens=False)["input_ids"]] * 2
            assert each(f"see{name}see", add_special_tokens=False)["input_ids"] == [*around[0], token, *around[1]]
            left = each.decode([token], skip_special_tokens=True)
            assert left == ("" if name in SPECIAL_TOKENS else name)


@pytest.mark.parametrize("piece_type", [1, 3, 4])
def test_img_in_the_base_vocabulary_keeps_its_id(piece_type: int, tmp_path: Path) -> None:
    """As Yi's: ``<img>`` and ``</img>`` are pieces, normal, control or user-defined; seven tokens are new."""
    proto = new_model()
    proto.ParseFromString(train(KINDS["bpe-prefix"]))
    for number, name in ((1, "<img>"), (2, "</img>")):
        piece = proto.pieces[len(proto.pieces) - number]
        piece.piece, piece.type = name, piece_type
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    tokenizer = load_tokenizer(tmp_path)
    size = len(tokenizer)
    assert size == len(proto.pieces)
    assert add_special_tokens(tokenizer) == 7
    expected = [size - 1, size - 2, *range(size, size + 7)]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == expected
    assert add_special_tokens(tokenizer) == 0
    check_whole_tokens(tokenizer, list(SPECIAL_TOKENS), tmp_path / "saved")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("<a>", " "), "number 2 is blank"),
        (("<a>", "<a>"), "'<a>' is listed twice"),
        (("<img>",), "'<img>' is in the vocabulary already"),
        (("<|im_start|>",), "in the vocabulary already"),
    ],
)
def test_bad_extra_tokens_change_nothing(
    extra: tuple[str, ...], message: str, folder_of: Callable[[str], Path]
) -> None:
    tokenizer = load_tokenizer(folder_of("bpe"))
    before = len(tokenizer)
    with pytest.raises(ConfigError, match=re.escape(message)):
        add_special_tokens(tokenizer, extra)
    assert len(tokenizer) == before


@pytest.fixture(scope="module")
def qwen2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json and merges.txt, cut out of the golden tokenizer.json."""
    folder, golden = tmp_path_factory.mktemp("qwen2"), GOLDENS / "tokenizers" / "qwen2"
    model = json.loads((golden / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    config = json.loads((golden / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}), encoding="utf-8")
    return folder


def test_vocab_and_merges(qwen2_folder: Path, tmp_path: Path) -> None:
    golden = load_tokenizer(GOLDENS / "tokenizers" / "qwen2")
    tokenizer = load_tokenizer(qwen2_folder)
    expected = [golden(t)["input_ids"] for t in texts()]
    assert [tokenizer(t)["input_ids"] for t in texts()] == expected
    assert tokenizer.get_vocab() == golden.get_vocab()
    save_tokenizer(tokenizer, tmp_path, source=qwen2_folder)
    again = load_tokenizer(tmp_path)
    assert [again(t)["input_ids"] for t in texts()] == expected
    assert not (tmp_path / "tokenizer.model").exists()


def test_auto_map_is_never_followed_nor_kept(qwen2_folder: Path, tmp_path: Path) -> None:
    """Code that a folder names is not run, and no folder that we write names any."""
    golden = GOLDENS / "tokenizers" / "qwen2"
    for source in (qwen2_folder, golden):
        folder = shutil.copytree(source, tmp_path / source.name)
        code = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "auto_map": code}), encoding="utf-8")
        model = {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
        (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
        for name in ("tokenization_own.py", "configuration_own.py"):
            (folder / name).write_text("raise SystemExit('code was run')", encoding="utf-8")
        save_tokenizer(load_tokenizer(folder), tmp_path / "saved")
        assert "auto_map" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", KINDS)
def test_the_encoder_works_with_it(name: str, loaded: Callable[[str], Any]) -> None:
    kind = KINDS[name]
    encoder = Encoder(loaded(name), get_template("internlm2-chat"), tokens_per_tile=3)
    turns = [Turn("human", "<image>\nWhat is <|im_end|>?"), Turn("gpt", "A <ref>cat</ref>.")]
    ids, labels = encoder.encode(turns, [1])
    known = special_ids(kind)
    assert ids[0] == 1
    assert list(ids).count(known[IMG_CONTEXT]) == 3
    assert list(ids).count(known["<|im_end|>"]) == 3  # system, human, gpt; not the one in the text
    assert labels[labels >= 0][-1] == known["<|im_end|>"] == encoder.stop_id


def test_the_encoder_works_with_vocab_and_merges(qwen2_folder: Path) -> None:
    encoder = Encoder(load_tokenizer(qwen2_folder), get_template("internvl2_5"), tokens_per_tile=3)
    golden = Encoder(load_tokenizer(GOLDENS / "tokenizers" / "qwen2"), get_template("internvl2_5"), tokens_per_tile=3)
    turns = [Turn("human", "<image>\nWhat is this?"), Turn("gpt", "A cat.")]
    assert encoder.encode(turns, [2])[0].tolist() == golden.encode(turns, [2])[0].tolist()


def test_tokenizer_model_of_another_tokenizer_is_not_copied(loaded: Callable[[str], Any], tmp_path: Path) -> None:
    save_tokenizer(loaded("bpe"), tmp_path / "out", source=write_internlm2(tmp_path / "in", KINDS["unigram"]))
    assert not (tmp_path / "out" / "tokenizer.model").exists()


def test_saving_into_the_source_folder(tmp_path: Path) -> None:
    folder = write_internlm2(tmp_path, KINDS["bpe"])
    save_tokenizer(load_tokenizer(folder), folder, source=folder)
    assert (folder / "tokenizer.model").read_bytes() == train(KINDS["bpe"])


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_tokenizer(tmp_path / "nothing")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_code_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('code was run')", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    with pytest.raises(CheckpointError, match="code of the folder, which is never run"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"])
def test_a_broken_model_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: no SentencePiece model .*copy the file again"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_config(tmp_path: Path) -> None:
    write_internlm2(tmp_path, KINDS["bpe"])
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: no valid JSON"):
        load_tokenizer(tmp_path)


def test_a_gap_in_the_added_tokens(tmp_path: Path) -> None:
    folder = write_internlm2(tmp_path, KINDS["bpe"])
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    last = max(config["added_tokens_decoder"], key=int)
    config["added_tokens_decoder"][str(int(last) + 2)] = {"content": "<far>"}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"<far> has id {int(last) + 2}, but no token has id {int(last) + 1}"):
        load_tokenizer(folder)


def test_models_that_cannot_be_reproduced_are_refused(tmp_path: Path) -> None:
    for model_type in ("char", "word"):
        kind = Kind(model_type, bytes=False)
        (tmp_path / "tokenizer.model").write_bytes(train(kind))
        with pytest.raises(CheckpointError, match="words or characters is not supported"):
            load_tokenizer(tmp_path)
    proto = new_model()
    proto.ParseFromString(train(KINDS["bpe-prefix"]))
    for piece in proto.pieces:
        piece.score = 0.0 if piece.type == 1 else piece.score  # every merge as good as any other
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match="cannot be reproduced exactly"):
        load_tokenizer(tmp_path)


def test_without_sentencepiece(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match="pip install sentencepiece protobuf"):
        load_tokenizer(folder_of("bpe"))


def test_tokenizer_json_goes_first(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folder_of("unigram"), tmp_path, dirs_exist_ok=True)
    save_tokenizer(load_tokenizer(folder_of("bpe")), tmp_path)
    assert load_tokenizer(tmp_path)("What number?")["input_ids"] == reference(KINDS["bpe"], "What number?")


def test_image_token_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(KINDS["bpe"]))
    with pytest.raises(CheckpointError, match="no token <IMG_CONTEXT>"):
        image_token_id(load_tokenizer(tmp_path))
