"""The data path against a plain reference written here, in one run: samples/s, bytes, start-up, memory, index building.

The reference works the way the original does: all lines in a list, Pillow for every tile, a float tensor for each,
normalised by itself, workers that are spawned with a copy of the list. Real pictures come from scikit-image and
scikit-learn, the tokenizer from tests/goldens.

python bench/data.py                 # all parts, about 5 minutes; writes bench/results/data_cpu.json with --save
python bench/data.py --part samples
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from internvl_chat.constants import IMAGE_STATISTICS
from internvl_chat.data.address import Address
from internvl_chat.data.corpus import open_corpus
from internvl_chat.data.fit import Limits
from internvl_chat.data.loader import MicroBatches, Place, make_loader
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.plan.epoch import PlanSettings
from internvl_chat.data.plan.schedule import Schedule
from internvl_chat.data.sample import SampleMaker
from internvl_chat.data.template import get_template
from internvl_chat.data.tiles import TileSettings, choose_grid
from internvl_chat.data.tokens import Encoder

ROOT = Path(__file__).parents[1]
PARTS = ("samples", "bytes", "startup", "index")
TILE, MAX_TILES, TOKENS = 448, 12, 256
QUESTION = "<image>\nDescribe what can be seen in this picture, and say where it may have been taken."
ANSWER = "It shows an everyday scene in good light. " * 8
NAMES = ("coffee.png", "astronaut.png", "rocket.jpg", "chelsea.png", "retina.jpg", "hubble_deep_field.jpg", "ihc.png")


@cache
def tokenizer() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(ROOT / "tests/goldens/tokenizers/qwen2", local_files_only=True)


@cache
def maker() -> SampleMaker:
    encoder = Encoder(tokenizer(), get_template("internvl2_5"), TOKENS)
    return SampleMaker(encoder, TileSettings(TILE, max_tiles=MAX_TILES), Limits(2**30, 2**30))


def write_pictures(folder: Path) -> list[Path]:
    """Real pictures as JPEG of quality 90, as they are, and three of them at 1280 x 960."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    shipped = Path(skimage.data.__file__).parent
    images = [Image.open(shipped / name).convert("RGB") for name in NAMES if (shipped / name).is_file()]
    images += [Image.fromarray(pixels) for pixels in load_sample_images().images]
    images += [image.resize((1280, 960), Image.Resampling.LANCZOS) for image in images[-3:]]
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{number}.jpg")
        image.save(paths[-1], quality=90)
    return paths


def line_of(picture: str | None, number: int = 0) -> bytes:
    question = QUESTION if picture else f"What is {number} plus {number + 1}?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": ANSWER if picture else str(2 * number + 1)}]
    return json.dumps({"id": number, **({"image": picture} if picture else {}), "conversations": turns}).encode()


# -- the reference ------------------------------------------------------------------------------------------------


