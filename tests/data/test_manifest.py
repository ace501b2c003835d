"""The manifest: every mistake is one clear line with file, data set, key and the mend; all are reported at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.manifest import DatasetSpec, ImageLimits, load_manifest
from internvl_chat.errors import ConfigError
from tests.data.helpers import line, properties, write_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    write_lines(tmp_path / "notes.jsonl", [line("a", "b")])
    return tmp_path


def write(folder: Path, content: Any) -> Path:
    path = folder / "meta.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def entry(folder: Path, **changes: Any) -> dict[str, Any]:
    whole = {"root": str(folder / "images"), "annotation": str(folder / "notes.jsonl"), **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def message_of(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_manifest(path)
    return str(error.value)


def test_a_full_entry_is_read_and_length_is_information_only(folder: Path) -> None:
    full = entry(folder, data_augment=True, repeat_time=2, max_dynamic_patch=6, length="3")
    specs = load_manifest(write(folder, {"shop": full, "text": entry(folder, root="")}))
    assert specs == [
        DatasetSpec("shop", str(folder / "images"), folder / "notes.jsonl", True, 2.0, 6, 3),
        DatasetSpec("text", "", folder / "notes.jsonl"),
    ]


def test_order_is_that_of_the_file(folder: Path) -> None:
    names = ["z", "a", "m", "b"]
    assert [s.name for s in load_manifest(write(folder, {name: entry(folder) for name in names}))] == names


@pytest.mark.parametrize("repeat", [0.01, 0.5, 1, 1.0, 1.5, 2, 2.0, 10_000])
def test_fractions_and_whole_numbers_repeat(folder: Path, repeat: float) -> None:
    assert load_manifest(write(folder, {"a": entry(folder, repeat_time=repeat)}))[0].repeat_time == repeat


@pytest.mark.parametrize("repeat", [0, -1, 0.0, "1", True, False, [1], 10_001, float("nan"), float("inf")])
def test_other_repeats_are_refused(folder: Path, repeat: Any) -> None:
    message = message_of(write(folder, {"shop": entry(folder, repeat_time=repeat)}))
    assert message.startswith(f"{folder / 'meta.json'}: data set 'shop': repeat_time must be a number above 0")
    assert message.endswith(f"at most 10000 (1 means once), not {repeat!r}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"root": ...}, "key 'root' is missing; it is the folder that picture paths start from"),
        ({"annotation": ...}, "key 'annotation' is missing; it is the file with the samples: JSONL, a JSON array"),
        ({"root": None}, "key 'root' must be a string, not None"),
        ({"annotation": ["a.jsonl"]}, "key 'annotation' must be a string, not ['a.jsonl']"),
        (
            {"repeat_times": 2},
            "unknown key 'repeat_times'; did you mean 'repeat_time'?; legal keys: root, annotation, ",
        ),
        ({"anotation": "x"}, "unknown key 'anotation'; did you mean 'annotation'?"),
        ({"max_dynamic_patches": 2}, "unknown key 'max_dynamic_patches'; did you mean 'max_dynamic_patch'?"),
        ({"zzz": 2}, "unknown key 'zzz'; legal keys: root, annotation, data_augment, repeat_time, max_dynamic_patch"),
        ({"data_augment": "false"}, "data_augment must be true or false, not 'false'"),
        ({"data_augment": 0}, "data_augment must be true or false, not 0"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch must be a whole number of at least 1, not 0"),
        ({"max_dynamic_patch": "6"}, "max_dynamic_patch must be a whole number of at least 1, not '6'"),
        ({"max_dynamic_patch": 6.5}, "max_dynamic_patch must be a whole number of at least 1, not 6.5"),
        ({"max_dynamic_patch": True}, "max_dynamic_patch must be a whole number of at least 1, not True"),
        ({"annotation": "gone.jsonl"}, "annotation 'gone.jsonl' is not a file (looked in "),
        ({"annotation": ""}, "annotation '' is not a file"),
    ],
)
def test_a_mistake_names_file_data_set_key_and_mend(folder: Path, changes: dict[str, Any], says: str) -> None:
    message = message_of(write(folder, {"good": entry(folder), "shop": entry(folder, **changes)}))
    assert f"{folder / 'meta.json'}: data set 'shop': {says}" in message
    assert "'good'" not in message


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
    message = message_of(
        write(folder, {"a": entry(folder, root=..., repeat_time=0), "b": 5, "c": entry(folder, annotation="gone")})
    )
    assert len(message.splitlines()) == 4
    assert all(f"data set '{name}'" in message for name in "abc")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": {"root": "",\n "annotation": "n.jsonl",}}', ":2:2"),
        (b'{"a": {"root": "", "annotation": "n.jsonl"},\n}', ":"),
        (b"", ":1:1: not JSON ("),
        (b"{'a': 1}", ":1:2: not JSON ("),
        (b"[]", ": must be one object of data sets, not a list"),
        (b"3", ": must be one object of data sets, not a int"),
        (b"{}", ': no data set in it; add one, e.g. {"mine": {"root": "", "annotation": "a.jsonl"}}'),
        (b'{"a": 5}', ": data set 'a': must be an object with root, annotation"),
        (b'{"a": {}, "b": {}, "a": {}}', ": 'a' occurs twice; give each a name of its own"),
        (b'{"a": {"root": "x", "root": "y"}}', ": 'root' occurs twice"),
        (b'{"a": ' + b"7" * 5000 + b"}", ": not a manifest ("),
        (b"[" * 100_000, ": not a manifest ("),
        ('{"\u4f60": 1}'.encode("gb18030"), ": the manifest is not UTF-8 ("),
    ],
)
def test_a_file_that_is_no_manifest_says_why(folder: Path, content: bytes, says: str) -> None:
    message = message_of(write(folder, content))
    assert message.startswith(str(folder / "meta.json"))
    assert says in message
    if b",}" in content or b",\n}" in content:
        assert "often a comma after the last entry" in message


def test_a_missing_manifest_and_a_folder_name_the_flag(folder: Path) -> None:
    assert message_of(folder / "gone.json").endswith("cannot be read (No such file or directory); check --meta_path")
    assert message_of(folder).endswith("cannot be read (Is a directory); check --meta_path")


def test_a_byte_order_mark_and_unicode_names_are_fine(folder: Path) -> None:
    name = "图片 dossier été \U0001f600"
    (folder / name).mkdir()
    annotation = write_lines(folder / name / "ноты.jsonl", [line("a", "b")])
    manifest = {"данные": {"root": str(folder / name), "annotation": str(annotation)}}
    path = write(folder, "\ufeff".encode() + json.dumps(manifest, ensure_ascii=False).encode())
    assert load_manifest(path) == [DatasetSpec("данные", str(folder / name), annotation)]


def test_relative_paths_start_here_or_beside_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, {"a": {"root": "images", "annotation": "notes.jsonl"}})
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert load_manifest(path) == [DatasetSpec("a", str(folder / "images"), folder / "notes.jsonl")]
    (folder / "elsewhere" / "images").mkdir()
    assert load_manifest(path)[0].root == "images"  # the working directory comes first, as in the original


def test_a_remote_root_is_left_as_it_is(folder: Path) -> None:
    assert load_manifest(write(folder, {"a": entry(folder, root="s3://bucket/x")}))[0].root == "s3://bucket/x"


json_values = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=4), st.just([]))


@properties(200)
@given(
    st.dictionaries(
        st.sampled_from(["root", "annotation", "data_augment", "repeat_time", "max_dynamic_patch", "length", "rot"]),
        json_values,
    )
)
def test_any_entry_is_a_spec_or_a_message(tmp_path: Path, keys: dict[str, Any]) -> None:
    try:
        specs = load_manifest(write(tmp_path, {"a": keys}))
    except ConfigError as error:
        assert "data set 'a': " in str(error)
    else:
        assert specs[0].annotation.is_file()


# -- what the original's manifests do not have --------------------------------------------------------------------


def test_every_key_reaches_the_spec(folder: Path) -> None:
    keys = {
        "format": "sharegpt", "columns": {"messages": "dialog"}, "conv_style": "Hermes-2", "system_message": "",
        "split": "eval", "eval_share": 0.25, "weight": 3, "sampling_method": "fps0.5", "min_num_frame": 2,
        "max_num_frame": 4, "min_image_side": 8, "max_image_pixels": 10**6, "max_image_ratio": 50,
    }  # fmt: skip
    spec = load_manifest(write(folder, {"a": entry(folder, **keys)}))[0]
    limits = {key: keys.pop(key) for key in ("min_image_side", "max_image_pixels", "max_image_ratio")}
    assert spec.image_limits == ImageLimits(**limits)  # type: ignore[arg-type]
    assert {key: getattr(spec, key) for key in keys} == keys


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "sharegtp"}, "format must be one of internvl, openai, swift, sharegpt, alpaca, not 'sharegtp'"),
        ({"columns": {"messages": "m"}}, "columns without a format; name the format they belong to"),
        ({"format": "alpaca", "columns": {"promt": "m"}}, "no column 'promt'; did you mean 'prompt'?"),
        ({"columns": ["m"]}, "columns must be an object of names"),
        ({"conv_style": "internvl2.5"}, "is not a template; did you mean 'internvl2_5'?"),
        ({"system_message": 3}, "system_message must be a text, not 3"),
        ({"split": "test"}, "split must be one of train, eval, not 'test'"),
        ({"eval_share": 1.5}, "eval_share must be a number from 0 to 1"),
        ({"weight": 0}, "weight must be a number above 0, not 0"),
        ({"weight": 2, "repeat_time": 2}, "weight and repeat_time both say how often lines are seen; give one of them"),
        ({"sampling_method": "fps"}, "sampling_method must be a sampling method ("),
        ({"min_num_frame": 9, "max_num_frame": 8}, "min_num_frame is more than max_num_frame; swap them"),
        ({"max_image_ratio": 0.5}, "max_image_ratio must be a number of at least 1"),
        ({"length": "many"}, "length must be the number of lines, not 'many'"),
    ],
)
def test_a_wrong_value_of_a_newer_key_names_it(folder: Path, changes: dict[str, Any], says: str) -> None:
    assert says in message_of(write(folder, {"shop": entry(folder, **changes)}))


def test_yaml_reads_as_json_does(folder: Path) -> None:
    path = folder / "meta.yaml"
    path.write_text(f"shop:\n  root: {folder / 'images'}\n  annotation: {folder / 'notes.jsonl'}\n  repeat_time: 0.5\n")
    assert load_manifest(path) == load_manifest(write(folder, {"shop": entry(folder, repeat_time=0.5)}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: {root: x\n", "meta.yaml:2:1: not YAML (expected ',' or '}'"),
        ("a: {}\na: {}\n", "'a' occurs twice; give each a name of its own"),
        ("- a\n", "must be one object of data sets, not a list"),
        ("a: !!python/object/apply:os.system ['true']\n", "not YAML (could not determine a constructor"),
        ("? [x]\n: y\n", "cannot be used (unhashable type"),
    ],
)
def test_yaml_that_is_no_manifest_says_why(folder: Path, text: str, says: str) -> None:
    (folder / "meta.yaml").write_text(text)
    assert says in message_of(folder / "meta.yaml")


@pytest.mark.parametrize("name", ["pics.zip", "pics.tar"])
def test_an_archive_may_be_the_root(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    assert load_manifest(write(folder, {"a": entry(folder, root=str(folder / name))}))[0].root == str(folder / name)
