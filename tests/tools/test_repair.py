"""``internvl repair``: good lines unchanged, bad ones listed, the new manifest clean."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.corpus import open_corpus
from internvl_chat.data.manifest import DatasetSpec, ImageLimits, load_manifest
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.tools import repair as tool
from internvl_chat.tools.check import check, to_json
from internvl_chat.tools.data_view import read_view
from internvl_chat.tools.repair import absolute_root, entry_of
from tests.data.helpers import line, write_lines
from tests.tools.troubles import TROUBLES, data_flags, number_of, write_troubles


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return tool.run(parser.parse_args(words))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_left_is_clean_and_unchanged(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = write_troubles(tmp_path / "in", data_augment=True, length=len(TROUBLES))
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    out, flags = tmp_path / "out", data_flags(tiny)
    assert run(str(meta), str(out), *flags, "--drop_duplicates", "--decode") == 0
    gone = [n for n, trouble in enumerate(TROUBLES, 1) if trouble[2] is not None]
    gone = sorted([*gone, number_of("duplicate"), number_of("truncated")])
    source = before[tmp_path / "in" / "troubles.jsonl"].splitlines()
    kept = [text for number, text in enumerate(source, 1) if number not in gone]
    assert (out / "troubles.jsonl").read_bytes().splitlines() == kept
    ledger = read(out / "left_out.jsonl")
    assert [entry["line"] for entry in ledger] == gone
    assert {entry["line"]: entry["code"] for entry in ledger} == {
        **{n: trouble[2] for n, trouble in enumerate(TROUBLES, 1) if trouble[2]},
        number_of("duplicate"): "DUPLICATE",
        number_of("truncated"): "BROKEN_IMAGE",
    }
    assert all(entry["reason"] and entry["mend"] and entry["file"].endswith("troubles.jsonl") for entry in ledger)
    contents = {entry["line"]: entry["content"] for entry in ledger}
    assert contents[2] == '{"conversations": [' and contents[4] == '{"conversations": "\\xe9"}'
    assert f"{len(kept)} lines kept, {len(gone)} left out" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before

    report = to_json(check(read_view(str(out / "manifest.json"), flags), decode=True))
    (found,) = report["data_sets"]
    assert report["would_train"] and not found["faults"] and not found["load_faults"]
    assert not {"duplicate", "length"} & set(found["warnings"])


def test_containers_are_unpacked_and_keys_kept(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "array.json").write_text(json.dumps([line("é", "a"), line("q"), line("r", "b")], indent=1))
    entry = {
        "root": "pics", "annotation": "array.json", "split": "eval", "max_dynamic_patch": 2, "length": "3",
        "min_image_side": 4, "system_message": "Be brief.", "repeat_time": 3, "sampling_method": "fps2",
    }  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps({"a/b": entry, "left_out": {**entry, "weight": None}}))
    assert run("meta.json", "out", *data_flags(tiny)) == 0
    assert read(Path("out/a_b.jsonl")) == read(Path("out/left_out-2.jsonl")) == [line("é", "a"), line("r", "b")]
    assert [(e["line"], e["kind"]) for e in read(Path("out/left_out.jsonl"))] == [(2, "json"), (2, "json")]
    written = json.loads(Path("out/manifest.json").read_text())
    assert written["a/b"] == {
        **entry, "root": str(tmp_path / "pics"), "annotation": str(tmp_path / "out" / "a_b.jsonl"), "length": 2,
        "data_augment": False,
    }  # fmt: skip
    old, new = load_manifest("meta.json")[0], load_manifest("out/manifest.json")[0]
    assert (new.repeat_time, new.image_limits, new.system_message) == (3.0, old.image_limits, "Be brief.")


def test_an_entry_reads_as_the_spec_it_was_made_of(tmp_path: Path) -> None:
    annotation = write_lines(tmp_path / "n.jsonl", [line("q", "a")])
    spec = DatasetSpec(
        "n", str(tmp_path), annotation, True, max_dynamic_patch=3, length=1, format="openai",
        columns={"messages": "m"}, conv_style="internvl2_5", split="eval", weight=2.0, min_num_frame=2,
        max_num_frame=4, image_limits=ImageLimits(max_image_ratio=9.0),
    )  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps({"n": entry_of(spec, annotation, 1)}))
    assert load_manifest(tmp_path / "m.json") == [spec]


def test_roots_mean_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_root("") == str(tmp_path)
    assert absolute_root("a/") == str(tmp_path / "a")
    assert absolute_root("s3://bucket/a") == "s3://bucket/a"
    assert absolute_root("zip://in::a.zip") == f"zip://in::{tmp_path / 'a.zip'}"
    assert absolute_root("zip://in::s3://b/a.zip") == "zip://in::s3://b/a.zip"


def test_nothing_is_ever_written_over(tmp_path: Path, tiny: Path) -> None:
    meta = write_troubles(tmp_path / "in")
    with pytest.raises(ConfigError, match="not an empty folder"):
        run(str(meta), str(tmp_path / "in"), *data_flags(tiny))
    with pytest.raises(ConfigError, match="not an empty folder"):
        run(str(meta), str(meta), *data_flags(tiny))


def test_data_sets_without_a_usable_line(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"root": "", "annotation": str(write_lines(tmp_path / "bad.jsonl", [b"{", line("q")]))}
    good = {"root": "", "annotation": str(write_lines(tmp_path / "good.jsonl", [line("q", "a")]))}
    (tmp_path / "both.json").write_text(json.dumps({"bad": bad, "good": good}))
    assert run(str(tmp_path / "both.json"), str(tmp_path / "o"), *data_flags(tiny)) == 0
    assert list(json.loads((tmp_path / "o" / "manifest.json").read_text())) == ["good"]
    assert "bad: 0 lines kept, 2 left out: nothing usable" in capsys.readouterr().out
    (tmp_path / "none.json").write_text(json.dumps({"bad": bad}))
    with pytest.raises(DataError, match=r"no line of any data set can be used; .*left_out\.jsonl says why"):
        run(str(tmp_path / "none.json"), str(tmp_path / "p"), *data_flags(tiny))
    assert len(read(tmp_path / "p" / "left_out.jsonl")) == 2


def test_held_out_lines_stay_held_out(tmp_path: Path, tiny: Path) -> None:
    """Lots are drawn by line number, and lines move up where others are left out."""
    items = ["{", *(line(f"Say {number}.", f"{number}") for number in range(40))]
    entry = {"root": "", "annotation": str(write_lines(tmp_path / "a.jsonl", items)), "eval_share": 0.5}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"notes": entry}))
    flags = [*data_flags(tiny), "--max_fault_share", "1"]

    def questions(manifest: Path, split: str) -> set[str]:
        view = read_view(str(manifest), flags)
        corpus = open_corpus(view.specs, view.maker, tmp_path / "index", split=split, max_fault_share=1)  # type: ignore[arg-type]
        places = corpus.places()
        entries = zip(places.dataset.tolist(), places.line.tolist(), strict=True)
        return {json.loads(corpus.indexes[d].line(n))["conversations"][0]["value"] for d, n in entries}

    assert run(str(meta), str(tmp_path / "out"), *flags) == 0
    for split in ("train", "eval"):
        assert questions(tmp_path / "out" / "manifest.json", split) == questions(meta, split) != set()
