"""Tensor names against the parameters that an engine has: its renaming, carried out on names only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from internvl_chat.tools.engines import lookup, shortened, tables

# Buffers that old releases carry and that engines compute themselves.
_IGNORED = "rotary_emb.inv_freq"


def engine_name(name: str, rules: Mapping[str, Any]) -> str:
    """The parameter, with its part in brackets where several tensors share one, that a tensor is loaded into."""
    for pattern, new in rules["renames"]:
        name = re.sub(pattern, new, name)
    if rules.get("fused") and name.startswith("language_model."):
        for pattern, new in tables()["fused"].items():
            name = re.sub(pattern, new, name)
    return name


def engine_parameters(raw: Mapping[str, Any], text: Mapping[str, Any], rules: Mapping[str, Any]) -> set[str]:
    """All parameters that the engine's classes have for this config.json; ``text`` is its language model's part."""
    found: set[str] = set()
    for prefix, table in rules["parameters"]:
        if table not in ("llm", "llm_under_model"):
            layers = {"v": range(int(raw["vision_config"]["num_hidden_layers"]))}
            found |= {prefix + name for name in _expand(tables()[table], layers, raw, text)}
            continue
        names = _language_model(raw, text, bool(rules.get("fused")))
        if table == "llm_under_model":  # transformers' own nesting
            names = {re.sub(r"^model\.", "model.language_model.", name) for name in names}
        found |= {prefix + name for name in names}
    return found


def _language_model(raw: Mapping[str, Any], text: Mapping[str, Any], fused: bool) -> set[str]:
    layers, sparse = range(int(text["num_hidden_layers"])), _sparse_layers(text)
    found: set[str] = set()
    for piece in tables()["llms"][text["architectures"][0]]:
        chosen = {"experts": sparse, "mlp": [layer for layer in layers if layer not in sparse]}.get(piece, layers)
        table = f"{piece}_fused" if fused and f"{piece}_fused" in tables() else piece
        loops = {"l": chosen, "e": range(int(text.get("num_experts") or 0))}
        found |= _expand(tables()[table], loops, raw, text)
    return found


def _sparse_layers(text: Mapping[str, Any]) -> list[int]:
    """The layers with experts."""
    if not text.get("num_experts"):
        return []
    step, dense = int(text.get("decoder_sparse_step") or 1), text.get("mlp_only_layers") or []
    return [i for i in range(int(text["num_hidden_layers"])) if i not in dense and (i + 1) % step == 0]


def _expand(entries: Iterable[Any], loops: Mapping[str, Iterable[int]], raw: Any, text: Any) -> set[str]:
    found = {entry if isinstance(entry, str) else entry[0] for entry in entries if _holds(entry, raw, text)}
    for name, numbers in {**loops, "qkv": "qkv"}.items():
        mark = f"{{{name}}}"
        found = {entry.replace(mark, str(n)) for entry in found for n in (numbers if mark in entry else ("",))}
    return found


def _holds(entry: Any, raw: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether an entry's condition holds: ``part.key``, ``!part.key`` or ``part.key=value``."""
    if isinstance(entry, str):
        return True
    key, _, wanted = entry[1].lstrip("!").partition("=")
    value = lookup({"vision": raw.get("vision_config"), "text": text}, key)
    return value == wanted if wanted else bool(value) != entry[1].startswith("!")


def weight_problems(
    names: Iterable[str], raw: Mapping[str, Any], text: Mapping[str, Any], rules: Mapping[str, Any]
) -> list[str]:
    """Tensors that the engine has no parameter for, and parameters that no tensor fills."""
    loaded = {engine_name(name, rules): name for name in names if not name.endswith(_IGNORED)}
    wanted = engine_parameters(raw, text, rules)
    # An output layer stored beside a tied embedding is skipped by all of them.
    spare = {name for name in loaded if name.endswith(("lm_head.weight", "output.weight"))}
    unknown = sorted(loaded[name] for name in loaded.keys() - wanted - spare)
    missing = sorted(wanted - loaded.keys())
    found = []
    if unknown:
        found.append(f"{len(unknown)} tensors have no place in {rules['class']}: {shortened(unknown)}")
    if missing:
        found.append(f"{len(missing)} parameters of {rules['class']} have no tensor: {shortened(missing)}")
    return found
