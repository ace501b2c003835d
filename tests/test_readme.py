"""README's promises are commands that run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from internvl_chat.cli import main
from internvl_chat.config.parse import argument_defaults, parse_arguments
from tests.conftest import ROOT
from tests.train import warm
from tests.train.runs import environment

README = (ROOT / "README.md").read_text()


def commands_of(title: str) -> list[list[str]]:
    block = re.search(rf"## {title}\n\n```sh\n(.*?)```", README, re.S)
    assert block
    lines = block[1].replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("internvl ")]


@pytest.mark.slow
def test_blocks_run_as_written_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the size of the sample data is cut down. Training has processes of its own: forks, a start takes seconds."""
    monkeypatch.chdir(tmp_path)
    commands = commands_of("Fine-tune on your data")
    assert [command[1] for command in commands] == ["tiny", "digits", "check", "preview", "train", "chat"]
    more = commands_of("LoRA, and folders that any engine loads")
    assert [command[1] for command in more] == ["train", "chat", "merge-lora", "export", "models"]
    commands += more
    for command in commands:
        words = command[1:] + ["--train", "120", "--held_out", "20"] * (command[1] == "digits")
        if command[1] == "train":
            ranks = warm.start([["run", *words[1:]]], 1, tmp_path / "logs", environment(), cwd=tmp_path)
            assert ranks.ended(200) == [0], ranks.output()[-3000:]
            continue
        status = main(words)
        said = capsys.readouterr()
        assert status == 0, said.err[-3000:]
        assert command[1] != "chat" or said.out.strip(), "the model said nothing"
    assert "InternVL3-2B" in said.out
    assert "<svg" in (tmp_path / "work_dirs" / "preview.html").read_text()
    assert (tmp_path / "work_dirs" / "merged-hf" / "chat_template.jinja").is_file()
    assert list((tmp_path / "work_dirs" / "mine" / "runs").rglob("events.out.tfevents*"))
    assert (tmp_path / "work_dirs" / "mine" / "train_log.jsonl").is_file()
    check_asking(capsys)
    check_scoring(capsys)


def check_asking(capsys: pytest.CaptureFixture[str]) -> None:
    """What README says of the model that was trained: a file of questions, the export, the lines of Python.

    The conversation, the server and the page have tests of their own, with a terminal, a client and a browser.
    """
    section = README.split("## Ask it, serve it, show it")[1].split("\n## ")[0]
    (line,) = re.findall(r"^echo '(.*)' > questions.jsonl$", section, re.M)
    Path("questions.jsonl").write_text(line + "\n")
    commands = commands_of("Ask it, serve it, show it")
    assert [command[1] for command in commands] == ["chat", "chat", "serve", "demo", "export"]
    for command in (commands[1], commands[4]):
        assert main(command[1:]) == 0, capsys.readouterr().err[-3000:]
    assert "vllm serve work_dirs/mine-vllm" in capsys.readouterr().out
    answer = json.loads(Path("answers.jsonl").read_text())["answer"]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.S)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(answer + "\n")


def check_scoring(capsys: pytest.CaptureFixture[str]) -> None:
    """The task of one's own data, and the page about it."""
    section = README.split("## Score it")[1].split("\n## ")[0]
    (text,) = re.findall(r"^cat > playground/number.yaml <<'END'\n(.*?)^END$", section, re.M | re.S)
    Path("playground/number.yaml").write_text(text)
    commands = commands_of("Score it")
    assert [command[1] for command in commands] == ["eval", "eval", "eval"]
    for command in commands:
        assert main(command[1:]) == 0, capsys.readouterr().err[-3000:]
    assert "<html" in Path("results/report.html").read_text()[:200]
    assert "accuracy" in json.loads(Path("results/mine/number/metrics.json").read_text())["figures"]


def test_every_flag_in_the_table_exists_and_its_default_is_right() -> None:
    defaults = argument_defaults()
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", README, re.M)
    assert len(rows) > 8
    for flags, default in rows:
        for flag in re.findall(r"--(\w+)", flags):
            assert flag in defaults, flag
            if default in ("True", "False", "0.01", "8192", "token", "auto", "torch"):
                assert str(defaults[flag]) == default, flag


def test_the_command_without_a_script_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"Without a script:\n\n```sh\n(.*?)```", README, re.S)
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:4] == ["torchrun", "--nproc_per_node=8", "-m", "internvl_chat.train"]
    monkeypatch.chdir(tmp_path)
    Path("data.json").write_text("{}")
    model, data, training, _ = parse_arguments(words[4:])
    assert model.model_name_or_path == "pretrained/InternVL2_5-1B"
    assert data.use_packed_ds and training.output_dir == "work_dirs/mine"


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert "://" in target or (document.parent / target).exists(), f"{document}: {target}"
