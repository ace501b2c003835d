"""``internvl check``: every trouble is named with its line, the exit status says whether training would run."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.tools import check as tool
from internvl_chat.tools.check import check, to_json
from internvl_chat.tools.data_view import read_view
from tests.data.helpers import line, write_lines
from tests.tools.troubles import DECODED, TROUBLES, data_flags, number_of, write_troubles

SCHEMA: dict[str, Any] = {
    "manifest": str, "decoded": bool, "would_train": bool, "reasons": [str], "hints": [str],
    "problems": [dict], "run": (dict, type(None)), "epoch": (dict, type(None)),
    "totals": {"data_sets": int, "lines": int, "usable": int, "left_out": int, "warnings": int},
    "data_sets": [dict],
}  # fmt: skip
DATASET_KEYS = {
    "name", "annotation", "error", "lines", "usable", "held_out", "samples", "longest", "most_tiles", "cut",
    "supervised", "answers", "tokens", "tiles", "faults", "load_faults", "warnings",
}  # fmt: skip


def run(*words: str) -> int:
    """The command, as ``internvl check WORDS`` runs it."""
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return tool.run(parser.parse_args(words))


def write_manifest(folder: Path, **data_sets: Any) -> Path:
    """Manifest of text-only data sets given as lists of lines, or as whole entries."""
    entries = {}
    for name, lines in data_sets.items():
        entry = lines if isinstance(lines, dict) else {"lines": lines}
        path = write_lines(folder / f"{name}.jsonl", entry.pop("lines"))
        entries[name] = {"root": "", "annotation": str(path), **entry}
    (folder / "meta.json").write_text(json.dumps(entries))
    return folder / "meta.json"


def fits(value: Any, schema: Any) -> bool:
    if isinstance(schema, dict):
        return set(value) == set(schema) and all(fits(value[key], schema[key]) for key in schema)
    if isinstance(schema, list):
        return isinstance(value, list) and all(fits(item, schema[0]) for item in value)
    return isinstance(value, schema)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_trouble_is_named_with_its_line(tmp_path: Path, tiny: Path, workers: str) -> None:
    flags = data_flags(tiny, "--index_workers", workers, "--index_dir", str(tmp_path / "index"))
    report = to_json(check(read_view(str(write_troubles(tmp_path)), flags), decode=True))
    assert fits(report, SCHEMA) and report["would_train"] is False
    (found,) = report["data_sets"]
    assert set(found) == DATASET_KEYS
    for name, _, code, warnings in TROUBLES:
        number = number_of(name)
        same = [n for n, trouble in enumerate(TROUBLES, 1) if trouble[2] == code]
        if code is not None:
            assert found["faults"][code]["lines"] == len(same)
            first = {entry["line"]: entry for entry in found["faults"][code]["first"]}
            assert list(first) == same[:3]
            if number in first:
                assert first[number]["reason"] and first[number]["mend"]
                assert first[number]["file"] == str(tmp_path / "troubles.jsonl")
        for kind in warnings:
            assert number in [entry["line"] for entry in found["warnings"][kind]["first"]], name
    reported = sorted(entry["line"] for tally in found["warnings"].values() for entry in tally["first"])
    meant = sorted([n for n, trouble in enumerate(TROUBLES, 1) for _ in trouble[3]] + [number_of("turned")])
    assert reported == meant  # and nothing else
    truncated = found["load_faults"][DECODED["truncated"]]
    assert (truncated["lines"], truncated["first"][0]["line"]) == (1, number_of("truncated"))
    assert found["warnings"][DECODED["turned"]]["first"][0]["line"] == number_of("turned")
    assert found["lines"] == len(TROUBLES)
    assert found["usable"] == len(TROUBLES) - sum(trouble[2] is not None for trouble in TROUBLES)
    assert found["answers"]["repetitive"] == 1 and found["longest"] > 300 >= found["tokens"]["max"]


def test_text_json_and_nothing_else_on_stdout(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta, flags = str(write_troubles(tmp_path)), data_flags(tiny)
    assert run(meta, *flags, "--json", str(tmp_path / "deep" / "r.json")) == 1
    text = capsys.readouterr().out
    assert f"{tmp_path / 'troubles.jsonl'}:{number_of('no such picture')}: picture" in text
    count = sum(trouble[2] is not None for trouble in TROUBLES)
    assert "training would stop" in text and f"--max_fault_share {count / len(TROUBLES) + 0.01:.2}" in text
    assert f"{count} of {len(TROUBLES)} lines left out" in text
    assert run("--json", "-", meta, *flags) == 1  # the tool's flags may stand before META, too
    out = capsys.readouterr().out
    assert json.loads(out) == json.loads((tmp_path / "deep" / "r.json").read_text())
    assert not Path("not-written").exists()


def test_exit_status(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [line(f"q {n}", "a") for n in range(10)]
    clean = write_manifest(tmp_path, clean=good)
    assert run(str(clean), *data_flags(tiny), "--strict") == 0
    out = capsys.readouterr().out
    assert "training would run: an epoch of 10 samples" in out and "10 steps" in out
    warned = write_manifest(tmp_path, warned=[*good, line("space", "a ")])
    assert run(str(warned), *data_flags(tiny)) == 0
    assert run(str(warned), *data_flags(tiny), "--strict") == 1
    faulty = write_manifest(tmp_path, faulty=[*good, b"{"])
    assert run(str(faulty), *data_flags(tiny)) == 1
    assert run(str(faulty), *data_flags(tiny), "--max_fault_share", "0.1") == 0
    assert run(str(faulty), *data_flags(tiny), "--max_fault_share", "0.1", "--strict") == 1
    long = write_manifest(tmp_path, long=[*good, line("word " * 400, "a")])
    share = ("--max_fault_share", "1")
    assert run(str(long), *data_flags(tiny), *share) == 0
    assert run(str(long), *data_flags(tiny), *share, "--long_samples", "fail") == 1
    assert "--long_samples is fail" in capsys.readouterr().out
    none = write_manifest(tmp_path, none={"lines": good, "split": "eval"})
    assert run(str(none), *data_flags(tiny)) == 1
    assert "no line of the manifest can be used" in capsys.readouterr().out


def test_pictures_that_fail_to_load_stop_the_run_above_the_share(tmp_path: Path, tiny: Path) -> None:
    write_troubles(tmp_path)
    lines = [line("<image>", "a", image="cut.png"), *(line(f"q {n}", "a") for n in range(9))]
    meta = str(write_manifest(tmp_path, cut={"lines": lines, "root": str(tmp_path)}))
    assert run(meta, *data_flags(tiny)) == 0
    assert run(meta, *data_flags(tiny), "--decode") == 1
    assert run(meta, *data_flags(tiny), "--decode", "--max_fault_share", "0.1") == 0
    hints = check(read_view(meta, data_flags(tiny)), decode=True).hints
    assert any("--max_fault_share 0.11" in hint for hint in hints)


def test_one_unreadable_annotation_does_not_hide_the_others(tmp_path: Path, tiny: Path) -> None:
    meta = write_manifest(tmp_path, empty=[], held={"lines": [line("q", "a ")] * 2, "eval_share": 1.0}, bad=[line("q")])
    report = to_json(check(read_view(str(meta), data_flags(tiny))))
    empty, held, bad = report["data_sets"]
    assert set(empty) == {"name", "annotation", "error"} and "empty" in empty["error"]
    assert (held["held_out"], held["error"]) == (2, None) and list(held["warnings"]) == ["space", "duplicate"]
    assert bad["faults"]["TURN_ORDER"]["lines"] == 1
    assert len(report["reasons"]) == 2 and report["epoch"] is None


def test_weights_are_not_needed_and_missing_flags_are_explained(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    meta = str(write_manifest(tmp_path, clean=[line("q", "a")]))
    assert run(meta, *data_flags(bare), "--strict") == 0
    assert "has no weights: enough to look at data" in capsys.readouterr().out
    said = {
        r"--model_name_or_path is missing: .*internvl tiny pretrained/tiny": [meta],
        r"--max_seq_lenght is not a flag; did you mean '--max_seq_length'": [
            meta,
            *data_flags(tiny),
            "--max_seq_lenght=5",
        ],
        "no.json: does not exist": [str(tmp_path / "no.json"), *data_flags(tiny)],
    }
    for text, words in said.items():
        assert run(*words) == 1
        assert re.search(f"\n  flags: .*{text}", capsys.readouterr().out)
    with pytest.raises(ConfigError, match="is a folder"):
        run(meta, *data_flags(tiny), "--json", str(tmp_path))


def test_flags_of_a_file_and_what_training_would_see(tmp_path: Path, tiny: Path) -> None:
    meta = str(write_manifest(tmp_path, twice={"lines": [line("q", "a"), line("r", "b")], "repeat_time": 2}))
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"model_name_or_path": str(tiny), "meta_path": "elsewhere.json", "output_dir": "x"}))
    report = to_json(check(read_view(meta, [str(file)])))
    assert report["data_sets"][0]["samples"] == report["epoch"]["samples"] == 4
    assert report["epoch"]["tokens"] == 2 * report["data_sets"][0]["tokens"]["sum"]


def test_hints_name_the_flag_that_mends(tmp_path: Path, tiny: Path) -> None:
    lines = [line("word " * 400, "a"), line("<image>", "a", image="http://example.org/a.png")]
    meta = str(write_manifest(tmp_path, hints=lines))
    report = to_json(check(read_view(meta, data_flags(tiny))))
    longest = report["data_sets"][0]["longest"]
    assert any(f"--max_seq_length {longest} takes them all" in hint for hint in report["hints"])
    assert any("--remote_media True" in hint for hint in report["hints"])
    again = to_json(check(read_view(meta, ["--model_name_or_path", str(tiny), "--max_seq_length", str(longest)])))
    assert list(again["data_sets"][0]["faults"]) == ["REMOTE"]


def test_no_data_is_one_message(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "meta.json").write_text("{}")
    assert run(str(tmp_path / "meta.json"), *data_flags(tiny)) == 1
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first == "training would stop:" and second.startswith("  manifest: ") and "no data set in it" in second


def text_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    run(*words)
    return capsys.readouterr().out


def test_pictures_that_were_only_measured_are_said_to_be(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_troubles(tmp_path)
    broken = [line("<image>", "a", image="cut.png"), *(line(f"q {n}", "a") for n in range(9))]
    meta = str(write_manifest(tmp_path, cut={"lines": broken, "root": str(tmp_path)}, text=[line("q", "a")]))
    flags = data_flags(tiny, "--max_fault_share", "0.5")
    measured, decoded = text_of(capsys, meta, *flags), text_of(capsys, meta, *flags, "--decode")
    assert measured.splitlines()[-1] == "pictures and videos were measured, not decoded; --decode looks inside"
    assert "not decoded" not in decoded and "broken" not in measured.splitlines()[0]
    head, *rows = (row.split() for row in decoded.splitlines()[:4])
    assert head[-1] == "broken" and [row[-1] for row in rows] == ["1", "0", "1"]
    text = str(write_manifest(tmp_path, text=[line("q", "a")]))
    assert "not decoded" not in text_of(capsys, text, *flags)  # nothing to decode


def test_a_run_that_stops_says_why_under_the_table(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = str(write_manifest(tmp_path, bad=[line("q", "a"), b"{"], empty=[]))
    under = text_of(capsys, meta, *data_flags(tiny)).splitlines()[2]
    assert under.startswith("epoch -: training would stop: ") and "empty.jsonl" in under
    assert under.endswith("(and 1 more, see below)")
    good = str(write_manifest(tmp_path, good=[line("q", "a")]))
    assert "epoch -" not in text_of(capsys, good, *data_flags(tiny))


def test_the_hint_for_repair_can_be_pasted(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from internvl_chat.tools import repair

    meta = write_manifest(tmp_path, half=[line("q", "a"), b"{", line("r", "a")])
    meta = meta.rename(tmp_path / "my data.json")
    flags = data_flags(tiny, "--index_dir", str(tmp_path / "in dex"))
    for decode in ([], ["--decode"]):
        out = text_of(capsys, str(meta), "--strict", *flags, *decode)
        hint = next(text for text in out.splitlines() if "internvl repair" in text)
        words = shlex.split(hint[hint.index("internvl repair") :])
        assert words == ["internvl", "repair", str(meta), "my data_repaired", *decode, *flags]
    parser = argparse.ArgumentParser()
    repair.add_arguments(parser)
    words[3] = str(tmp_path / "out")
    assert repair.run(parser.parse_args(words[2:])) == 0


@pytest.mark.parametrize(("bad", "given"), [(1, True), (3, False)])
def test_no_share_is_named_where_most_is_lost(tmp_path: Path, tiny: Path, bad: int, given: bool) -> None:
    meta = str(write_manifest(tmp_path, some=[line("q", "a"), line("r", "a"), *[b"{"] * bad]))
    hints = to_json(check(read_view(meta, data_flags(tiny))))["hints"]
    assert any("--max_fault_share" in hint for hint in hints) == given
    assert any("'some': most of it is lost" in hint for hint in hints) != given
    none = str(write_manifest(tmp_path, none=[b"{"]))
    hints = to_json(check(read_view(none, data_flags(tiny))))["hints"]
    assert not any("internvl repair" in hint for hint in hints)  # nothing would be left


@pytest.mark.parametrize("way", ["drop", "fewer_tiles", "truncate"])
def test_hints_for_long_samples_leave_out_what_is_set(tmp_path: Path, tiny: Path, way: str) -> None:
    """One line is too long in its first round, the other in all of them."""
    lines = [line("word " * 400, "a"), line("q", "a", "word " * 300, "b")]
    meta = str(write_manifest(tmp_path, long=lines))
    whole = to_json(check(read_view(meta, data_flags(tiny)), False))["data_sets"][0]["longest"]
    report = to_json(check(read_view(meta, data_flags(tiny, "--long_samples", way))))
    (found,) = report["data_sets"]
    hint = next(hint for hint in report["hints"] if hint.startswith("TOO_LONG"))
    assert found["longest"] == whole and f"--max_seq_length {whole} takes them all" in hint
    assert f"--long_samples {way}" not in hint and "where one round alone is too long, truncate" in hint
    assert ("--long_samples truncate (fewer rounds) makes 1 of 2 fit" in hint) == (way != "truncate")
    assert "fewer_tiles" not in hint  # there are no pictures
    if way == "truncate":
        assert list(found["cut"]) == ["FEWER_TURNS"] and found["faults"]["TOO_LONG"]["lines"] == 1


def test_lines_that_were_cut_are_named(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line("q", "a"), *(line(f"q {n}", "a", "word " * 300, "b") for n in range(4))]
    meta = str(write_manifest(tmp_path, long=lines))
    out = text_of(capsys, meta, *data_flags(tiny, "--long_samples", "truncate"))
    start = out.splitlines().index("  cut to fit: 4 x FEWER_TURNS")
    shown = out.splitlines()[start + 1 : start + 5]
    found = [
        re.fullmatch(r"    .*long\.jsonl:(\d): (\d+) of (\d+) tokens and 0 of 0 tiles are left", x) for x in shown[:3]
    ]
    assert [int(one[1]) for one in found if one] == [2, 3, 4] and shown[3] == "    ... and 1 more"
    assert all(int(one[2]) < 300 < int(one[3]) for one in found if one)
