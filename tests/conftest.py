"""Shared by all tests: no hub, no user cache, one small data set, one tiny model per language model."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background: processes would inherit it, and Ctrl-C could not be tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores already

ROOT = Path(__file__).parents[1]
GOLDENS = Path(__file__).parent / "goldens"


# Files that take longest (CPU seconds, and waiting), longest first: begun last, one would keep all others waiting.
LONGEST = (
    "slurm/test_real_slurm.py",
    "shell/test_evaluate.py",
    "infer/demo/test_demo_page.py",
    "train/test_lora_runs.py",
    "test_bench_train.py",
    "eval/test_command.py",
    "train/test_elastic_runs.py",
    "train/test_resume.py",
    "train/test_ending.py",
    "tools/test_quickstart.py",
    "train/test_chaos.py",
    "train/test_preempt.py",
    "train/test_torchrun.py",
    "train/test_benchmarks.py",
    "tools/test_smollm2.py",
    "train/test_nonfinite.py",
    "train/test_validation.py",
    "train/test_gradient.py",
    "train/test_zero.py",
    "infer/test_ask_file.py",
    "train/test_offload.py",
    "data/test_own_template.py",
    "infer/serve/test_serve_command.py",
    "tools/test_tour.py",
    "test_readme.py",
    "data/test_index.py",
    "infer/demo/test_demo_command.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first, then the others that start processes, then the rest. Needs --no-loadscope-reorder."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (places.get(item.path, len(places)), item.path not in slow))


def pytest_collection_finish() -> None:
    """What is there by now stays: each training collects garbage twice, and need not look at all these modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Indexes of the tests go to a folder of their own, also in the processes that tests start."""
    os.environ["INTERNVL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny qwen2 chat model (tiles of 28 pixels, one image token each)."""
    from internvl_chat.tools.tiny import make_tiny

    return make_tiny(
        tmp_path_factory.mktemp("models") / "tiny", "qwen2", image_size=28, vision_hidden=32, llm_hidden=32,
        max_dynamic_patch=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def mixed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of 8 lines: text only, one picture, two pictures, several rounds; answers of very different length."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("mixed")
    draw = random.Random(0)
    for number in range(6):
        size = (draw.randint(20, 120), draw.randint(20, 120))
        Image.new("RGB", size, tuple(draw.randrange(256) for _ in range(3))).save(folder / f"{number}.png")
    lines = [
        [None, "Say hello.", "Hello there, this is quite a long answer to a short question."],
        ["0.png", "<image>\nWhat is it?", "A colour."],
        [["1.png", "2.png"], "<image>\n<image>\nWhich?", "Two."],
        [None, "Hi", "Ho", "Again, please?", "No, not again, never, not for all the tea in China."],
        ["3.png", "<image>\nColour?", "Red", "Sure?", "Yes"],
        [None, "1+1?", "2"],
        ["4.png", "What do you see?", "Nothing at all but one single colour from left to right."],
        ["5.png", "<image>\nSay a.", "a"],
    ]
    with (folder / "mixed.jsonl").open("w") as file:
        for image, *texts in lines:
            turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
            file.write(json.dumps({"conversations": turns, **({"image": image} if image else {})}) + "\n")
    manifest = {"mixed": {"root": str(folder), "annotation": str(folder / "mixed.jsonl")}}
    (folder / "mixed.json").write_text(json.dumps(manifest))
    return folder / "mixed.json"
