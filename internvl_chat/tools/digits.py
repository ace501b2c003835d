"""Sample data for the quickstart: real digit scans composed into pictures, asked for in the InternVL chat format.

Made below one folder (the project's ``playground`` layout)::

    digits.json, digits_test.json           manifests; paths inside are relative to their own folder
    opensource/digits_{train,test}.jsonl    annotations: "read" (one picture), "compare" (two), "text" (none)
    data/digits/{train,test}/*.jpg          pictures
    data/digits/scans.json                  picture -> indices of the scans in it (none is on both sides)
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError
from internvl_chat.tools.digit_pictures import SHAKY, STEADY, Deck, Hand, Scans, draw_number, load_scans, split_scans

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import numpy as np

READ_QUESTIONS = (
    "What number is written?",
    "Which number do you see?",
    "Read the number.",
    "What is the number in the picture?",
)
COMPARE_QUESTION = "Image-1: <image>\nImage-2: <image>\nWhich is larger?"
# Digits of the two numbers to compare, and how often: mostly one digit each, some where the count gives it away.
COMPARE_LENGTHS = ((1, 1), (2, 2), (1, 2), (2, 1))
COMPARE_SHARES = (0.6, 0.2, 0.1, 0.1)
# "What comes after N?" is asked for N below this: few enough to be learnt by heart.
AFTER_LIMIT = 20
DIGIT_SHARES = (0.3, 0.3, 0.2, 0.2)
HEIGHTS = (100, 260)
JPEG_QUALITY = 70


@dataclass(frozen=True)
class Mixture:
    """What the samples are made of. Shares of text and compare are of all samples, digit shares of the "read" ones."""

    digit_shares: tuple[float, ...]
    text_share: float
    compare_share: float
    heights: tuple[int, int]

    def check(self) -> None:
        """Raise one ConfigError that names every value out of range."""
        faults: list[str] = []
        if len(self.digit_shares) != 4 or min(self.digit_shares) < 0 or sum(self.digit_shares) <= 0:
            faults.append(f"digit_shares {self.digit_shares}: give four shares >= 0 for one to four digits")
        if min(self.text_share, self.compare_share) < 0 or self.text_share + self.compare_share > 1:
            faults.append(f"text_share {self.text_share}, compare_share {self.compare_share}: >= 0, together at most 1")
        if not 16 <= self.heights[0] <= self.heights[1]:
            faults.append(f"heights {self.heights}: give (lowest, highest) with 16 <= lowest <= highest")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True)
class _Sample:
    """One annotation line to be: the conversation, and for each picture the scans in it."""

    kind: str
    question: str
    answer: str
    digits: int
    scans: tuple[tuple[int, ...], ...] = ()


# What made the sample data, where their maker notes it; below their folder.
MADE_WITH = Path("data/digits/made_with.json")


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` cut into whole numbers in proportion to ``shares`` (largest remainders), so that counts are exact."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _written(scans: Scans, indices: Sequence[int]) -> str:
    return "".join(str(scans.labels[index]) for index in indices)


def _read_sample(scans: Scans, deck: Deck, rng: np.random.Generator, length: int) -> _Sample:
    indices = tuple(deck.deal(length))
    question = READ_QUESTIONS[int(rng.integers(len(READ_QUESTIONS)))]
    return _Sample("read", f"<image>\n{question}", _written(scans, indices), length, (indices,))


def _compare_sample(scans: Scans, deck: Deck, rng: np.random.Generator) -> _Sample:
    lengths = COMPARE_LENGTHS[int(rng.choice(len(COMPARE_LENGTHS), p=COMPARE_SHARES))]
    while True:
        pair = tuple(tuple(deck.deal(length)) for length in lengths)
        first, second = (_written(scans, indices) for indices in pair)
        # No leading zero: "07" beside "7" would be a riddle, not a comparison.
        if int(first) != int(second) and not any(len(text) > 1 and text[0] == "0" for text in (first, second)):
            break
    answer = "Image-1." if int(first) > int(second) else "Image-2."
    return _Sample("compare", COMPARE_QUESTION, answer, max(lengths), pair)


def _text_sample(rng: np.random.Generator, length: int) -> _Sample:
    if rng.random() < 0.5:
        number = int(rng.integers(AFTER_LIMIT))
        return _Sample("text", f"What comes after {number}?", str(number + 1), len(str(number + 1)))
    text = "".join(str(digit) for digit in rng.integers(10, size=length))
    return _Sample("text", f"Repeat: {text}", text, length)


def _plan(count: int, mixture: Mixture, scans: Scans, stock: np.ndarray, rng: np.random.Generator) -> list[_Sample]:
    """``count`` samples in random order, with exact counts per kind and per number of digits."""
    text, compare = mixture.text_share, mixture.compare_share
    reads, texts, compares = _apportion(count, (1 - text - compare, text, compare))
    deck = Deck(stock, rng)
    samples: list[_Sample] = []
    for length, number in enumerate(_apportion(reads, mixture.digit_shares), start=1):
        samples += [_read_sample(scans, deck, rng, length) for _ in range(number)]
    for length, number in enumerate(_apportion(texts, mixture.digit_shares), start=1):
        samples += [_text_sample(rng, length) for _ in range(number)]
    samples += [_compare_sample(scans, deck, rng) for _ in range(compares)]
    return [samples[i] for i in rng.permutation(len(samples))]


def _draw_pictures(
    sample: _Sample, stem: str, root: Path, scans: Scans, rng: np.random.Generator, heights: tuple[int, int], hand: Hand
) -> list[tuple[str, int, int]]:
    """Write the sample's pictures; (path below ``root``, width, height) of each."""
    written: list[tuple[str, int, int]] = []
    for place, indices in enumerate(sample.scans, start=1):
        name = f"{stem}.jpg" if len(sample.scans) == 1 else f"{stem}-{place}.jpg"
        picture = draw_number([scans.pixels[i] for i in indices], rng, heights, hand)
        picture.save(root / name, quality=JPEG_QUALITY)
        written.append((name, picture.width, picture.height))
    return written


