"""LLaMA-Factory's dataset_info.json becomes a manifest that our own reader takes; what cannot be used is named."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.formats.table import to_internvl
from internvl_chat.errors import ConfigError
from internvl_chat.tools import import_manifest
from tests.data.helpers import line, write_lines

MLLM = {
    "file_name": "demo.json",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images", "system": None},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "parts").mkdir(parents=True)
    write_lines(data / "demo.json", [line("a", "b")])
    write_lines(data / "parts" / "b.jsonl", [line("a", "b")])
    write_lines(data / "parts" / "a.jsonl", [line("a", "b")])
    write_lines(data / "table.csv", ["a,b"])
    return data


def convert(folder: Path, described: Any, *args: Any) -> int:
    source = folder / "dataset_info.json"
    source.write_text(described if isinstance(described, str) else json.dumps(described), encoding="utf-8")
    parser = argparse.ArgumentParser()
    import_manifest.add_arguments(parser)
    return import_manifest.run(parser.parse_args([str(source), str(folder.parent / "meta.json"), *map(str, args)]))


def manifest(folder: Path) -> Any:
    return json.loads((folder.parent / "meta.json").read_text(encoding="utf-8"))


def test_data_sets_become_entries(folder: Path, capsys: Any) -> None:
    described = {
        "plain": {"file_name": "demo.json"},
        "mllm": {**MLLM, "num_samples": 500, "file_sha1": "x", "split": None},
        "renamed": {"file_name": "demo.json", "columns": {"prompt": "q", "response": "output", "history": None}},
        "parts": {"file_name": "parts", "formatting": "sharegpt", "tags": {"user_tag": "human"}},
    }
    assert convert(folder, described) == 0
    root, file = str(folder), str(folder / "demo.json")
    columns = {"messages": "messages", **MLLM["tags"]}  # type: ignore[dict-item]
    assert manifest(folder) == {
        "plain": {"root": root, "annotation": file, "format": "alpaca", "repeat_time": 1},
        "mllm": {"root": root, "annotation": file, "format": "sharegpt", "columns": columns, "repeat_time": 1},
        "renamed": {"root": root, "annotation": file, "format": "alpaca", "columns": {"prompt": "q"}, "repeat_time": 1},
        "parts/1": {"root": root, "annotation": f"{folder}/parts/a.jsonl", "format": "sharegpt", "repeat_time": 1},
        "parts/2": {"root": root, "annotation": f"{folder}/parts/b.jsonl", "format": "sharegpt", "repeat_time": 1},
    }
    said = capsys.readouterr().out
    assert "'mllm': num_samples 500 is not taken over; all lines are used, set repeat_time below 1 for fewer" in said
    assert "file_sha1" not in said
    assert "5 data sets, 0 left out" in said


def test_format_and_columns_read_the_items_that_they_describe(folder: Path) -> None:
    convert(folder, {"mllm": MLLM})
    entry = manifest(folder)["mllm"]
    talk = [{"role": "user", "content": "What?<image>"}, {"role": "assistant", "content": "That."}]
    item = to_internvl({"messages": talk, "images": ["p.png"]}, entry["format"], entry["columns"])
    assert item == line("What?<image>", "That.", image="p.png")


def test_our_reader_takes_the_manifest(folder: Path) -> None:
    from internvl_chat.data.manifest import load_manifest

    convert(folder, {"mllm": MLLM, "parts": {"file_name": "parts"}}, "--media-dir", folder / "parts")
    specs = load_manifest(folder.parent / "meta.json")
    assert [(spec.name, spec.format) for spec in specs] == [
        ("mllm", "sharegpt"),
        ("parts/1", "alpaca"),
        ("parts/2", "alpaca"),
    ]
    assert {spec.root for spec in specs} == {str(folder / "parts")}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"hf_hub_url": "x/y", "file_name": "demo.json"}, "it comes from a hub (hf_hub_url); download it"),
        ({"script_url": "x"}, "it comes from a hub (script_url)"),
        ({"file_name": "demo.json", "ranking": True}, "preference pairs (ranking)"),
        ({"file_name": "demo.json", "columns": {"kto_tag": "k"}}, "single answers (kto_tag)"),
        (
            {"file_name": "demo.json", "formatting": "other"},
            "formatting is 'other'; only alpaca and sharegpt are known",
        ),
        ({"file_name": "demo.json", "columns": {"promt": "q"}}, "has no column 'promt'; did you mean 'prompt'"),
        ({"file_name": "demo.json", "columns": {"prompt": 7}}, "must be the key that holds it, a text, not 7"),
        ({"file_name": "demo.json", "columns": []}, None),
        ({"file_name": "demo.json", "tags": [1]}, "tags must be an object, not [1]"),
        ({"file_name": "table.csv"}, "table.csv is a csv file; write it as JSONL or parquet"),
        ({"file_name": "gone.json"}, "gone.json does not exist; put the file there"),
        ({}, "file_name is None; name the file"),
        (["demo.json"], "must be an object, not ['demo.json']"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_the_reason(
    folder: Path, entry: Any, says: str | None, capsys: Any
) -> None:
    assert convert(folder, {"good": {"file_name": "demo.json"}, "other": entry}) == 0
    said = capsys.readouterr().out
    assert list(manifest(folder)) == (["good", "other"] if says is None else ["good"])
    assert says is None or f"left out 'other': {says.split(';')[0]}" in said or says in said


def test_what_was_asked_for_must_come(folder: Path, capsys: Any) -> None:
    described = {"good": {"file_name": "demo.json"}, "bad": {"file_name": "gone"}}
    assert convert(folder, described, "--only", "good") == 0
    assert convert(folder, described, "--only", "bad", "good", "--overwrite") == 1
    assert list(manifest(folder)) == ["good"]
    assert convert(folder, {"bad": {"file_name": "gone"}}, "--overwrite") == 1
    assert list(manifest(folder)) == ["good"]
    assert "nothing is left" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--only goood: .* has no such data set; did you mean 'good'"):
        convert(folder, described, "--only", "goood", "--overwrite")


def test_mistakes_are_named(folder: Path) -> None:
    good = {"good": {"file_name": "demo.json"}}
    with pytest.raises(ConfigError, match=r"--media_dir .*nowhere is not a folder"):
        convert(folder, good, "--media_dir", folder / "nowhere")
    with pytest.raises(ConfigError, match=r"dataset_info\.json:1:6: not JSON"):
        convert(folder, '{"a":}')
    with pytest.raises(ConfigError, match="must be one object of data sets, not a list"):
        convert(folder, [])
    convert(folder, good)
    with pytest.raises(ConfigError, match=r"meta\.json exists already; choose another OUT, or pass --overwrite"):
        convert(folder, good)


@pytest.mark.parametrize("name", ["meta.yaml", "meta.YML"])
def test_a_yaml_file_holds_yaml(folder: Path, name: str) -> None:
    from internvl_chat.data.manifest import load_manifest

    (folder / "dataset_info.json").write_text(json.dumps({"z 图": MLLM, "a": {"file_name": "demo.json"}}))
    parser = argparse.ArgumentParser()
    import_manifest.add_arguments(parser)
    source, out = folder / "dataset_info.json", folder.parent / name
    assert import_manifest.run(parser.parse_args([str(source), str(out)])) == 0
    text = out.read_text(encoding="utf-8")
    assert text.startswith("z 图:\n  root: ") and "{" not in text
    convert(folder, source.read_text())  # the same as JSON
    assert load_manifest(out) == load_manifest(folder.parent / "meta.json")