def reference_sample(line: bytes, root: Path) -> dict[str, torch.Tensor]:
    """One sample the plain way: Pillow, float tiles, each normalised by itself, the prompt tokenized piece by piece."""
    item = json.loads(line)
    tiles = [Image.new("RGB", (TILE, TILE), (255, 255, 255))]
    if "image" in item:
        image = Image.open(root / item["image"]).convert("RGB")
        columns, rows = choose_grid(*image.size, TileSettings(TILE, max_tiles=MAX_TILES))
        whole = image.resize((columns * TILE, rows * TILE))
        corners = [(column * TILE, row * TILE) for row in range(rows) for column in range(columns)]
        tiles = [whole.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
        if len(tiles) > 1:
            tiles.append(image.resize((TILE, TILE)))
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGE_STATISTICS["imagenet"])
    floats = []
    for tile in tiles:
        resized = tile.resize((TILE, TILE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
        floats.append((pixels.to(torch.float32).div(255) - mean) / std)
    template = get_template("internvl2_5")
    picture = "<img>" + "<IMG_CONTEXT>" * TOKENS * len(tiles) + "</img>"
    ids: list[int] = tokenizer()(template.system_prefix + template.system_message + template.system_suffix)["input_ids"]
    labels = [-100] * len(ids)
    for turn in item["conversations"]:
        human = turn["from"] == "human"
        head = template.user_prefix if human else template.assistant_prefix
        text = turn["value"].replace("<image>", picture, 1) if human else turn["value"]
        tail = template.user_suffix if human else template.stop + template.after
        piece = tokenizer()(head + text + tail)["input_ids"]
        skipped = len(piece) if human else len(tokenizer()(head)["input_ids"])
        ids, labels = ids + piece, labels + [-100] * skipped + piece[skipped:]
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "pixel_values": torch.stack(floats),
        "image_flags": torch.ones(len(floats), dtype=torch.long),
    }


class ReferenceLines(Dataset[dict[str, torch.Tensor]]):
    """All lines of a file in a list."""

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            self.lines = file.readlines()
        self.root = path.parent

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return reference_sample(self.lines[number].encode(), self.root)


# -- parts --------------------------------------------------------------------------------------------------------


def seconds_each(make: Callable[[bytes], Any], lines: list[bytes], rounds: int) -> float:
    """Median over rounds of the seconds per sample; the first round, which warms up, is not counted."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for line in lines:
            make(line)
        times.append((time.perf_counter() - start) / len(lines))
    return statistics.median(times[1:])


def samples(folder: Path, rounds: int) -> dict[str, Any]:
    """Samples per second on one core, one picture each; and of text alone."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    pictures = [line_of(path.name, n) for n, path in enumerate(write_pictures(folder))]
    for name, lines in (("pictures", pictures), ("text", [line_of(None, n) for n in range(100)])):
        spec = DatasetSpec("bench", str(folder), folder / "a.jsonl")
        ours = seconds_each(lambda line, spec=spec: maker().load(line, spec, Address("bench", 0)), lines, rounds)
        theirs = seconds_each(lambda line: reference_sample(line, folder), lines, rounds)
        result[name] = {
            "samples": len(lines),
            "reference samples/s per core": round(1 / theirs, 1),
            "ours samples/s per core": round(1 / ours, 1),
            "ours / reference": round(theirs / ours, 2),
        }
    tiles = [len(maker().load(line, spec, Address("bench", 0)).tiles) for line in pictures]
    return {**result, "tiles per picture": round(statistics.mean(tiles), 1)}


def bytes_sent(folder: Path, rounds: int) -> dict[str, Any]:
    """Bytes of tensors that a worker hands to the trainer, per sample with a picture."""
    spec = DatasetSpec("bench", str(folder), folder / "a.jsonl")
    theirs = ours = 0
    for number, path in enumerate(write_pictures(folder)):
        line = line_of(path.name, number)
        theirs += sum(tensor.nbytes for tensor in reference_sample(line, folder).values())
        sample = maker().load(line, spec, Address("bench", 0))
        ours += sample.tiles.nbytes + sample.input_ids.nbytes + sample.labels.nbytes
    return {"reference bytes": theirs, "ours bytes": ours, "reference / ours": round(theirs / ours, 2)}


def private_mib(process: psutil.Process) -> float:
    """Memory that the process shares with no other, MiB."""
    return float(process.memory_full_info().uss) / 2**20


def write_text_lines(path: Path, count: int) -> Path:
    if not path.is_file():
        with path.open("wb") as file:
            file.writelines(line_of(None, number) + b"\n" for number in range(count))
    return path


def open_ours(path: Path, index: Path) -> MicroBatches:
    corpus = open_corpus([DatasetSpec("bench", "", path)], maker(), index, workers=os.cpu_count() or 1)
    settings = PlanSettings(packed=False, packs_per_step=8, seed=0, batch_size=16)
    schedule = Schedule(corpus, settings)
    return MicroBatches(corpus, schedule, Place(0, 1, 8), 0, schedule.steps_in(1), 0)


def first_batch(kind: str, path: Path, index: Path) -> dict[str, Any]:
    """Seconds from the file's name to the first batch with two workers; private memory of the workers then."""
    maker(), tokenizer()
    torch.set_num_threads(1)
    start = time.perf_counter()
    if kind == "ours":
        loader = make_loader(open_ours(path, index), num_workers=2, pin_memory=False, prefetch=2)
    else:
        loader = DataLoader(
            ReferenceLines(path), batch_size=16, num_workers=2, multiprocessing_context="spawn", collate_fn=list,
            shuffle=True, prefetch_factor=2,
        )  # fmt: skip
    batches = iter(loader)
    for _ in range(8):
        next(batches)
        seconds = time.perf_counter() - start if _ == 0 else seconds  # noqa: F821
    workers = [child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())]
    result = {"seconds to first batch": round(seconds, 2), "main MiB": round(private_mib(psutil.Process()), 1)}
    return {**result, "worker MiB": round(max(private_mib(child) for child in workers), 1)}


