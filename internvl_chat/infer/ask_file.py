"""A file of questions, a line each -> a file of answers (``internvl chat CKPT --input QUESTIONS --output ANSWERS``)."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from internvl_chat.data.faults import Fault
from internvl_chat.data.record import parse_json
from internvl_chat.errors import CheckpointError, ConfigError, DataError, first_line
from internvl_chat.infer.answers_file import AnswersFile, Outcome
from internvl_chat.infer.ask_line import Asked, Reading, ask_line, media_sizes
from internvl_chat.infer.batch import answers
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import NUM_SEGMENTS
from internvl_chat.infer.questions import Question
from internvl_chat.launch import Launch
from internvl_chat.log import get_logger
from internvl_chat.model.adapter import ORIGIN, is_adapter, read_origin
from internvl_chat.model.hub import find_folder
from internvl_chat.model.layout import ADAPTER_FILE, fingerprint

logger = get_logger(__name__)

_REPORT_S = 10.0
_ERRORS_TOLD = 10
# Files of a folder beside its weights that change what it answers: how text becomes ids, when an answer ends.
_SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", ADAPTER_FILE, ORIGIN,
)  # fmt: skip


@dataclass(frozen=True)
class Asking:
    """A file of questions: where it is, how its lines are read, how they are asked.

    ``root``: where the paths in it begin; ``system``: message of lines that have none of their own.
    """

    input: Path
    output: Path
    generation: Mapping[str, Any]
    batch_size: int = 8
    root: str = ""
    num_segments: int = NUM_SEGMENTS
    system: str | None = None
    overwrite: bool = False


def read_lines(path: Path) -> dict[int, bytes]:
    """Lines by their numbers from 1, but for blank ones. Raises DataError."""
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"--input {path} cannot be read ({first_line(error)}); check the path") from error
    lines = {number: line.strip() for number, line in enumerate(content.split(b"\n"), 1)}
    found = {number: line for number, line in lines.items() if line}
    if not found:
        raise DataError(f"--input {path} has no line; write one question per line, as docs/chat.md shows")
    return found


def digest_of(line: bytes, root: str = "") -> str:
    """Hash of a line and of the sizes of the picture and video files that it names."""
    sizes = media_sizes(line, root)
    return hashlib.sha256(line + json.dumps(sizes).encode() if sizes else line).hexdigest()[:16]


def answer_file(
    asking: Asking, load: Callable[[], Loaded], settings: Mapping[str, Any], launch: Launch, run: str
) -> tuple[Outcome, int]:
    """Answer what is not answered yet of this process's share, and write it down; with the number of all lines.

    ``load`` is called only if something is left to ask.
    ``settings``: what the answers depend on beside their lines (JSON); ``run``: ``launch.name_of_run``. A line that
    cannot be asked has its error in the output. Raises ConfigError, DataError for files that cannot be used.
    """
    lines = read_lines(asking.input)
    digests = {number: digest_of(line, asking.root) for number, line in lines.items()}
    file = AnswersFile(
        asking.output,
        digests,
        settings,
        key_name="line",
        rank=launch.rank,
        world_size=launch.world_size,
        run=run,
        overwrite=asking.overwrite,
    )
    with file:
        if file.todo:
            share = len(range(launch.rank, len(lines), launch.world_size))
            if len(file.todo) < share:
                logger.info("%s: goes on with %d of %d lines", asking.output, len(file.todo), share)
            _answer(asking, load(), file, lines)
        return file.finish(), len(lines)


def _answer(asking: Asking, loaded: Loaded, file: AnswersFile[int], lines: Mapping[int, bytes]) -> None:
    reading = Reading(loaded.tiles, asking.root, asking.num_segments, asking.system)
    asked: dict[int, tuple[int, Asked]] = {}  # number of the question -> its line
    places = count()
    progress = _Progress(len(file.todo))

    def fail(number: int, error: DataError) -> None:
        file.add(number, {**_id_of(lines[number]), "error": str(error)})
        progress.add(0, failed=True)

    def questions() -> Iterator[Question]:
        for number in file.todo:
            try:
                found = ask_line(lines[number], reading)
            except DataError as error:
                fail(number, error)
            else:
                asked[next(places)] = (number, found)
                yield found.question

    for place, answer in answers(loaded, questions(), asking.batch_size, **asking.generation):
        number, what = asked.pop(place)
        if isinstance(answer, DataError):
            fail(number, answer)
            continue
        record = {"question": what.text, "answer": answer.text, "tokens": answer.tokens, "finish": answer.finish}
        reference = {} if what.reference is None else {"reference": what.reference}
        file.add(number, {**_id_of(lines[number]), **record, **reference})
        progress.add(answer.tokens)


def _id_of(line: bytes) -> dict[str, Any]:
    try:
        data = parse_json(line)
    except Fault:
        return {}
    return {"id": data["id"]} if data.get("id") is not None else {}


class _Progress:
    """A line in the log every few seconds."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._failed, self._tokens = total, 0, 0, 0
        self._start = self._told = time.monotonic()

    def add(self, tokens: int, failed: bool = False) -> None:
        self._done, self._failed, self._tokens = self._done + 1, self._failed + failed, self._tokens + tokens
        now = time.monotonic()
        if now - self._told >= _REPORT_S or self._done == self._total:
            self._told = now
            left = (now - self._start) / self._done * (self._total - self._done)
            logger.info(
                "%d of %d lines, %d failed, %.1f tokens/s, %.0f s to go",
                self._done, self._total, self._failed, self._tokens / max(now - self._start, 1e-9), left,
            )  # fmt: skip


