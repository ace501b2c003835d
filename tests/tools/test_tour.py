"""``internvl tour`` in its smallest size, end to end; its data keep the sides apart; its scoring reads sentences."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from internvl_chat.data.record import parse_record
from internvl_chat.errors import ConfigError
from internvl_chat.model.tokenizer import save_tokenizer
from internvl_chat.tools import tour
from internvl_chat.tools.tiny import KINDS, train_tokenizer
from internvl_chat.tools.tour_data import (
    ASKS,
    COLOURS,
    DIGITS,
    PAIRS,
    PLAIN_QUESTIONS,
    SYSTEM,
    TALK_QUESTIONS,
    Scene,
    add_talk,
    is_held_out,
    make_pictures,
    read_facts,
    score,
)
from tests.train import warm

SCENE = Scene(scan=0, digit="seven", ink="red", paper="yellow")
SIDES = ("first", "second", "held_out")


def ask_for(*facts: str) -> Any:
    return next(ask for ask in ASKS if set(ask.facts) == set(facts))


def lines_of(data: Path, side: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{side}.jsonl").read_text().splitlines()]


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data"), 400, 100, 200)


def test_no_scan_is_on_both_sides_and_half_of_the_held_out_have_new_combinations(data: Path) -> None:
    scenes = {side: [Scene(**line["scene"]) for line in lines_of(data, side)] for side in SIDES}
    trained, held_out = scenes["first"] + scenes["second"], scenes["held_out"]
    assert not {scene.scan for scene in trained} & {scene.scan for scene in held_out}
    assert [scene.is_new for scene in held_out] == [False, True] * 100
    known = {(scene.digit, scene.ink, scene.paper) for scene in trained}
    assert not known & {(scene.digit, scene.ink, scene.paper) for scene in held_out if scene.is_new}
    assert {scene.digit for scene in held_out} == set(DIGITS)
    pictures = [path.read_bytes() for side in SIDES for path in (data / "pictures" / side).iterdir()]
    assert len(set(pictures)) == len(pictures) == 700


def test_every_digit_and_every_pair_of_colours_is_on_both_sides() -> None:
    for digit in range(10):
        assert sum(is_held_out(digit, *pair) for pair in PAIRS) == len(PAIRS) // 5
    for pair in PAIRS:
        assert sum(is_held_out(digit, *pair) for digit in range(10)) == 2


def test_lines_are_of_the_format_and_say_what_is_drawn(data: Path) -> None:
    for side in SIDES:
        for text in (data / f"{side}.jsonl").read_text().splitlines():
            record, line = parse_record(text), json.loads(text)
            assert [turn.role for turn in record.turns] == ["system", "human", "gpt"]
            assert (data / "pictures" / record.images[0]).is_file()
            facts = score(record.turns[2].text, ASKS[line["ask"]], Scene(**line["scene"]))
            assert all(facts.values())
        manifest = json.loads((data / f"{side}.json").read_text())
        assert manifest[side]["length"] == len(lines_of(data, side))


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    again = make_pictures(tmp_path, 400, 100, 200)
    for path in data.rglob("*.*"):
        assert (again / path.relative_to(data)).read_bytes() == path.read_bytes()


def test_talk_is_added_to_the_second_stage_only(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2, 3, 2)
    add_talk(tmp_path, [("Hi?", "Hello."), ("Ho?", "Ha.")], repeat=2)
    lines = lines_of(tmp_path, "second")
    assert ["image" in line for line in lines] == [True] * 3 + [False] * 4
    assert lines[3]["conversations"][2]["value"] == "Hello."
    assert len(lines_of(tmp_path, "first")) == 2
    assert not set(TALK_QUESTIONS) & set(PLAIN_QUESTIONS)


def test_no_pictures_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="held_out 0"):
        make_pictures(tmp_path, 1, 1, 0)


# -- scoring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The picture shows a red seven on a yellow background.", ("seven", "red", "yellow")),
        ("On a yellow background I see a red seven!", ("seven", "red", "yellow")),
        ("The picture shows a red seven.", ("seven", "red", None)),
        ("It is red and blue.", (None, None, None)),
        ("A red seven, or a red one, on a yellow background.", (None, "red", "yellow")),
        ("", (None, None, None)),
    ],
)
def test_facts_of_a_description(text: str, expected: tuple[str | None, ...]) -> None:
    found = read_facts(text, ask_for("ink", "digit", "paper"))
    assert (found["digit"], found["ink"], found["paper"]) == expected


def test_facts_of_short_answers() -> None:
    assert read_facts("The background is white.", ask_for("paper")) == {"paper": "white"}
    assert read_facts("Red.", ask_for("ink")) == {"ink": "red"}
    assert read_facts("It is red, no, green.", ask_for("ink")) == {"ink": None}
    assert read_facts("The written digit is four.", ask_for("digit")) == {"digit": "four"}


def test_score_is_of_facts_and_of_the_sentence() -> None:
    ask = ask_for("ink", "digit", "paper")
    assert score("A red seven on a yellow background", ask, SCENE) == {
        "digit": True, "ink": True, "paper": True, "sentence": False,
    }  # fmt: skip
    assert score("The digit is red.", ask_for("ink"), SCENE) == {"ink": True, "sentence": True}
    assert score("The digit is blue.", ask_for("ink"), SCENE) == {"ink": False, "sentence": False}
    assert len({*DIGITS, *COLOURS}) == 21


# -- the whole tour ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with tied embeddings as SmolLM2 has, with ChatML markers, in small and random."""
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = train_tokenizer(KINDS["qwen2"], 400, [SYSTEM, *TALK_QUESTIONS])
    markers = [token for token in tokenizer.get_vocab() if token in KINDS["qwen2"].markers]
    assert len(markers) == 3
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tour.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.slow
def test_all_steps_in_their_smallest_size(
    small_llm: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands are those of the quickstart with other flags, and start there; here their ranks are forks."""
    monkeypatch.setattr(tour, "subprocess", SimpleNamespace(Popen=warm.Launched))
    out = tmp_path / "out"
    assert tour.run(parse("--quick", "--out", str(out), "--smollm2", str(small_llm))) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"stage 1", "stage 2"}
    assert summary["accuracy"]["stage 2"]["sentence"]["total"] == summary["held_out"] == tour.QUICK.held_out
    assert len(summary["talk"]) == len(PLAIN_QUESTIONS)
    assert 0 < summary["peak_rss_mib"] < 8192
    assert (out / "stage2" / "adapter" / "adapter_model.safetensors").is_file()
    assert (out / "stage2" / "model.safetensors").is_file()
    assert json.loads((out / "stage2" / "config.json").read_text())["system_message"] == SYSTEM
    assert "<svg" in (out / "report.html").read_text()
    printed = capfd.readouterr().out
    commands = [line for line in printed.splitlines() if line.startswith("$ ")]
    assert sum("internvl_chat.train" in line for line in commands) == 3
    assert any("--vision_path" in line and "--freeze_llm True" in line for line in commands)
    assert any("--use_llm_lora 16" in line and "--freeze_backbone True" in line for line in commands)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no config"):
        tour.run(parse("--out", str(tmp_path / "out"), "--smollm2", str(tmp_path)))
