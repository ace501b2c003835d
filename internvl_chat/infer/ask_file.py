"""A file of questions, a line each -> a file of answers (``internvl chat CKPT --input QUESTIONS --output ANSWERS``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from internvl_chat.data.faults import Fault
from internvl_chat.data.record import parse_json
from internvl_chat.errors import DataError, first_line
from internvl_chat.infer.answers_file import AnswersFile, Outcome
from internvl_chat.infer.ask_line import Asked, Reading, ask_line, media_sizes
from internvl_chat.infer.batch import answers
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import NUM_SEGMENTS
from internvl_chat.infer.progress import Progress
from internvl_chat.infer.questions import Question
from internvl_chat.launch import Launch
from internvl_chat.log import get_logger

logger = get_logger(__name__)

_ERRORS_TOLD = 10


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
    progress = Progress(len(file.todo), "lines")

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