def startup(folder: Path, rounds: int) -> dict[str, Any]:
    """First batch of 1 M and of 0.1 M lines with two workers, index warm; each in a process of its own."""
    result: dict[str, Any] = {}
    for count in (100_000, 1_000_000):
        path = write_text_lines(folder / f"{count}.jsonl", count)
        index = folder / "index"
        open_ours(path, index)
        one: dict[str, Any] = {"index bytes per line": round(next(index.glob(f"{count}-*")).stat().st_size / count, 2)}
        for kind in ("reference", "ours"):
            command = [sys.executable, __file__, "--first_batch", kind, str(path), str(index)]
            one[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        result[f"{count} lines"] = one
    few, many = (result[name] for name in result)
    grown = {kind: round(many[kind]["worker MiB"] - few[kind]["worker MiB"], 1) for kind in ("reference", "ours")}
    return {**result, "worker MiB per 0.9 M more lines": grown}


def index(folder: Path, rounds: int) -> dict[str, Any]:
    """Lines per second of building an index, of text and of pictures (headers, declared sizes), with all cores."""
    result: dict[str, Any] = {"processes": os.cpu_count()}
    text = write_text_lines(folder / "text.jsonl", 200_000)
    names = [path.name for path in write_pictures(folder)]
    pictures, declared = folder / "pictures.jsonl", folder / "declared.jsonl"
    sizes = {name: Image.open(folder / name).size for name in names}
    with pictures.open("wb") as plain, declared.open("wb") as sized:
        for number in range(20_000):
            name = names[number % len(names)]
            plain.write(line_of(name, number) + b"\n")
            width, height = sizes[name]
            sized.write(
                json.dumps({**json.loads(line_of(name, number)), "width": width, "height": height}).encode() + b"\n"
            )
    maker()
    for name, path in (("text", text), ("pictures, headers read", pictures), ("pictures, sizes declared", declared)):
        spec = DatasetSpec(name, str(folder), path)
        start = time.perf_counter()
        corpus = open_corpus([spec], maker(), folder / "built", workers=os.cpu_count() or 1)
        result[f"{name}, lines/s"] = round(len(corpus) / (time.perf_counter() - start))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write bench/results/data_cpu.json")
    parser.add_argument("--first_batch", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first_batch:
        kind, path, folder = args.first_batch
        print(json.dumps(first_batch(kind, Path(path), Path(folder))))
        return
    run = {"samples": samples, "bytes": bytes_sent, "startup": startup, "index": index}
    with tempfile.TemporaryDirectory() as folder:
        results = {part: run[part](Path(folder), args.rounds) for part in args.part}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "pillow": Image.__version__}
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "device": f"cpu, {os.cpu_count()} cores, {platform.machine()}",
        "versions": versions,
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.save:
        (ROOT / "bench/results/data_cpu.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
