"""``internvl models``: the table, one release, JSON, and how light it is."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.model.catalogue import release, releases
from internvl_chat.tools import models

ROOT = Path(__file__).parents[2]


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    parser = argparse.ArgumentParser()
    models.add_arguments(parser)
    assert models.run(parser.parse_args(words)) == 0
    return capsys.readouterr().out


def test_the_table_holds_every_release_under_its_generation(capsys):
    lines = output(capsys).splitlines()
    assert max(map(len, lines)) <= 120
    generation, found = "", []
    for line in lines[1:]:
        words = line.split()
        if words[:1] == ["InternVL"]:
            generation = words[1]
        elif words and "InternVL" in words[0]:
            found.append((generation, words[0]))
            assert words[-1] == ("yes" if release(words[0]).supported else "no")
    assert found == [(one.generation, one.name) for one in releases()]


def test_a_row_of_the_table(capsys):
    rows = {line.split()[0]: line.split() for line in output(capsys).splitlines() if line}
    assert " ".join(rows["InternVL2-8B"][1:]) == "300M InternLM2.5-7B 8.1B 16.2 8192 1-12+ internlm2-chat yes"
    # Guesses and gaps show as what they are.
    assert rows["InternVL3-9B"][3:7] == ["9.1B~", "18.3~", "16384", "1-12+~"]
    assert rows["InternVL-Chat-V1-1"][3:7] == ["19.1B*", "unknown", "unknown", "1~"]


@pytest.mark.parametrize("name", [one.name for one in releases()])
def test_one_release_in_full(capsys, name):
    text, one = output(capsys, name), release(name)
    assert max(map(len, text.splitlines())) <= 120
    assert f"hf download OpenGVLab/{name} --local-dir pretrained/{name}" in text.splitlines()
    # Wrapping breaks lines between words only.
    flat = " ".join(text.split())
    for value in (one.vision_tower, one.llm_class, one.template, *one.unknown, *one.notes):
        assert value in flat
    for part in ("vision_config", "llm_config"):
        for key, value in one.config[part].items():
            mark = "~" if one.known(f"{part}.{key}") == "inferred" else ""
            assert f"{key} {json.dumps(value)}{mark}" in flat


def test_what_is_not_trained_says_why(capsys):
    text = " ".join(output(capsys, "InternVL3_5-GPT-OSS-20B-A4B-Preview").split())
    assert "trained here no: neither its language model (GptOssForCausalLM)" in text
    assert "trained here yes" in " ".join(output(capsys, "InternVL2-1B").split())


def test_a_hub_id_that_is_not_known_gives_no_command(capsys, monkeypatch):
    from dataclasses import replace

    nameless = replace(release("InternVL2-1B"), hub_id=None)
    monkeypatch.setattr(models, "release", lambda name: nameless)
    text = output(capsys, "InternVL2-1B")
    assert "hub id unknown" in text.splitlines()
    assert "hf download" not in text


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    with pytest.raises(ConfigError, match=r"no release 'InternVL3-8b' is known; did you mean 'InternVL3-8B'\?"):
        output(capsys, "InternVL3-8b")
    with pytest.raises(ConfigError, match="`internvl models` lists all"):
        output(capsys, "llava")


def test_json_is_all_of_it(capsys):
    everything = json.loads(output(capsys, "--json"))
    assert everything == [one.to_dict() for one in releases()]
    assert json.loads(output(capsys, "OpenGVLab/InternVL3-9B", "--json")) == release("InternVL3-9B").to_dict()
    by_name = {one["name"]: one for one in everything}
    assert by_name["InternVL3-9B"]["known"]["llm_config.vocab_size"] == "inferred"
    assert by_name["InternVL3-9B"]["known"]["llm_config.hidden_size"] == "read"
    assert by_name["InternVL-Chat-V1-1"]["known"]["config.select_layer"] == "unknown"
    assert by_name["InternVL-Chat-V1-1"]["select_layer"] is None
    assert by_name["InternVL2-8B"]["parameters"]["total"] == 8_075_365_376


def test_it_answers_at_once_without_heavy_packages():
    code = (
        "import argparse, sys; from internvl_chat.tools import models; parser = argparse.ArgumentParser(); "
        "models.add_arguments(parser); models.run(parser.parse_args(sys.argv[1:])); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    seconds = []
    for words in ([], ["InternVL2-8B"], ["--json"]):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 0.5
