"""A whole data set: counts by hand, the same with any number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl_chat.data.index import open_index
from internvl_chat.data.survey import Spread, Survey, add_shared_lines, earlier_lines, fault_codes, survey_dataset
from tests.data.helpers import line, make_maker, spec_of, write_lines, write_noise


def survey(folder: Path, lines: list[Any], *, name: str = "notes", workers: int = 1, **keys: Any) -> Survey:
    decode = keys.pop("decode", False)
    limits = {key: keys.pop(key) for key in ("max_tokens",) if key in keys}
    spec = spec_of(write_lines(folder / f"{name}.jsonl", lines), folder, name, **keys)
    maker = make_maker(**limits)
    return survey_dataset(spec, open_index(spec, maker, folder / "index"), maker, workers=workers, decode=decode)


def test_earlier_lines_and_spread_by_hand() -> None:
    hashes = np.array([5, 0, 7, 5, 0, 7, 5], np.uint64)
    assert earlier_lines(hashes).tolist() == [-1, -1, -1, 0, -1, 2, 0]
    assert Spread.of(np.arange(1, 101, dtype=np.uint32)) == Spread(5050, 50.5, 50, 95, 100)
    assert Spread.of(np.zeros(0, np.uint32)) == Spread()


def test_one_process_or_several_say_the_same(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png", 40, 30)
    lines: list[Any] = []
    for number in range(700):
        lines.append(line(f"q {number % 600}", "a " if number % 7 == 0 else "a", id=number % 650))
    lines[3] = b"nothing"
    lines[5] = line("<image>", "a", image="a.png")
    for decode in (False, True):
        one = survey(tmp_path, lines, decode=decode)
        three = survey(tmp_path, lines, workers=3, decode=decode)
        assert one == three and (one.content == three.content).all()
    assert (one.lines, one.usable, one.left_out) == (700, 699, 1)
    # 601..699 repeat 1..99, but for 603 and 605, whose first ones are gone; 602 % 7 == 0 and 2 differ in a space.
    repeats = [n for n in range(600, 700) if n not in (603, 605) and (n % 7 == 0) == ((n - 600) % 7 == 0)]
    assert one.warnings["duplicate"].count == len(repeats)
    assert [example.line for example in one.warnings["duplicate"].first] == [n + 1 for n in repeats[:3]]
    near = [n for n in range(600, 700) if n not in (603, 605) and n not in repeats]
    assert one.warnings["near_duplicate"].count == len(near)
    assert one.warnings["space"].count == 100
    # The lines replaced had the ids 3 and 5.
    assert one.warnings["same_id"].count == 50 - 2


def test_faults_are_counted_under_the_limits(tmp_path: Path) -> None:
    found = survey(tmp_path, [line("q", "a"), line("word " * 300, "a"), line("q"), b"{"], max_tokens=300)
    assert {code: tally.count for code, tally in found.faults.items()} == {
        "NOT_JSON": 1,
        "TURN_ORDER": 1,
        "TOO_LONG": 1,
    }
    assert [tally.first[0].line for tally in found.faults.values()] == [4, 3, 2]
    assert found.longest > 300 >= found.tokens.max and found.tokens.sum == found.tokens.max
    spec = found.spec
    index = open_index(spec, make_maker(max_tokens=300), tmp_path / "index")
    assert fault_codes(index, make_maker(max_tokens=300).limits).tolist() == [0, 10, 4, 1]


def test_data_set_warnings(tmp_path: Path) -> None:
    assert survey(tmp_path, [line("q", "a")], length=1).warnings == {}
    found = survey(tmp_path, [line("q", "a")], length=2).warnings["length"]
    assert found.first[0].text == "the manifest says 2, there are 1 lines"
    held = survey(tmp_path, [line("q", "a"), b"{"], split="eval")
    assert (held.held_out, held.lines) == (1, 2)


def test_content_that_two_data_sets_share(tmp_path: Path) -> None:
    first = survey(tmp_path, [line("q", "a"), line("r", "a"), line("r", "a")], name="first")
    second = survey(tmp_path, [line("s", "a"), line("r", "a"), line("q", "a")], name="second")
    one, two = add_shared_lines([first, second])
    assert "elsewhere" not in one.warnings
    assert two.warnings["elsewhere"].count == 2
    assert [(e.line, e.text) for e in two.warnings["elsewhere"].first] == [
        (2, "as line 2 of data set 'first'"),
        (3, "as line 1 of data set 'first'"),
    ]


@pytest.mark.parametrize("broken", [False, True])
def test_decoding_finds_truncated_pictures(tmp_path: Path, broken: bool) -> None:
    whole = write_noise(tmp_path / "a.png", 60, 60).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // (2 if broken else 1)])
    found = survey(tmp_path, [line("q", "a"), line("<image>", "a", image="a.png")], decode=True)
    assert (found.usable, found.unloadable.tolist()) == (2, [1] if broken else [])
    assert {c: (t.count, t.first[0].line, t.first[0].stage) for c, t in found.load_faults.items()} == (
        {"BROKEN_IMAGE": (1, 2, "load")} if broken else {}
    )


@pytest.mark.parametrize(
    ("first", "more", "said"), [(900, [], True), (900, [[0, 0, 1001, 30]], False), (480, [], False)]
)
def test_boxes_that_look_like_thousandths(tmp_path: Path, first: int, more: list[Any], said: bool) -> None:
    write_noise(tmp_path / "a.png", 400, 300)
    lines = [
        line("<image>\n<bbox>", f"a {number}", image="a.png", objects=[{"bbox": box}])
        for number, box in enumerate([[100, 100, first, 300], [1, 1, 20, 20], *more])
    ]
    tally = survey(tmp_path, lines).warnings["box_clipped"]
    assert tally.count == 1 + len(more) and tally.first[0].line == 1
    assert ("looks like 0-1000" in tally.first[0].text) == said


def test_a_table_is_named_as_one(tmp_path: Path) -> None:
    table = survey(tmp_path, ["image,question,answer", "a.png,what,that"]).warnings["no_jsonl"]
    assert (table.count, table.first[0].text) == (1, "this is no JSONL: it looks like CSV")
    assert "no_jsonl" in survey(tmp_path, ["image\tquestion"]).warnings
    for first in (json.dumps(line("q, r", "a")), "", "some words"):
        assert "no_jsonl" not in survey(tmp_path, [first, line("q", "a")]).warnings
