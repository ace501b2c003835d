"""What the tests of the data layer share: golden files, makers, small files on disk."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

from internvl_chat.data.fit import Limits
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.plan.cost import Cost
from internvl_chat.data.plan.epoch import PlanSettings
from internvl_chat.data.plan.sizes import ArraySizes
from internvl_chat.data.sample import SampleMaker
from internvl_chat.data.template import get_template
from internvl_chat.data.tiles import TileSettings
from internvl_chat.data.tokens import Encoder

GOLDENS = Path(__file__).parents[1] / "goldens"
IMAGES = GOLDENS / "images"
NO_LIMIT = 2**30
# (template, tokenizer) of the golden conversations, and the tiny tokenizers that have the markers of a template.
GOLDEN_PAIRS = (
    ("Hermes-2", "qwen2"),
    ("internlm2-chat", "internlm2_like"),
    ("phi3-chat", "phi3_like"),
    ("internvl2_5", "qwen2"),
    ("internvl2_5", "internlm2_like"),
)
TINY_PAIRS = (
    ("Hermes-2", "tiny-qwen2"),
    ("internvl2_5", "tiny-qwen2"),
    ("internlm2-chat", "tiny-llama"),
    ("internvl_zh", "tiny-llama"),
    ("phi3-chat", "tiny-phi3"),
)


def properties(examples: int) -> Any:
    """Settings of a property test: the same examples in every run; INTERNVL_HUNT=N tries N times as many, at random."""
    hunt = int(os.environ.get("INTERNVL_HUNT", "0"))
    return settings(
        max_examples=examples * max(1, hunt),
        deadline=None,
        derandomize=not hunt,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@cache
def load_json(name: str) -> Any:
    """A golden file."""
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


@cache
def tokenizer(name: str) -> Any:
    """A golden tokenizer (qwen2, phi3_like, internlm2_like) or one trained on the spot (tiny-qwen2, -llama, -phi3)."""
    from transformers import PreTrainedTokenizerFast

    from internvl_chat.tools.tiny import KINDS, train_tokenizer

    if name.startswith("tiny-"):
        return train_tokenizer(KINDS[name.removeprefix("tiny-")], 320, ())
    return PreTrainedTokenizerFast.from_pretrained(GOLDENS / "tokenizers" / name, local_files_only=True)


@cache
def encoder(template: str, tokenizer_name: str, tokens_per_tile: int = 256) -> Encoder:
    return Encoder(tokenizer(tokenizer_name), get_template(template), tokens_per_tile)


def make_maker(
    template: str = "internvl2_5",
    tokenizer_name: str = "tiny-qwen2",
    *,
    tokens_per_tile: int = 4,
    max_tokens: int = NO_LIMIT,
    max_samples_tiles: int = NO_LIMIT,
    seed: int = 0,
    **tiles: Any,
) -> SampleMaker:
    """A maker of small samples: tiles of 28 pixels, at most 6 of them, unless told otherwise."""
    settings_ = TileSettings(**{"size": 28, "max_tiles": 6, "backend": "torch", **tiles})
    return SampleMaker(
        encoder(template, tokenizer_name, tokens_per_tile), settings_, Limits(max_tokens, max_samples_tiles), seed
    )


def conversation(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Turns of the InternVL format: human, gpt, human, gpt ..."""
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]
    return ([] if system is None else [{"from": "system", "value": system}]) + turns


def line(*texts: str, system: str | None = None, **keys: Any) -> dict[str, Any]:
    """One annotation line."""
    return {"conversations": conversation(*texts, system=system), **keys}


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    """JSONL file; a string or bytes is written as it is."""
    with path.open("wb") as file:
        for item in lines:
            text = item if isinstance(item, (str, bytes)) else json.dumps(item, ensure_ascii=False)
            file.write((text if isinstance(text, bytes) else text.encode()) + b"\n")
    return path


def write_noise(path: Path, width: int, height: int, seed: int = 0, mode: str = "RGB") -> Path:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def picture_bytes(width: int, height: int, mode: str = "RGB") -> bytes:
    """The file of a picture of one colour; quick, whatever its size. PNG, or TIFF for what PNG cannot hold."""
    buffer = io.BytesIO()
    if mode in ("CMYK", "YCbCr"):
        Image.new(mode, (width, height)).save(buffer, format="TIFF", compression="tiff_lzw")
    else:
        Image.new(mode, (width, height)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def spec_of(annotation: Path, root: Path | str = "", name: str = "notes", **keys: Any) -> DatasetSpec:
    return DatasetSpec(name, str(root), annotation, **keys)


def runs_to_ids(runs: Sequence[int | list[int]]) -> list[int]:
    """``[1, [7, 3], 2]`` -> ``[1, 7, 7, 7, 2]``."""
    return [item for run in runs for item in ([run] if isinstance(run, int) else [run[0]] * run[1])]


# Sizes of the samples and settings of the plan.
Case = tuple[ArraySizes, PlanSettings]


@st.composite
def settings_and_sizes(draw: st.DrawFn) -> Case:
    """Small numbers, so that ties and exact fits are common; packs have budgets of 30 tokens and 6 tiles."""
    packed = draw(st.booleans())
    plan = PlanSettings(
        packed=packed,
        packs_per_step=draw(st.sampled_from([1, 2, 4, 6, 12])),
        seed=draw(st.integers(0, 2**31)),
        max_tokens=30 if packed else 0,
        max_tiles=6 if packed else 0,
        batch_size=1 if packed else draw(st.integers(1, 4)),
        by_length=not packed and draw(st.booleans()),
        cost=draw(st.sampled_from([Cost(), Cost(1.0, 20.0, 0.5)])),
    )
    sizes = draw(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)), min_size=1, max_size=120))
    tokens, tiles = np.array(sizes).T
    return ArraySizes(tokens.astype(np.int32), tiles.astype(np.int32)), plan
