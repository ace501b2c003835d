"""Tokenizers of model folders: read with exactly the ids of their files, given the special tokens, written complete.

A folder holds one of three forms, taken in this order: ``tokenizer.json``; a SentencePiece ``tokenizer.model``;
``vocab.json`` with ``merges.txt``. Remote code is never run, and nothing that is saved asks for any.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from internvl_chat.constants import IMG_CONTEXT, SPECIAL_TOKENS
from internvl_chat.errors import CheckpointError, ConfigError, first_line

FORMS = "tokenizer.json, tokenizer.model (SentencePiece), or vocab.json with merges.txt"
# Settings that would send a reader to code of the folder, or to a class that rebuilds the tokenizer with other ids.
_OF_A_CLASS = (
    "auto_map",
    "tokenizer_class",
    "tokenizer_file",
    "vocab_file",
    "name_or_path",
    "use_fast",
    "sp_model_kwargs",
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
# Kinds of SentencePiece pieces and models, by their numbers in the file.
_NORMAL, _CONTROL, _USER_DEFINED, _UNIGRAM, _BPE = 1, 3, 4, 1, 2
_SPACE = "\u2581"
# Texts on which the tokenizer made from a SentencePiece model must agree with it; words like markers are plain text.
_PROBES = (
    "The quick brown fox, 1234567890 times. It's don't we're",
    "a  b   c\n\n\td \n e  ",
    "你好，世界。书生·万象 日本語 한국어 مرحبا",
    "😀👩‍👩‍👧 \u0301é ﬁ ½",
    "def f(x):\n    return {'a': [1, 2.5e-3]} # <html></html>",
    "<s></s><unk><0x41><pad>",
    " two words",
    " ",
)


def load_tokenizer(path: str | Path) -> Any:
    """Fast tokenizer of a model folder (it has ``backend_tokenizer``), ids exactly as its files say.

    ``tokenizer.json`` is taken as it is: the classes that ``tokenizer_config.json`` names may rebuild it with other
    ids. SentencePiece models are rebuilt from their pieces and checked against SentencePiece itself. Raises
    CheckpointError if there is no tokenizer that can be read without remote code; ConfigError if a package lacks.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, **_unnamed(folder))
        elif (folder / "tokenizer.model").is_file():
            tokenizer = _load_sentencepiece(folder)
        else:
            _check_form(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: no usable tokenizer ({first_line(error)}). The folder needs {FORMS}, and tokenizer_config.json"
        ) from error
    # Kept, it would be written into every checkpoint, and old readers would look for the code beside it.
    tokenizer.init_kwargs.pop("auto_map", None)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CheckpointError(
            f"{folder}: {type(tokenizer).__name__} has no tokenizer.json form. The folder needs {FORMS}"
        )
    return tokenizer


def _unnamed(folder: Path) -> dict[str, Any]:
    """Without the names that the HF-native layout gives to tokens: one, ``<video>``, has no row in the model."""
    named = _read_json(folder / "tokenizer_config.json").get("extra_special_tokens")
    return {"extra_special_tokens": []} if isinstance(named, dict) else {}


def image_token_id(tokenizer: Any) -> int:
    """Id of ``<IMG_CONTEXT>``. Raises CheckpointError if the tokenizer does not have it as one token."""
    token = tokenizer.get_vocab().get(IMG_CONTEXT)
    if token is None:
        raise CheckpointError(
            f"the tokenizer has no token {IMG_CONTEXT}: this is not the tokenizer of an InternVL chat model. Add the "
            "special tokens of internvl_chat.constants.SPECIAL_TOKENS in order and resize the vocabulary"
        )
    return int(token)


def add_special_tokens(tokenizer: Any, extra: Sequence[str] = ()) -> int:
    """Give a tokenizer InternVL's nine tokens, then ``extra`` as ordinary added tokens; returns how many ids are new.

    New ids follow the last one, in order. A token that the base vocabulary has as an ordinary piece keeps its id and
    becomes special: text is split at it from now on. Raises ConfigError, before anything is added, if one of ``extra``
    is blank, stands there twice or is a token already.
    """
    _check_extra(tokenizer, extra)
    before = len(tokenizer)
    whole = tokenizer.added_tokens_encoder
    for name in SPECIAL_TOKENS:
        if name not in whole or not tokenizer.added_tokens_decoder[whole[name]].special:
            tokenizer.add_tokens([AddedToken(name, normalized=False, special=True)], special_tokens=True)
    # Unnormalised: a normaliser that puts a space before every text would do so with the token and never find it.
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in extra])
    return len(tokenizer) - before


def save_tokenizer(tokenizer: Any, folder: str | Path, source: str | Path | None = None) -> None:
    """Write a tokenizer that ``load_tokenizer`` and readers before transformers 5 load with the same ids.

    ``source``: the folder it came from. Its ``tokenizer.model`` is copied for tools that read nothing else, if each of
    its ids is the one that is saved.
    """
    folder = Path(folder)
    tokenizer.save_pretrained(folder)
    _write_for_old_readers(folder / "tokenizer_config.json")
    # Nothing else: who reads vocab.json reads tokenizer.json too, and added_tokens.json lacks what was added since.
    model = None if source is None else Path(source) / "tokenizer.model"
    if model is None or not model.is_file() or model.resolve() == (folder / "tokenizer.model").resolve():
        return
    if _agrees(tokenizer, model):
        shutil.copyfile(model, folder / "tokenizer.model")


