"""The published InternVL chat models: what is known of each, and how it is known. The data are in catalogue.json."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from internvl_chat.errors import ConfigError, nearest

if TYPE_CHECKING:  # transformers takes seconds, and a question about a release needs none of it
    from internvl_chat.model.config import InternVLChatConfig

Known = Literal["read", "inferred", "unknown"]
_GROUPS: tuple[Known, ...] = ("read", "inferred", "unknown")
_DATA = Path(__file__).with_name("catalogue.json")
# Fields of Release -> the value in the data that they show.
_SHOWN = {
    "template": "config.template",
    "min_tiles": "config.min_dynamic_patch",
    "max_tiles": "config.max_dynamic_patch",
    "use_thumbnail": "config.use_thumbnail",
    "select_layer": "config.select_layer",
    "ps_version": "config.ps_version",
}
_OTHERS = ("llm_class", "base_model", "context_length", "parameters", "tensors", "shards")
# Without one of these, names and shapes are not determined.
_SHAPES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_FACTORS = ("short_factor", "long_factor")


@dataclass(frozen=True)
class Parameters:
    """Number of parameters of the parts; None where it is not known."""

    vision: int | None
    mlp: int | None
    llm: int | None

    @property
    def total(self) -> int | None:
        """Sum of the parts, None if one of them is not known."""
        if self.vision is None or self.mlp is None or self.llm is None:
            return None
        return self.vision + self.mlp + self.llm


@dataclass(frozen=True)
class Release:
    """One published model. None stands for a value that is not known.

    ``llm`` names family and size of the language model, ``base_model`` what its training started from;
    ``context_length`` is that of the published training. ``shards`` are the weight files that 5 GB per file give, or
    those seen. ``download_gb`` and ``published`` are as on the model cards, rounded there; with ``published_is_wrong``
    they describe another model. ``config`` has the fields of config.json that are known.
    """

    name: str
    generation: str
    hub_id: str | None
    vision_tower: str
    llm: str
    llm_class: str
    base_model: str | None
    template: str
    context_length: int | None
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    select_layer: int | None
    ps_version: str
    parameters: Parameters
    tensors: int | None
    shards: int | None
    download_gb: float | None
    published: Mapping[str, str]
    published_is_wrong: bool
    unsupported: str | None
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    _marks: Mapping[str, Known] = field(repr=False)

    @property
    def supported(self) -> bool:
        """Whether this version trains it; if not, ``unsupported`` says why."""
        return self.unsupported is None

    @property
    def bf16_bytes(self) -> int | None:
        """Size of the weights in bfloat16."""
        total = self.parameters.total
        return None if total is None else 2 * total

    def known(self, name: str) -> Known:
        """How a field of this class, or a value like ``llm_config.vocab_size`` or ``config.template``, is known."""
        words = _SHOWN.get(name, name).split(".")
        for length in range(len(words), 0, -1):
            if group := self._marks.get(".".join(words[:length])):
                return group
        return "read"

    @property
    def inferred(self) -> tuple[str, ...]:
        """Values taken from sibling releases, the base model or published totals, not read in this release."""
        return tuple(name for name in self._values() if self.known(name) == "inferred")

    @property
    def unknown(self) -> tuple[str, ...]:
        """Values that nobody here has seen, and that nothing gives."""
        return tuple(name for name, group in self._marks.items() if group == "unknown")

    def _values(self) -> Iterator[str]:
        for key, value in self.config.items():
            if isinstance(value, dict):
                yield from (f"{key}.{name}" for name in value if name != "architectures")
            else:
                yield f"config.{key}"
        yield from _OTHERS

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON. ``known``: value -> ``read``, ``inferred`` or ``unknown``."""
        plain = ("generation", "hub_id", "vision_tower", "llm", "llm_class", "base_model", "context_length")
        sizes = {part: getattr(self.parameters, part) for part in ("vision", "mlp", "llm", "total")}
        groups = {name: self.known(name) for name in self._values()} | dict.fromkeys(self.unknown, "unknown")
        return {
            "name": self.name,
            **{key: getattr(self, key) for key in (*plain, *_SHOWN)},
            "parameters": sizes,
            "bf16_bytes": self.bf16_bytes,
            **{key: getattr(self, key) for key in ("tensors", "shards", "download_gb")},
            "published": dict(self.published),
            "published_is_wrong": self.published_is_wrong,
            "supported": self.supported,
            "unsupported": self.unsupported,
            "notes": list(self.notes),
            "config": copy.deepcopy(dict(self.config)),
            "known": groups,
        }


