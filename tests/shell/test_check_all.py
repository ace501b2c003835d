"""CHECK=1 of every script, with a tiny model and small data in place of what it names: training would run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from safetensors.torch import save_file

from internvl_chat import cli
from tests.shell.helpers import SCRIPTS
from tests.train.runs import weights
from tests.train.test_parts_runs import make_llm

pytestmark = pytest.mark.slow
# Prints how it is called, words ended by NUL; has every package that it is asked for.
PYTHON = '#!/bin/sh\n[ "$1" = -c ] || printf \'%s\\0\' "$@"\n'


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("program") / "python"
    file.write_text(PYTHON)
    file.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny chat models (chat-KIND), the language models in them (KIND) and a projector."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("qwen2", "phi3"):
        make_llm(root, kind, 0)
    mlp = {name: tensor for name, tensor in weights(root / "chat-qwen2").items() if name.startswith("mlp1.")}
    save_file(mlp, root / "mlp.safetensors")
    return root


def checked_words(script: Path, python: Path, *words: str) -> list[str]:
    done = subprocess.run(
        ["sh", str(script), *words], env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "CHECK": "1"}, cwd="/",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    module, name, *rest = done.stdout.removesuffix("\0").split("\0")
    assert (module, name) == ("-m", "internvl_chat")
    return rest


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_check_says_that_the_run_would_train(
    script: Path, python: Path, models: Path, mixed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script.read_text()
    kind = "phi3" if "phi3" in script.name else "qwen2"  # Phi-3's template has tokens of its own
    own = ["--meta_path", str(mixed_data), "--output_dir", str(tmp_path / "out"), "--force_image_size", "28"]
    if "--vision_path" in text:
        own += ["--vision_path", str(models / f"chat-{kind}"), "--llm_path", str(models / kind)]
        own += ["--mlp_path", str(models / "mlp.safetensors")] if "--mlp_path" in text else []
    else:
        own += ["--model_name_or_path", str(models / f"chat-{kind}")]
    words = checked_words(script, python, *own)
    assert words[0] == "check"
    assert words[-len(own) :] == own
    status = cli.main(words)
    said = capsys.readouterr().out
    assert (status, "would train" in said) == (0, True), said
    assert not (tmp_path / "out").exists()
