"""``internvl plan``: numbers that can be counted by hand, what is lost, text, JSON and page."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.plan.report import Spread
from internvl_chat.errors import ConfigError
from internvl_chat.tools import plan as tool
from internvl_chat.tools.data_view import View, read_view
from internvl_chat.tools.plan import look_ahead, to_json
from internvl_chat.tools.plan_page import report_page
from internvl_chat.tools.plan_text import report_lines
from tests.data.helpers import line, write_lines, write_noise

SPREAD: dict[str, Any] = dict.fromkeys(Spread().__dict__, int) | {"mean": float}
SHARE = (float, int)
SCHEMA: dict[str, Any] = {
    "manifest": str, "would_train": bool, "reasons": [str], "hints": [str],
    "plan": {
        "packed": bool, "max_tokens": int, "max_tiles": int, "batch_size": int, "by_length": bool, "world": int,
        "accumulation": int, "packs_per_step": int, "samples": int, "tokens": int, "tiles": int, "packs": int,
        "fewest_packs": (int, type(None)), "steps": int, "token_fill": (float, type(None)),
        "tile_fill": (float, type(None)), "padding": SHARE, "samples_per_pack": SPREAD, "tokens_per_pack": SPREAD,
        "tiles_per_pack": SPREAD,
    },
    "samples": {"tokens": SPREAD, "tiles": SPREAD},
    "run": {"steps": int, "epochs": SHARE, "exact": bool},
    "padding": (dict, type(None)),
    "shapes": [{
        "ranks": int, "accumulation": int, "packs_per_step": int, "steps": int, "idle": float, "idle_micro": float,
        "useful": float, "without_pack": int,
    }],
    "budgets": [{
        "max_tokens": int, "max_tiles": int, "packs": int, "steps": int, "token_fill": float, "tile_fill": float,
        "given": bool, "best": bool,
    }],
    "data_sets": [{
        "name": str, "annotation": str, "lines": int, "usable": int, "held_out": int, "left_out": dict, "cut": dict,
        "samples": int, "tokens": int, "tiles": int, "share_of_samples": float, "share_of_tokens": float,
        "share_of_tiles": float,
    }],
}  # fmt: skip


def fits(value: Any, schema: Any) -> bool:
    if isinstance(schema, dict):
        return set(value) == set(schema) and all(fits(value[key], schema[key]) for key in schema)
    if isinstance(schema, list):
        return isinstance(value, list) and all(fits(item, schema[0]) for item in value)
    return isinstance(value, schema)


def run(*words: str) -> int:
    """The command, as ``internvl plan WORDS`` runs it."""
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return tool.run(parser.parse_args(words))


def write_manifest(folder: Path, **data_sets: Any) -> str:
    """Manifest of data sets given as lists of lines, or as whole entries."""
    entries = {}
    for name, lines in data_sets.items():
        entry = lines if isinstance(lines, dict) else {"lines": lines}
        path = write_lines(folder / f"{name}.jsonl", entry.pop("lines"))
        entries[name] = {"root": str(folder), "annotation": str(path), **entry}
    (folder / "meta.json").write_text(json.dumps(entries))
    return str(folder / "meta.json")


def view_of(meta: str, tiny: Path, *flags: str) -> View:
    return read_view(meta, ["--model_name_or_path", str(tiny), "--index_workers", "1", *flags])


def length_of(meta: str, tiny: Path) -> list[int]:
    """Tokens of each line, as the index has them."""
    view = view_of(meta, tiny)
    return [int(tokens) for spec in view.specs for tokens in view.open(spec).table["tokens"]]


PACKED = ("--use_packed_ds", "True", "--gradient_accumulation_steps", "2")


def test_equal_samples_are_counted_by_hand(tmp_path: Path, tiny: Path) -> None:
    """24 samples of n tokens, a picture each, in packs of 3 n + 1 tokens: 8 packs, 2 steps of 2 processes x 2."""
    write_noise(tmp_path / "a.png", 28, 28)
    meta = write_manifest(tmp_path, same=[line("<image>\nq", "a", image="a.png")] * 24)
    length = length_of(meta, tiny)[0]
    budget = str(3 * length + 1)
    budgets = ("--max_packed_tokens", budget, "--max_seq_length", budget, "--num_images_expected", "4")
    view = view_of(meta, tiny, *PACKED, *budgets, "--num_train_epochs", "2.5")
    report = to_json(look_ahead(view, world=2))
    assert fits(report, SCHEMA) and report["would_train"] and not report["reasons"]
    plan = report["plan"]
    expected = {
        "samples": 24, "tokens": 24 * length, "tiles": 24, "packs": 8, "fewest_packs": 8, "steps": 2, "world": 2,
        "accumulation": 2, "packs_per_step": 4, "padding": 0, "packed": True,
    }  # fmt: skip
    assert {name: plan[name] for name in expected} == expected
    assert plan["token_fill"] == pytest.approx(3 * length / (3 * length + 1)) and plan["tile_fill"] == 0.75
    assert plan["samples_per_pack"] == dict.fromkeys(SPREAD, 3)
    assert plan["tokens_per_pack"]["p99"] == 3 * length and report["samples"]["tiles"]["mean"] == 1
    assert report["run"] == {"steps": 5, "epochs": 2.5, "exact": True}
    one, two = report["shapes"]
    assert (one["ranks"], one["accumulation"], two["ranks"], two["accumulation"]) == (1, 4, 2, 2)
    assert one["steps"] == two["steps"] == 2 and one["idle"] == two["idle"] == two["idle_micro"] == 0
    assert two["useful"] == 1 and two["without_pack"] == 0
    given = next(pair for pair in report["budgets"] if pair["given"])
    assert (given["max_tiles"], given["packs"], given["steps"]) == (4, 8, 2)
    assert any("--num_images_expected 3 instead of 4" in hint for hint in report["hints"])
    steps = to_json(look_ahead(view_of(meta, tiny, *PACKED, *budgets, "--max_steps", "7"), world=2))["run"]
    assert steps == {"steps": 7, "epochs": 3.5, "exact": True}


def test_other_numbers_of_processes(tmp_path: Path, tiny: Path) -> None:
    """Four times as many processes as packs are worth a word; 3 do not divide into 2, so 2 plan on their own."""
    meta = write_manifest(tmp_path, text=[line(f"q {n}", "a" * (n % 7)) for n in range(1, 40) if n % 7])
    report = to_json(look_ahead(view_of(meta, tiny, *PACKED), world=3))
    assert [(one["ranks"], one["accumulation"], one["packs_per_step"]) for one in report["shapes"]] == [
        (1, 6, 6),
        (2, 3, 6),
        (3, 2, 6),
    ]
    report = to_json(look_ahead(view_of(meta, tiny, "--use_packed_ds", "True"), world=3))
    assert [one["packs_per_step"] for one in report["shapes"]] == [3, 2, 3]
    many = to_json(look_ahead(view_of(meta, tiny, "--use_packed_ds", "True"), world=64))
    assert many["shapes"][-1]["without_pack"] > 0
    assert any("places in the steps have no pack" in hint for hint in many["hints"])


def test_padded_batches(tmp_path: Path, tiny: Path) -> None:
    """Short and long ones, half and half: in one batch at random, by length apart."""
    lines = [line(f"q{n}", "a") for n in range(8)] + [line(f"q{n}", "b " * 200) for n in range(8)]
    meta = write_manifest(tmp_path, halves=lines)
    short, long = length_of(meta, tiny)[0], length_of(meta, tiny)[-1]
    assert long > short + 15
    all_in_one = view_of(meta, tiny, "--per_device_train_batch_size", "16")
    report = to_json(look_ahead(all_in_one, world=1))
    assert fits(report, SCHEMA)
    padding = 1 - (short + long) / (2 * long)
    assert report["plan"]["padding"] == pytest.approx(padding)
    assert report["padding"] == {"random": pytest.approx(padding), "group_by_length": pytest.approx(padding)}
    assert (report["plan"]["packs"], report["plan"]["batch_size"], report["plan"]["by_length"]) == (1, 16, False)
    assert report["plan"]["fewest_packs"] is None and report["plan"]["token_fill"] is None
    assert report["shapes"][0]["useful"] < 1 and not any(pair["given"] for pair in report["budgets"])
    batches = ("--per_device_train_batch_size", "4", "--group_by_length", "True")
    grouped = to_json(look_ahead(view_of(meta, tiny, *batches), world=1))
    assert grouped["plan"]["by_length"] and grouped["plan"]["padding"] == grouped["padding"]["group_by_length"] == 0
    assert grouped["padding"]["random"] > 0.1 and not grouped["hints"]
    at_random = to_json(look_ahead(view_of(meta, tiny, *batches[:2]), world=1))
    assert at_random["plan"]["padding"] == grouped["padding"]["random"]
    assert any("--group_by_length True makes that 0.0 %" in hint for hint in at_random["hints"])


def test_shares_and_what_is_lost(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [line(f"q {n}", "a") for n in range(10)]
    twice = {"lines": [*good, b"{", line("word " * 400, "a")], "repeat_time": 2}
    meta = write_manifest(tmp_path, twice=twice, once=good)
    flags = ("--max_seq_length", "300", "--use_packed_ds", "True", "--max_packed_tokens", "300")
    report = to_json(look_ahead(view_of(meta, tiny, *flags), world=1))
    twice_, once = report["data_sets"]
    assert twice_["left_out"] == {"NOT_JSON": 1, "TOO_LONG": 1} and once["left_out"] == {}
    assert (twice_["lines"], twice_["usable"], twice_["samples"], once["samples"]) == (12, 10, 20, 10)
    assert twice_["share_of_samples"] == twice_["share_of_tokens"] == pytest.approx(2 / 3)
    assert report["plan"]["samples"] == 30 and not report["would_train"]
    assert "'twice'" in report["reasons"][0]
    words = (meta, "--model_name_or_path", str(tiny), *flags)
    capsys.readouterr()
    assert run(*words) == 1
    out = capsys.readouterr().out
    assert "twice: left out: 1 NOT_JSON, 1 TOO_LONG" in out
    assert "training would stop, and this is the plan of what would be left" in out
    assert run(*words, "--max_fault_share", "0.2") == 0
    assert "30 samples an epoch" in capsys.readouterr().out


def test_nothing_to_plan(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = write_manifest(tmp_path, held={"lines": [line("q", "a")] * 3, "split": "eval"})
    assert run(meta, "--model_name_or_path", str(tiny), "--json", "-") == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(SCHEMA) and found["plan"] is None and "no line" in found["reasons"][0]
    out, page = tmp_path / "x.html", look_ahead(view_of(meta, tiny), 1)
    assert run(meta, "--model_name_or_path", str(tiny), "--html", str(out)) == 1
    assert "training would stop:" in capsys.readouterr().out
    assert "training would stop: no line" in out.read_text() and report_page(page) == out.read_text()


def test_errors_name_the_flag(tmp_path: Path, tiny: Path) -> None:
    meta = write_manifest(tmp_path, a=[line("q", "a")])
    model = ("--model_name_or_path", str(tiny))
    for words, message in (
        ((*model, "--world", "0"), "--world 0"),
        ((*model, "--json", str(tmp_path)), "is a folder"),
        ((*model, "--html", str(tmp_path)), "is a folder"),
        ((), "--model_name_or_path is missing"),
        ((*model, "--max_packed_token", "100"), "max_packed_token"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(meta, *words)


def test_later_epochs_are_counted_or_said_to_be_alike(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = write_manifest(tmp_path, text=[line(f"q {n}", "a") for n in range(9)])
    flags = ("--per_device_train_batch_size", "2", "--num_train_epochs", "3")
    assert to_json(look_ahead(view_of(meta, tiny, *flags), 1))["run"] == {"steps": 15, "epochs": 3.0, "exact": True}
    many = to_json(look_ahead(view_of(meta, tiny, *flags[:2], "--max_steps", "100000"), 1))["run"]
    assert many == {"steps": 100_000, "epochs": pytest.approx(20_000), "exact": False}, "and not planned one by one"
    monkeypatch.setattr("internvl_chat.data.plan.schedule.EXACT_SAMPLES", 20)
    long = look_ahead(view_of(meta, tiny, *flags), 1)
    assert to_json(long)["run"] == {"steps": 15, "epochs": 3.0, "exact": False}
    assert "the run: about 15 steps, 3.00 epochs" in "\n".join(report_lines(long))
    steps = to_json(look_ahead(view_of(meta, tiny, *flags[:2], "--max_steps", "100000"), 1))["run"]
    assert steps == {"steps": 100_000, "epochs": 20_000.0, "exact": False}


class Strict(HTMLParser):
    """Every tag is closed in order; collects texts, and addresses of anything outside of the page."""

    VOID = ("meta", "img", "br", "rect", "line", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.outside: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


@pytest.mark.parametrize("packed", [True, False])
def test_the_page_is_whole_and_says_what_the_text_says(
    mixed_data: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    out = tmp_path / "deep" / "plan.html"
    words = (str(mixed_data), "--model_name_or_path", str(tiny), "--use_packed_ds", str(packed), "--world", "2")
    assert run(*words, "--html", str(out), "--json", str(tmp_path / "plan.json")) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert fits(found, SCHEMA) and f"wrote {out}" in said
    page = parsed(out.read_text())
    assert not page.outside and "script" not in page.tags and page.tags.count("svg") == 5
    for text in said.splitlines()[:2]:
        assert text in page.texts
    assert f"{found['plan']['tokens']:,}" in page.texts and f"{found['plan']['samples']} samples" in said
    noun = "packs" if packed else "batches"
    assert any(text.endswith(f" {noun}") for text in page.texts) and any(t.endswith(" samples") for t in page.texts)
    assert run(*words, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == found


def test_names_cannot_steer_page_or_terminal(mixed_data: Path, tiny: Path) -> None:
    report = look_ahead(view_of(str(mixed_data), tiny), 1)
    assert report.outlook is not None
    bad = replace(report.outlook.parts[0], name="<script>\x1b[2J", left_out={"TOO_LONG": 2})
    named = replace(report, outlook=replace(report.outlook, parts=(bad,)))
    assert "script" not in parsed(report_page(named)).tags
    assert not any("\x1b" in text for text in (report_page(named), *report_lines(named)))
