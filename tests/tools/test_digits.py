"""The sample data: same seed same bytes, no scan on both sides, answers and sizes that are true."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.errors import ConfigError
from internvl_chat.tools.digit_pictures import load_scans
from internvl_chat.tools.digits import add_arguments, make_digits, run

TRAIN, HELD_OUT = 120, 50


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("playground")
    assert make_digits(out, train=TRAIN, held_out=HELD_OUT, seed=3) == out / "digits.json"
    return out


def _lines(out: Path, side: str) -> list[dict[str, Any]]:
    text = (out / "opensource" / f"digits_{side}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def _pictures(line: dict[str, Any]) -> list[str]:
    image = line.get("image", [])
    return [image] if isinstance(image, str) else image


def _digest(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_same_bytes_and_leaves_nothing_stale(made: Path, tmp_path: Path) -> None:
    make_digits(tmp_path, train=TRAIN + 30, held_out=HELD_OUT, seed=4)
    other = _digest(tmp_path)
    make_digits(tmp_path, train=TRAIN, held_out=HELD_OUT, seed=3)
    assert _digest(tmp_path) == _digest(made)
    assert other["opensource/digits_train.jsonl"] != _digest(made)["opensource/digits_train.jsonl"]


def test_no_scan_is_on_both_sides(made: Path) -> None:
    used = json.loads((made / "data/digits/scans.json").read_text())
    train, test = (
        {i for name, ids in used.items() if name.startswith(side) for i in ids} for side in ("train", "test")
    )
    assert train and test and not train & test


@pytest.mark.parametrize("side", ["train", "test"])
def test_answers_are_what_the_scans_show(made: Path, side: str) -> None:
    labels = load_scans().labels
    used = json.loads((made / "data/digits/scans.json").read_text())
    kinds: Counter[str] = Counter()
    for line in _lines(made, side):
        question, answer = (turn["value"] for turn in line["conversations"])
        shown = ["".join(str(labels[i]) for i in used[name]) for name in _pictures(line)]
        if len(shown) == 1:
            assert answer == shown[0] and 1 <= len(answer) <= 4
        elif shown:
            first, second = map(int, shown)
            assert first != second and answer == ("Image-1." if first > second else "Image-2.")
        elif question.startswith("Repeat: "):
            assert answer == question.removeprefix("Repeat: ")
        else:
            assert int(answer) == int(question.removeprefix("What comes after ").removesuffix("?")) + 1
        kinds[("text", "read", "compare")[len(shown)]] += 1
    expected = {"train": {"read": 96, "text": 12, "compare": 12}, "test": {"read": 40, "text": 5, "compare": 5}}
    assert kinds == expected[side]


@pytest.mark.parametrize("side", ["train", "test"])
def test_lines_have_tags_and_sizes_of_their_pictures(made: Path, side: str) -> None:
    lines = _lines(made, side)
    assert len({line["id"] for line in lines}) == len(lines)
    for line in lines:
        names = _pictures(line)
        assert [turn["from"] for turn in line["conversations"]] == ["human", "gpt"]
        assert line["conversations"][0]["value"].count("<image>") == len(names)
        widths = line.get("width_list", [line["width"]] if len(names) == 1 else [])
        heights = line.get("height_list", [line["height"]] if len(names) == 1 else [])
        for name, width, height in zip(names, widths, heights, strict=True):
            with Image.open(made / "data/digits" / name) as picture:
                picture.load()
                assert (picture.size, picture.mode) == ((width, height), "RGB")
            assert height <= 260 and width <= 700
            assert height >= (100 if width > 1.5 * height else 56)
        if len(names) == 1:
            # About one square cell per digit, so that tiling by aspect ratio gives each digit a tile.
            assert abs(widths[0] / heights[0] / len(line["conversations"][1]["value"]) - 1) < 0.1


def test_held_out_lines_say_what_to_score_them_by(made: Path) -> None:
    lines = _lines(made, "test")
    reads = Counter(line["digits"] for line in lines if line["kind"] == "read")
    assert reads == {1: 10, 2: 10, 3: 10, 4: 10}
    assert all(line["digits"] == len(line["conversations"][1]["value"]) for line in lines if line["kind"] != "compare")
    assert not any({"kind", "digits"} & line.keys() for line in _lines(made, "train"))


def test_manifests_point_to_what_was_made(made: Path) -> None:
    for name, side, length in (("digits", "train", TRAIN), ("digits_test", "test", HELD_OUT)):
        ((key, entry),) = json.loads((made / f"{name}.json").read_text()).items()
        assert key == name and entry["length"] == length == len(_lines(made, side))
        assert (made / entry["annotation"]).is_file() and (made / entry["root"]).is_dir()
        assert entry.keys() == {"root", "annotation", "data_augment", "repeat_time", "length"}


def test_values_out_of_range_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"digit_shares.*text_share.*heights"):
        make_digits(tmp_path, train=1, held_out=1, digit_shares=(1.0,), text_share=1.5, heights=(9, 3))
    with pytest.raises(ConfigError, match="held_out_scans is 1"):
        make_digits(tmp_path, train=1, held_out=1, held_out_scans=1.0)
    with pytest.raises(ConfigError, match="train 0"):
        make_digits(tmp_path, train=0, held_out=1)
    assert not list(tmp_path.iterdir())


def test_command_writes_only_single_digits_when_asked(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    shares = ["--digit_shares", "1", "0", "0", "0", "--text_share", "0", "--compare_share", "0"]
    assert run(parser.parse_args([str(tmp_path), "--train", "8", "--held_out", "4", *shares])) == 0
    assert {len(line["conversations"][1]["value"]) for line in _lines(tmp_path, "train")} == {1}
