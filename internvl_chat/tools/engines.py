"""Serving engines as data (engines.json): what each reads of a model folder, and what in a folder would stop it.

The facts were read from the engines' published wheels, of the versions named there. Nothing here runs an engine.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from internvl_chat.errors import CheckpointError, ConfigError, nearest

ENGINES = ("vllm", "lmdeploy", "sglang")
_DATA = Path(__file__).with_name("engines.json")
_TEXT_KEYS = {"hf": "text_config", "original": "llm_config"}
_PICTURE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
# What --max-lora-rank of vLLM may be (vllm/config/lora.py).
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_SHOWN = 4


@cache
def _data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_DATA.read_text(encoding="utf-8"))
    return found


def facts_of(engine: str) -> dict[str, Any]:
    """What is known of an engine. Raises ConfigError for one that is not known."""
    if engine not in ENGINES:
        raise ConfigError(f"--for {engine}: no such engine{nearest(engine, ENGINES)}; legal: {', '.join(ENGINES)}")
    found: dict[str, Any] = _data()[engine]
    return found


def tables() -> dict[str, Any]:
    """Names of the engines' parameters, shared between the engines."""
    found: dict[str, Any] = _data()["tables"]
    return found


def problems(folder: Path, engine: str) -> list[str]:
    """What would stop ``engine`` from serving this folder, or have it serve another model; empty if nothing is known.

    Reads config.json, the small files beside it and the heads of the weight files. Raises CheckpointError for a folder
    without a readable config.json or with damaged weights.
    """
    from internvl_chat.model.layout import ADAPTER_FILE, stored_tensors
    from internvl_chat.tools.engine_weights import weight_problems

    if (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{folder} is a LoRA adapter, not a model: internvl export {folder} OUT --for vllm")
    raw = _read_json(folder / "config.json")
    if raw is None:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read, or is not there")
    facts = facts_of(engine)
    layout = layout_of(raw)
    rules = facts["layouts"][layout]
    found = [*_config_problems(raw, layout, rules, engine), *_file_problems(folder, rules)]
    found += _template_problems(folder, facts, rules)
    if rules.get("remote_code"):
        found += _code_problems(folder, raw, engine)
    if not found:  # else they would say the same again
        names = stored_tensors(folder).keys()
        found = weight_problems(names, raw, raw[_TEXT_KEYS[layout]], rules)
    return found


def layout_of(raw: Mapping[str, Any]) -> str:
    """``hf`` or ``original``, by config.json."""
    from internvl_chat.model.layout import is_hf_native

    return "hf" if is_hf_native(raw) else "original"


def lookup(values: Any, key: str) -> Any:
    """The value under a dotted key, None if it is not there."""
    for word in key.split("."):
        values = values.get(word) if isinstance(values, Mapping) else None
    return values


def _config_problems(raw: Mapping[str, Any], layout: str, rules: Mapping[str, Any], engine: str) -> Iterator[str]:
    """config.json against the classes, keys and values that the engine knows."""
    text_key = _TEXT_KEYS[layout]
    for key in (text_key, "vision_config"):
        if not isinstance(raw.get(key), dict):
            yield f"config.json: {key} is missing"
            return
    names = lookup(raw, f"{text_key}.architectures") or [None]
    if names[0] not in rules["llms"]:
        taken = ", ".join(rules["llms"])
        yield f"config.json: {text_key}.architectures {names[0]}: in this layout {engine} takes {taken}"
    # A value of null is as good as none to a reader.
    own = [f"{text_key}.{key}" for key in tables()["keys_by_llm"].get(names[0], ())]
    gone = [key for key in (*rules["keys"], *own) if lookup(raw, key) is None]
    if gone:
        yield f"config.json lacks {', '.join(gone)}, which {engine} reads"
    for key, legal in rules["values"].items():
        value = lookup(raw, key)
        if value not in legal:
            words = " or ".join(json.dumps(one) for one in legal if one is not None)
            yield f"config.json: {key} {json.dumps(value)}: {engine} computes as if it were {words}"


def _file_problems(folder: Path, rules: Mapping[str, Any]) -> Iterator[str]:
    """The files beside the weights, and the keys in them."""
    for entry, keys in rules["files"].items():
        here = [folder / name for name in entry.split("|") if (folder / name).is_file()]
        if not here:
            yield f"{entry.replace('|', ' or ')} is missing"
            continue
        if not keys:
            continue
        values = _read_json(here[0])
        if values is None:
            yield f"{here[0].name} cannot be read"
            continue
        gone = [key for key in keys if lookup(values, key) is None]
        if gone:
            yield f"{here[0].name} lacks {', '.join(gone)}"
    yield from _token_problems(folder, rules)


def _token_problems(folder: Path, rules: Mapping[str, Any]) -> Iterator[str]:
    """The picture tokens are tokens of their own; the video token's row exists in the engine's embedding."""
    tokenizer = _read_json(folder / "tokenizer.json")
    if tokenizer is None:
        return  # said already, or a SentencePiece model
    added = {str(token["content"]): int(token["id"]) for token in tokenizer.get("added_tokens", ())}
    known = {**tokenizer.get("model", {}).get("vocab", {}), **added} if _has_vocabulary(tokenizer) else added
    gone = [token for token in _PICTURE_TOKENS if token not in added]
    if gone:
        yield f"tokenizer.json: {', '.join(gone)} must be added tokens, else a picture's place is not found"
    video = rules.get("video_token")
    if video is None or not known:
        return
    raw = _read_json(folder / "config.json") or {}
    rows, step = lookup(raw, "text_config.vocab_size") or 0, video["rows_padded_to"]
    # The tokenizer gives a token that it lacks the next free number when it is loaded.
    number = known.get(video["name"], max(known.values()) + 1)
    if number >= -(-rows // step) * step:
        yield (
            f"the token {video['name']} becomes number {number}, the embedding has {rows} rows (padded to "
            f"{step}s): a video would read beyond it; serve with --limit-mm-per-prompt '{{\"video\": 0}}'"
        )


def _has_vocabulary(tokenizer: Mapping[str, Any]) -> bool:
    return isinstance(lookup(tokenizer, "model.vocab"), Mapping)


def _template_problems(folder: Path, facts: Mapping[str, Any], rules: Mapping[str, Any]) -> Iterator[str]:
    """A chat template, and a path that does not make the engine take another one."""
    file = "chat_template.jinja"
    inside = (_read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    if file not in rules["files"] and not (folder / file).is_file() and not inside:
        yield "chat_template.jinja is missing (nor is there a chat_template in tokenizer_config.json)"
    path = str(folder).lower()
    for words in facts.get("chat_templates_by_path", ()):
        if all(word in path for word in words):
            yield (
                f"the folder's path has {' and '.join(words)} in it, by which the engine takes a chat template of its "
                "own for another model: rename the folder"
            )


def _code_problems(folder: Path, raw: Mapping[str, Any], engine: str) -> Iterator[str]:
    """The modelling code that an engine without a config class of its own for this layout runs."""
    target = lookup(raw, "auto_map.AutoConfig")
    file = f"{str(target).rpartition('--')[2].split('.')[0]}.py" if target else "configuration_internvl_chat.py"
    if target is None or not (folder / file).is_file():
        yield (
            f"{file} and auto_map in config.json: {engine} reads the original layout with the release's own code only. "
            "Export from a folder that has its *.py files, or with --format hf"
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


# -- choosing and starting --------------------------------------------------------------------------------------------


def layout_for(engine: str, config: Any, code: bool = False) -> str:
    """The layout to write for ``engine``: the first of its preferred ones that takes such a model.

    ``config``: an InternVLChatConfig; ``code``: whether the release's modelling code will be there. Raises ConfigError,
    with the reasons, if none does.
    """
    from internvl_chat.model.config import with_old_keys
    from internvl_chat.model.hf_native import to_hf_config

    facts = facts_of(engine)
    reasons = []
    for layout in facts["prefers"]:
        try:
            hf = with_old_keys(to_hf_config(config).to_dict(), "text_config") if layout == "hf" else None
            raw = hf or {"architectures": ["InternVLChatModel"], **config.to_diff_dict()}
        except ConfigError as error:
            reasons.append(str(error))
            continue
        rules = facts["layouts"][layout]
        if rules.get("remote_code") and not code:
            reasons.append(f"{layout} layout: {engine} needs the release's own *.py files in the source folder")
            continue
        found = list(_config_problems(raw, layout, rules, engine))
        if not found:
            return str(layout)
        reasons += [f"{layout} layout: {one}" for one in found]
    raise ConfigError(
        f"--for {engine}: {'; '.join(reasons)}. `internvl chat` and `internvl demo` take this model as it is"
    )


def command_line(engine: str, folder: Path, adapter: Path | None = None, rank: int = 0) -> str:
    """The command that serves the folder, and an adapter beside it (vLLM only)."""
    facts = facts_of(engine)
    raw = _read_json(folder / "config.json") or {}
    layout = layout_of(raw)
    rules = facts["layouts"][layout]
    words = [*facts["serve"], *rules.get("options", ())]
    words += rules.get("options_by_llm", {}).get((lookup(raw, f"{_TEXT_KEYS[layout]}.architectures") or [""])[0], [])
    if adapter is not None:
        words += facts["adapter"]
    names = {"folder": folder, "name": folder.name, "rank": lora_rank(rank), "adapter": adapter}
    names["adapter_name"] = adapter.name if adapter is not None else ""
    return shlex.join(word.format(**names) for word in words)


def lora_rank(rank: int) -> int:
    """The smallest ``--max-lora-rank`` of vLLM that holds ``rank``."""
    return next((legal for legal in MAX_LORA_RANKS if legal >= rank), MAX_LORA_RANKS[-1])


def shortened(items: list[str]) -> str:
    """The first few of a list, for a message."""
    return f"{', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''}"