def _line(sample: _Sample, stem: str, pictures: list[tuple[str, int, int]], scored: bool) -> dict[str, Any]:
    """The annotation line; ``scored`` ones also say their kind and number of digits, to report results by."""
    line: dict[str, Any] = {"id": stem}
    if len(pictures) == 1:
        line |= dict(zip(("image", "width", "height"), pictures[0], strict=True))
    elif pictures:
        names, widths, heights = (list(column) for column in zip(*pictures, strict=True))
        line |= {"image": names, "width_list": widths, "height_list": heights}
    turns = (("human", sample.question), ("gpt", sample.answer))
    line["conversations"] = [{"from": who, "value": value} for who, value in turns]
    return line | ({"kind": sample.kind, "digits": sample.digits} if scored else {})


def _write_side(
    out: Path, side: str, samples: list[_Sample], scans: Scans, seed: tuple[int, int], heights: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Pictures and annotation of one side ("train" or "test"); picture -> scans in it."""
    import numpy as np

    root = out / "data" / "digits"
    (root / side).mkdir(parents=True, exist_ok=True)
    for stale in (root / side).glob("*.jpg"):  # of an earlier, larger run
        stale.unlink()
    hand = SHAKY if side == "train" else STEADY
    used: dict[str, tuple[int, ...]] = {}
    lines: list[str] = []
    for number, sample in enumerate(samples):
        stem = f"{side}/{number:06d}"
        pictures = _draw_pictures(sample, stem, root, scans, np.random.default_rng((*seed, number)), heights, hand)
        used |= {name: indices for (name, _, _), indices in zip(pictures, sample.scans, strict=True)}
        lines.append(json.dumps(_line(sample, stem, pictures, scored=side == "test")))
    _write_whole(out / "opensource" / f"digits_{side}.jsonl", "\n".join(lines) + "\n")
    return used


def _write_whole(path: Path, text: str) -> None:
    """Write through a neighbour and rename, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def _write_manifest(path: Path, side: str, length: int) -> Path:
    entry = {
        "root": "data/digits/",
        "annotation": f"opensource/digits_{side}.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": length,
    }
    _write_whole(path, json.dumps({f"digits_{side}" if side == "test" else "digits": entry}, indent=2) + "\n")
    return path


def make_digits(
    out: Path,
    *,
    train: int,
    held_out: int,
    seed: int = 0,
    digit_shares: tuple[float, ...] = DIGIT_SHARES,
    text_share: float = 0.1,
    compare_share: float = 0.1,
    held_out_scans: float = 0.2,
    heights: tuple[int, int] = HEIGHTS,
) -> Path:
    """Write ``train`` + ``held_out`` samples made of scanned digits below ``out``; the path of the training manifest.

    ``held_out_scans`` of every digit's scans appear in held-out pictures only. Held-out "read" samples have each
    number of digits equally often, so that each accuracy is known equally well. Same arguments, same bytes.
    """
    import numpy as np

    if train < 1 or held_out < 1:
        raise ConfigError(f"train {train}, held_out {held_out}: both must be at least 1")
    mixture = Mixture(tuple(digit_shares), text_share, compare_share, heights)
    mixture.check()
    even = Mixture((0.25,) * 4, text_share, compare_share, heights)
    (out / MADE_WITH).unlink(missing_ok=True)  # whoever made what is replaced here
    scans = load_scans()
    stocks = split_scans(scans.labels, held_out_scans, np.random.default_rng((seed, 0)))
    used: dict[str, dict[str, tuple[int, ...]]] = {}
    plans = (("train", train, mixture, stocks[0]), ("test", held_out, even, stocks[1]))
    for number, (side, count, mix, stock) in enumerate(plans, start=1):
        samples = _plan(count, mix, scans, stock, np.random.default_rng((seed, number)))
        used[side] = _write_side(out, side, samples, scans, (seed, number), heights)
    _write_whole(out / "data" / "digits" / "scans.json", json.dumps(used["train"] | used["test"], indent=0) + "\n")
    _write_manifest(out / "digits_test.json", "test", held_out)
    return _write_manifest(out / "digits.json", "train", train)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``internvl digits``."""
    parser.description = "Write sample data: pictures of numbers made from real handwritten digit scans."
    parser.add_argument("out", nargs="?", type=Path, default=Path("playground"), help="folder (default: %(default)s)")
    parser.add_argument("--train", type=int, default=6000, help="training samples (default: %(default)s)")
    parser.add_argument("--held_out", type=int, default=600, help="held-out samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    shares = "shares of one, two, three and four digits among the pictures to read (default: %(default)s)"
    parser.add_argument("--digit_shares", type=float, nargs=4, default=list(DIGIT_SHARES), metavar="S", help=shares)
    parser.add_argument("--text_share", type=float, default=0.1, help="samples without picture (default: %(default)s)")
    parser.add_argument("--compare_share", type=float, default=0.1, help="samples of two (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """``internvl digits OUT``: write the data and log where the manifest is."""
    if (args.out / "digits.json").is_file():
        print(f"replacing the sample data in {args.out}")
    manifest = make_digits(
        args.out,
        train=args.train,
        held_out=args.held_out,
        seed=args.seed,
        digit_shares=tuple(args.digit_shares),
        text_share=args.text_share,
        compare_share=args.compare_share,
    )
    print(f"wrote {args.train} training and {args.held_out} held-out samples; train with --meta_path {manifest}")
    return 0