def _load_sentencepiece(folder: Path) -> Any:
    """A tokenizer made from ``tokenizer.model`` and the small files beside it. Raises CheckpointError, ConfigError."""
    processor, proto = _read_model(folder / "tokenizer.model")
    settings = _read_json(folder / "tokenizer_config.json")
    names = _read_json(folder / "special_tokens_map.json")
    for key in _NAMED:
        number = getattr(processor, key.replace("token", "id"))()
        default = processor.id_to_piece(number) if number >= 0 else None
        settings[key] = _content(settings[key] if key in settings else names.get(key, default))
    listed = [settings.pop(key, None) for key in ("extra_special_tokens", "additional_special_tokens")]
    extras = [_content(token) for token in listed[0] or listed[1] or names.get("additional_special_tokens") or ()]
    added = _added_tokens(folder, settings.pop("added_tokens_decoder", None) or {})
    special = {name for name in (*(settings[key] for key in _NAMED), *extras) if name}
    core = _make_core(proto, added, special, only_first_prefix=settings.get("legacy") is False)
    if missing := sorted(name for name in special if core.token_to_id(name) is None):
        raise ValueError(f"special tokens without an id: {' '.join(missing)}")
    _check_against(processor, core, added, leading_space=settings.get("legacy") is not False)
    # What the slow Llama and InternLM2 classes do with a file that says nothing.
    settings = {"add_bos_token": settings["bos_token"] is not None, "add_eos_token": False, **settings}
    kept = {key: value for key, value in settings.items() if key not in _OF_A_CLASS and value is not None}
    if (folder / "chat_template.jinja").is_file():
        kept["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=extras, name_or_path=str(folder), **kept)


def _read_model(path: Path) -> tuple[Any, Any]:
    """Processor and description of a SentencePiece file."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise ConfigError(
            f"{path}: sentencepiece and protobuf are needed to read it ({error}): pip install sentencepiece protobuf"
        ) from error
    data = path.read_bytes()
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(data)
        if not proto.pieces:
            raise ValueError("it holds no pieces")
        return SentencePieceProcessor(model_proto=data), proto
    except (DecodeError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: no SentencePiece model ({first_line(error)}); copy the file again") from error


def _make_core(proto: Any, added: dict[int, AddedToken], special: set[str], only_first_prefix: bool) -> Tokenizer:
    """SentencePiece pieces, with those of ``added`` under their new names, as a ``tokenizers`` pipeline."""
    size, rules = len(proto.pieces), proto.normalizer_spec
    names = [added[i].content if i in added else piece.piece for i, piece in enumerate(proto.pieces)]
    for number in sorted(i for i in added if i >= size):
        if number != len(names):
            raise ValueError(f"added token {added[number].content} has id {number}, but no token has id {len(names)}")
        names.append(added[number].content)
    if len(set(names)) != len(names):
        raise ValueError(f"two ids for the token {next(n for i, n in enumerate(names) if n in names[:i])}")
    kinds = [None if i in added else piece.type for i, piece in enumerate(proto.pieces)]
    core = Tokenizer(_make_model(proto, names[:size], kinds))
    own = {i: names[i] for i, kind in enumerate(kinds) if kind == _USER_DEFINED and names[i] not in special}
    core.normalizer = normalizers.Sequence(_make_normalizers(rules, list(own.values()), only_first_prefix))
    if rules.add_dummy_prefix and only_first_prefix:
        # Llama with "legacy": false; before it, each part behind a special token began with a space too.
        core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    ends = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix or rules.remove_extra_whitespaces else []
    core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    for number, name in enumerate(names):
        if number in own:
            # Found in normalised text: split off before, what follows would get a prefix space of its own.
            core.add_tokens([AddedToken(name, normalized=True, special=False)])
        elif number in added or name in special or kinds[number] == _CONTROL:
            token = added.get(number, AddedToken(name, normalized=False, special=True))
            token.special = token.special or name in special
            (core.add_special_tokens if token.special else core.add_tokens)([token])
        if core.token_to_id(name) != number:
            raise ValueError(f"token {name} has id {number} in its file, {core.token_to_id(name)} here")
    return core


def _make_model(proto: Any, names: list[str], kinds: list[int | None]) -> Any:
    """The segmentation model: only normal pieces can come from text, as in SentencePiece."""
    trainer = proto.trainer_spec
    scores = [piece.score for piece in proto.pieces]
    normal = {name: i for i, (name, kind) in enumerate(zip(names, kinds, strict=True)) if kind == _NORMAL}
    if proto.normalizer_spec.escape_whitespaces is False or trainer.treat_whitespace_as_suffix:
        raise ValueError("a SentencePiece model with spaces behind words or unescaped is not supported")
    if trainer.model_type == _BPE:
        # SentencePiece merges the pair whose union has the best score, however that union came about.
        ranked = sorted(normal, key=lambda name: (-scores[normal[name]], normal[name]))
        merges = [pair for name in ranked for pair in _splits(name, normal)]
        vocabulary = {name: i for i, name in enumerate(names)}
        unk = names[trainer.unk_id]
        return models.BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=trainer.byte_fallback)
    if trainer.model_type != _UNIGRAM:
        raise ValueError("a SentencePiece model of words or characters is not supported")
    # Pieces that text must not become are worth less than their letters one by one.
    worst = min((scores[i] for i in normal.values()), default=0.0)
    banned = worst * (1 + max(map(len, names))) - 100.0
    vocab = [(name, scores[i] if name in normal else banned) for i, name in enumerate(names)]
    return models.Unigram(vocab, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)


def _splits(name: str, normal: dict[str, int]) -> Iterator[tuple[str, str]]:
    return ((name[:at], name[at:]) for at in range(1, len(name)) if name[:at] in normal and name[at:] in normal)


def _make_normalizers(rules: Any, own: list[str], only_first_prefix: bool) -> list[Any]:
    """What SentencePiece does to a text first; ``own``: its user-defined pieces."""
    steps: list[Any] = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix and not only_first_prefix:
        # The library normalises the names of user-defined pieces too: they must not get a prefix.
        alone = "|".join(map(re.escape, own))
        start = Regex(rf"\A(?=[\s\S])(?!(?:{alone})\z)")
        steps.append(normalizers.Replace(start, _SPACE) if own else normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{_SPACE}+\z"), ""))
    return steps


def _check_against(processor: Any, core: Tokenizer, added: dict[int, AddedToken], leading_space: bool) -> None:
    """Raise ValueError where the pipeline and SentencePiece disagree: better no tokenizer than other ids."""
    core.encode_special_tokens = True
    for text in _PROBES:
        if (text[0] == " " and not leading_space) or any(token.content in text for token in added.values()):
            continue
        if core.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise ValueError(f"tokenizer.model cannot be reproduced exactly: other ids for {text!r}")
    core.encode_special_tokens = False


def _added_tokens(folder: Path, decoder: dict[str, Any]) -> dict[int, AddedToken]:
    """id -> token, of ``added_tokens_decoder`` and, before transformers 4.34, ``added_tokens.json``.

    Which of the latter are special, the lists of special tokens say.
    """
    added = {
        int(number): AddedToken(
            value["content"],
            single_word=value.get("single_word", False),
            lstrip=value.get("lstrip", False),
            rstrip=value.get("rstrip", False),
            normalized=False,
            special=value.get("special", True),
        )
        for number, value in decoder.items()
    }
    for name, number in _read_json(folder / "added_tokens.json").items():
        added.setdefault(int(number), AddedToken(name, normalized=False, special=False))
    return added


def _check_form(folder: Path) -> None:
    """Raise CheckpointError if a folder has none of the files that a tokenizer can be made of without code."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return
    has_code = "auto_map" in _read_json(folder / "tokenizer_config.json") or any(folder.glob("tokenization_*.py"))
    reason = "its tokenizer is code of the folder, which is never run" if has_code else "it holds no tokenizer"
    raise CheckpointError(
        f"{folder}: {reason}. The folder needs {FORMS}; copy the missing files from the release, or save the tokenizer "
        "as tokenizer.json where its code may run"
    )


def _check_extra(tokenizer: Any, extra: Sequence[str]) -> None:
    known = {*tokenizer.get_vocab(), *SPECIAL_TOKENS}
    for number, name in enumerate(extra):
        if not name.strip():
            raise ConfigError(f"new token number {number + 1} is blank; give it a name or leave it out")
        if name in extra[:number]:
            raise ConfigError(f"new token {name!r} is listed twice; list it once")
        if name in known:
            raise ConfigError(f"new token {name!r} is in the vocabulary already; leave it out, or choose another name")


def _agrees(tokenizer: Any, model: Path) -> bool:
    """True if every piece of a SentencePiece file has its id in ``tokenizer``, or was renamed there as an added one."""
    processor, _ = _read_model(model)
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    return all(vocabulary.get(processor.id_to_piece(i)) == i or i in added for i in range(processor.get_piece_size()))


def _write_for_old_readers(path: Path) -> None:
    """Use the names that transformers before 5 knows: of the class, and of a list of special tokens.

    Its last releases take ``extra_special_tokens`` for a dictionary and stop at a list.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list) and (extra := values.pop("extra_special_tokens")):
        values["additional_special_tokens"] = extra
    for name in ("processor_class", "is_local", "local_files_only"):
        values.pop(name, None)  # where it came from and how it was loaded
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no file. Raises CheckpointError if it is something else."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: no valid JSON ({error}); copy the file from the release again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object; copy the file from the release again")
    return values


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token