def tell(outcome: Outcome, output: Path, total: int) -> int:
    """Log how it ended. Returns the exit status: 1 if OUTPUT has lines without answer.

    Only the process that ended last knows them: another one must not end badly while some are at work, or torchrun
    would end those.
    """
    if not outcome.whole:
        logger.info("%d of %d lines are there; the process that ends last writes %s", outcome.there, total, output)
        return 0
    errors = outcome.errors
    logger.info("%s: %d with an answer, %d without", output, total - len(errors), len(errors))
    for record in errors[:_ERRORS_TOLD]:
        logger.warning("line %s: %s", record["line"], record["error"])
    if errors:
        more = max(0, len(errors) - _ERRORS_TOLD)
        logger.warning("%sthe same command tries them again", f"and {more} more; " if more else "")
    return int(bool(errors))


def share_machine(launch: Launch, device: str | None) -> str | None:
    """The device of this process among those of its node; on the CPU they share the cores. Raises ConfigError."""
    if launch.local_world_size == 1 or device not in (None, "cpu"):
        return device
    cards = torch.cuda.device_count() if device is None else 0
    if cards == 1:  # each process was given a card of its own
        return "cuda:0"
    if cards > 1:
        if launch.local_rank >= cards:
            raise ConfigError(f"{launch.local_world_size} processes on this node, but {cards} GPUs; start {cards}")
        torch.cuda.set_device(launch.local_rank)  # kernels of Triton run on the current one
        return f"cuda:{launch.local_rank}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // launch.local_world_size))
    return device


def name_checkpoint(path: str, base: str | None = None) -> str:
    """Name of a model or adapter folder and hashes that tell it from a changed one. Raises CheckpointError.

    They are of samples of the weights and of the small files that answers depend on, an adapter's base included.
    """
    folder = find_folder(path)
    if is_adapter(folder):
        origin = read_origin(folder, base).base
        hashes = [fingerprint(folder / "adapter_model.safetensors"), _hash_small_files(folder)]
        hashes += [fingerprint(origin), _hash_small_files(origin)]
    elif (folder / "config.json").is_file():
        hashes = [fingerprint(folder), _hash_small_files(folder)]
    else:
        raise CheckpointError(f"{path}: not a model folder, there is no config.json in it")
    return " ".join([folder.resolve().name, *hashes])


def _hash_small_files(folder: Path) -> str:
    found = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            found.update(f"{name};{hashlib.sha256((folder / name).read_bytes()).hexdigest()};".encode())
    return found.hexdigest()[:16]