@cache
def releases() -> tuple[Release, ...]:
    """All releases, oldest generation first, small before large within one."""
    data = json.loads(_DATA.read_text(encoding="utf-8"))
    return tuple(_release(data, entry) for entry in data["releases"])


def release(name: str) -> Release:
    """The release of that name; ``OpenGVLab/NAME`` is read too. Raises ConfigError with the nearest name."""
    known = {found.name: found for found in releases()}
    short = name.removeprefix("OpenGVLab/")
    if short not in known:
        raise ConfigError(f"no release {name!r} is known{nearest(short, known)}; `internvl models` lists all")
    return known[short]


def config_of(release: Release, assume: Mapping[str, Any] | None = None) -> InternVLChatConfig:
    """The chat config of a release, for names, shapes and sizes. To load weights, use the config.json beside them.

    ``assume``: values for names in ``release.unknown``. An unknown value that no shape depends on gets the default of
    its class; the factors of longrope are then ones. Raises ConfigError if the shapes are not known, with all
    unknown values, and for other names in ``assume``.
    """
    raw = copy.deepcopy(dict(release.config))
    for name, value in (assume or {}).items():
        if name not in release.unknown:
            raise ConfigError(
                f"{release.name}: {name} cannot be assumed{nearest(name, release.unknown)}; "
                f"unknown: {', '.join(release.unknown) or 'nothing'}"
            )
        _set(raw, name, value)
    llm = raw["llm_config"]
    if any(key not in llm for key in _SHAPES):
        raise ConfigError(
            f"{release.name}: its shapes are not known here, only its own config.json gives them; "
            f"unknown: {', '.join(release.unknown)}"
        )
    scaling = llm.get("rope_scaling")
    if scaling and scaling["type"] == "su":
        half = llm["hidden_size"] // llm["num_attention_heads"] // 2
        llm["rope_scaling"] = {**{factor: [1.0] * half for factor in _FACTORS}, **scaling}
    for part in (raw, raw["vision_config"], llm):
        part["dtype"] = "bfloat16"
    from internvl_chat.model.config import InternVLChatConfig

    config: InternVLChatConfig = InternVLChatConfig.from_dict(raw)
    return config


def _set(raw: dict[str, Any], name: str, value: Any) -> None:
    *parts, last = name.removeprefix("config.").split(".")
    for part in parts:
        raw = raw[part]
    raw[last] = value


def _release(data: Mapping[str, Any], entry: Mapping[str, Any]) -> Release:
    """One entry of the data, completed by what it refers to; what comes later wins."""
    generation = data["generations"][entry["generation"]]
    tower, llm = data["vision_towers"][entry["vision_tower"]], data["language_models"][entry["llm"]]
    layers = (data["common"], generation, entry)
    chat = {key: value for layer in layers for key, value in layer.get("config", {}).items()}
    vision = data["common"]["vision_config"] | tower["config"]
    for layer in (generation, entry):
        vision |= layer.get("vision_config", {})
    language = {"architectures": [llm["class"]], **llm["config"], **entry.get("llm_config", {})}
    marks = {name: group for layer in layers for group in _GROUPS for name in layer.get(group, ())}
    direct = ("name", "generation", "hub_id", "vision_tower", "llm", "base_model", "tensors", "shards")
    shown: dict[str, Any] = {key: chat.get(path.removeprefix("config.")) for key, path in _SHOWN.items()}
    return Release(
        **{key: entry[key] for key in direct},
        llm_class=llm["class"],
        context_length=entry.get("context_length", generation["context_length"]),
        **shown,
        parameters=Parameters(*entry["parameters"]),
        download_gb=entry.get("download_gb"),
        published=entry.get("published", {}),
        published_is_wrong=entry.get("published_is_wrong", False),
        unsupported=entry.get("unsupported"),
        notes=tuple(entry.get("notes", ())),
        config={**chat, "vision_config": vision, "llm_config": language},
        _marks=marks,
    )
