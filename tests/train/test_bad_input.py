"""What a user can get wrong in `internvl train` ends in one clear message and status 2, before the model loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat import cli
from internvl_chat.train import main as train_main
from tests.train.runs import flags

Fail = Callable[..., str]
QUESTION = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "A dot."}


@pytest.fixture
def fail(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Run on the given lines and manifest; returns stderr's error lines."""
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")

    def never(*args: Any) -> None:
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr(train_main, "build_model", never)

    def run(lines: list[Any] | None = None, manifest: dict[str, Any] | None = None, **changes: Any) -> str:
        good = {"image": "good.png", "conversations": [QUESTION, ANSWER]}
        with (tmp_path / "notes.jsonl").open("w") as file:
            for line in lines if lines is not None else [good]:
                file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
        entry = {"root": str(tmp_path), "annotation": str(tmp_path / "notes.jsonl")} if manifest is None else manifest
        (tmp_path / "meta.json").write_text(json.dumps({"shop": entry}))
        assert cli.main(["train", *flags(tiny, tmp_path / "meta.json", tmp_path / "out", **changes)]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert errors
        return "\n".join(errors)

    return run


def line_with(**changes: Any) -> dict[str, Any]:
    return {"image": "good.png", "conversations": [QUESTION, ANSWER], **changes}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1, 2]", ["a JSON list, not an object", "one JSON object per line"]),
        ('{"image": ', ["not JSON", "one JSON object per line"]),
        (line_with(conversations=[QUESTION, {"from": "gpt", "text": "x"}]), ["rename 'text' to 'value'"]),
        (line_with(image="gone.png"), ["gone.png", "does not exist", "'root'"]),
        (line_with(image=["good.png", "good.png"]), ["1 <image>", "2 pictures", "once per picture"]),
        (line_with(conversations=[QUESTION, {"from": "gpt", "value": "no " * 900}]), ["max_seq_length 400", "raise"]),
        (line_with(conversations=[QUESTION]), ["does not end with a gpt turn", "add the answer"]),
        (line_with(conversations=[QUESTION, {"from": "gpt", "value": " "}]), ["empty answer"]),
    ],
)  # fmt: skip
def test_bad_line_names_file_line_and_mend(fail: Fail, tmp_path: Path, line: Any, says: list[str]) -> None:
    message = fail(lines=[line_with(), line])
    assert f"{tmp_path / 'notes.jsonl'}:2: " in message
    for part in says:
        assert part in message


def test_missing_manifest_key(fail: Fail, tmp_path: Path) -> None:
    message = fail(manifest={"annotation": str(tmp_path / "notes.jsonl")})
    assert "meta.json: data set 'shop': key 'root' is missing" in message


def test_misspelt_manifest_key_gets_the_nearest(fail: Fail, tmp_path: Path) -> None:
    entry = {"root": "", "annotation": str(tmp_path / "notes.jsonl"), "repeat_times": 2}
    assert "unknown key 'repeat_times'; did you mean 'repeat_time'?" in fail(manifest=entry)


def test_annotation_that_is_a_broken_json_array(fail: Fail) -> None:
    pretty = json.dumps([line_with(), line_with()], indent=1).splitlines()
    message = fail(lines=pretty[:-2])
    assert "item 2" in message


def test_unknown_template(fail: Fail) -> None:
    message = fail(conv_style="internvl2-5")
    assert "did you mean 'internvl2_5'?" in message
    assert "legal: " in message


def test_flags_out_of_range_are_all_reported_at_once(fail: Fail) -> None:
    message = fail(drop_path_rate=1.5, max_fault_share=-1, loss_reduction="cube")
    for flag in ("--drop_path_rate 1.5", "--max_fault_share -1", "--loss_reduction cube"):
        assert flag in message


def test_misspelt_flag(fail: Fail) -> None:
    assert "--max_seq_lenght is not a flag; did you mean '--max_seq_length'?" in fail(max_seq_lenght=5)


def test_contradicting_down_sample_ratio(fail: Fail) -> None:
    assert "contradicts the checkpoint" in fail(down_sample_ratio=0.25)


def test_template_that_the_tokenizer_has_no_tokens_for(fail: Fail) -> None:
    message = fail(conv_style="phi3-chat")
    assert "<|assistant|>" in message
    assert "--conv_style" in message


def test_missing_model_folder(fail: Fail, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in fail(model_name_or_path=tmp_path / "nowhere")


def test_root_that_is_no_folder_is_said_once(fail: Fail, tmp_path: Path) -> None:
    entry = {"root": str(tmp_path / "nowhere"), "annotation": str(tmp_path / "notes.jsonl")}
    message = fail(manifest=entry, lines=[line_with()] * 20)
    assert len(message.splitlines()) == 1
    assert "nowhere' is not a folder" in message


def test_output_dir_that_is_a_file(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert "is a file; name a folder" in fail()


def test_tiny_writes_over_its_own_models_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "config.json").write_text("{}")
    assert cli.main(["tiny", str(tmp_path / "release")]) == 2
    assert "did not write" in capsys.readouterr().err
    assert (tmp_path / "release" / "config.json").read_text() == "{}"
    for _ in range(2):
        assert cli.main(["tiny", str(tmp_path / "own"), "--llm_layers", "1", "--vision_layers", "1"]) == 0


def test_output_folder_with_a_model_is_not_written_over(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    message = fail()
    assert "--overwrite_output_dir True" in message
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_faults_below_the_limit_are_listed_not_fatal(tiny: Path, tmp_path: Path) -> None:
    """A missing picture is found by the index, a truncated one on loading: both end in the ledger, counted."""
    Image.effect_noise((64, 64), 80).save(tmp_path / "good.jpg")
    data = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    images = ["good.jpg", "cut.jpg", "gone.jpg", "good.jpg"]
    lines = [json.dumps({"image": name, "conversations": [QUESTION, ANSWER]}) for name in images]
    (tmp_path / "notes.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"root": str(tmp_path), "annotation": str(tmp_path / "notes.jsonl")}
    (tmp_path / "meta.json").write_text(json.dumps({"shop": entry}))
    out = tmp_path / "out"
    words = flags(tiny, tmp_path / "meta.json", out, max_fault_share=0.5, num_train_epochs=1)
    assert cli.main(["train", *words]) == 0
    ledger = [json.loads(line) for line in (out / "faults.jsonl").read_text().splitlines()]
    assert [(f["line"], f["stage"], f["code"]) for f in ledger] == [
        (3, "index", "MISSING_IMAGE"),
        (2, "load", "BROKEN_IMAGE"),
    ]
    records = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert records[-2]["samples_left_out"] == 1
    assert len([r for r in records if "loss" in r]) == 3


def test_too_many_faults_are_all_in_the_ledger(fail: Fail, tmp_path: Path) -> None:
    message = fail(lines=[line_with(image=f"{number}.png") for number in range(25)])
    assert "25 of 25 lines" in message
    assert "and 15 more" in message
    assert len((tmp_path / "out" / "faults.jsonl").read_text().splitlines()) == 25


def test_failed_start_deletes_nothing_of_the_old_run(fail: Fail, tmp_path: Path) -> None:
    old = tmp_path / "out" / "checkpoint-5"
    old.mkdir(parents=True)
    (old / "model.safetensors").write_bytes(b"precious")
    fail(lines=["broken"], overwrite_output_dir=True)
    assert (old / "model.safetensors").read_bytes() == b"precious"
