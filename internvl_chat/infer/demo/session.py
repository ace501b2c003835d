"""One visitor's conversation on the page: asked, streamed, stopped, asked again; with one model or two side by side.

Nothing here knows the page: ``Session.ask`` yields the conversation so far each time that there is more to see.
"""

from __future__ import annotations

import mimetypes
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import Any, Literal

from PIL import Image
from transformers import StoppingCriteriaList

from internvl_chat.errors import DataError, InternVLError, first_line
from internvl_chat.infer.boxes import draw_boxes, legend, parse_boxes
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.demo.line import Line
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import read_picture
from internvl_chat.infer.settings import searches_beams
from internvl_chat.infer.stream import StopsWhen
from internvl_chat.log import get_logger

logger = get_logger(__name__)

# A page is not told of every token, but this often, in seconds: eyes see no more, and each telling costs the browser.
PAUSE = 0.05
# Longest side in pixels of a picture with boxes on the page: small ones are enlarged so that names can be read.
SHOWN_SIDES = (640, 1600)
_WAITING = ""  # among pieces of text, none of which is empty
_VIDEO_SUFFIXES = (".mkv", ".m4v", ".ts", ".flv", ".wmv", ".3gp", ".ogv")  # some systems do not know them


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model with the name that the page shows, and the line of those who wait for it."""

    name: str
    loaded: Loaded
    line: Line = field(default_factory=Line)


@dataclass(frozen=True)
class Settings:
    """What the controls of the page say. ``temperature`` 0: the likeliest token each time."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    max_tiles: int = 12
    num_segments: int = 8

    def generation(self) -> dict[str, Any]:
        """Arguments of ``generate``."""
        sampled = {"top_p": self.top_p} if self.temperature > 0 else {}
        return {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, **sampled}

    def tiled(self, loaded: Loaded) -> Loaded:
        """The model with the tile limit of the page."""
        return replace(loaded, tiles=replace(loaded.tiles, max_tiles=self.max_tiles))


State = Literal["waiting", "writing", "done", "stopped"]


@dataclass(frozen=True)
class Answer:
    """``text`` so far. ``drawn``: files of pictures with the answer's boxes; ``legend``: names that are numbers there.

    ``undrawn``: why its boxes are not drawn, or not all. ``waiting``: another visitor's answer is being written.
    """

    text: str = ""
    state: State = "writing"
    drawn: tuple[Path, ...] = ()
    legend: tuple[str, ...] = ()
    undrawn: str = ""


@dataclass(frozen=True)
class Round:
    """A question with what was attached to it, and the answer of each model."""

    question: str
    pictures: tuple[Path, ...]
    video: Path | None
    answers: tuple[Answer, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All that was attached."""
        return self.pictures if self.video is None else (*self.pictures, self.video)


class Session:
    """A conversation of one visitor: a ``Chat`` per model. One answer at a time; a second question is refused.

    A round counts only when every model has answered: after an error or a stop, no model remembers it.
    """

    def __init__(self, models: Sequence[Model], folder: Path, on_end: Callable[[], None] = lambda: None) -> None:
        """``folder``: where pictures with boxes are written; made when there is one. ``on_end``: of each answer."""
        self.models = tuple(models)
        self.rounds: tuple[Round, ...] = ()
        self._folder = folder
        self._on_end = on_end
        self._chats = [Chat(model.loaded) for model in models]
        self._before = self._copies()
        self._stop = Event()
        self._busy = Lock()

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return self._busy.locked()

    def stop(self) -> None:
        """End the answer that is being written, at its next token."""
        self._stop.set()

    def clear(self) -> None:
        """Stop, and forget everything, the pictures with boxes too."""
        self.stop()
        with self._busy:
            self._chats = [Chat(model.loaded) for model in self.models]
            self._before = self._copies()
            self.rounds = ()
            shutil.rmtree(self._folder, ignore_errors=True)

    def forget_read(self) -> None:
        """Give back the memory of what the models have read; the next round reads all of it again."""
        for chat in self._chats:
            chat.forget_read()

    def ask(self, question: str, files: Sequence[str | Path], settings: Settings) -> Iterator[tuple[Round, ...]]:
        """All rounds, again and again until the answers to ``question`` are complete or stopped.

        Raises DataError for a question or files that cannot be used, InternVLError for what went wrong in a model;
        the conversation is then as it was before. Closing the iterator stops the answers.
        """
        return self._alone(lambda: self._ask(question, files, settings))

    def ask_again(self, settings: Settings) -> Iterator[tuple[Round, ...]]:
        """As ``ask``, with the last question, whose answers are forgotten. Raises DataError if there is none."""
        return self._alone(lambda: self._ask_again(settings))

    def _alone(self, action: Callable[[], Iterator[tuple[Round, ...]]]) -> Iterator[tuple[Round, ...]]:
        if not self._busy.acquire(blocking=False):
            raise DataError("an answer is being written; wait for its end, or stop it")
        try:
            self._stop.clear()
            yield from action()
        finally:
            self._busy.release()
            self._on_end()

    def _ask_again(self, settings: Settings) -> Iterator[tuple[Round, ...]]:
        if not self.rounds:
            raise DataError("there is no question yet that could be asked again")
        rounds, chats, before = self.rounds, self._chats, self._before
        *earlier, last = rounds
        self.forget_read()  # the old answer's, while the new one is made
        self.rounds, self._chats = tuple(earlier), before
        try:
            yield from self._ask(last.question, last.files, settings)
        except InternVLError:
            self.rounds, self._chats, self._before = rounds, chats, before
            raise

    def _ask(self, question: str, files: Sequence[str | Path], settings: Settings) -> Iterator[tuple[Round, ...]]:
        pictures, video = sort_files(files)
        if not question.strip():
            raise DataError("write a question")
        earlier, before = self.rounds, self._copies()
        answers = [Answer() for _ in self.models]
        finished = False
        try:
            for answers in self._answers(question, pictures, video, settings):
                self.rounds = (*earlier, Round(question, pictures, video, tuple(answers)))
                yield self.rounds
            finished = not self._stop.is_set()
        except InternVLError:
            self.rounds = earlier
            raise
        finally:
            if not finished:
                self._chats = before
        self._before = before
        asked = Round(question, pictures, video, ())
        about = next((round.pictures for round in (asked, *reversed(earlier)) if round.files), ())
        ends = [self._finished(answer, about) if finished else replace(answer, state="stopped") for answer in answers]
        self.rounds = (*earlier, replace(asked, answers=tuple(ends)))
        yield self.rounds

    def _answers(
        self, question: str, pictures: Sequence[Path], video: Path | None, settings: Settings
    ) -> Iterator[list[Answer]]:
        """The answers of all models as they grow, each written in a thread of its own."""
        news: SimpleQueue[tuple[int, str]] = SimpleQueue()

        def write(number: int) -> None:
            chat, line = self._chats[number], self.models[number].line
            chat.loaded = settings.tiled(self.models[number].loaded)
            with line.turn(self._stop, lambda: news.put((number, _WAITING))) as called:
                if not called:
                    return
                stopping = StoppingCriteriaList([StopsWhen(self._stop)])
                asked: dict[str, Any] = {
                    "num_segments": settings.num_segments, "stopping_criteria": stopping, **settings.generation()
                }  # fmt: skip
                if searches_beams(chat.loaded, asked):  # which token comes next is only known at the end
                    if text := chat.ask(question, pictures, video, **asked):
                        news.put((number, text))
                    return
                with closing(chat.ask(question, pictures, video, stream=True, **asked)) as pieces:
                    for piece in pieces:
                        news.put((number, piece))
                        if self._stop.is_set():
                            return

        answers = [Answer() for _ in self.models]
        with ThreadPoolExecutor(len(self.models), "internvl-demo") as pool:
            writing = [pool.submit(write, number) for number in range(len(self.models))]
            try:
                yield answers
                while not all(future.done() for future in writing) or not news.empty():
                    if _take(news, answers):
                        yield list(answers)
                    if any(future.done() and future.exception() for future in writing):
                        self._stop.set()  # the others need not go on
            except GeneratorExit:
                self._stop.set()
                raise
        for model, future in zip(self.models, writing, strict=True):
            if (error := future.exception()) is not None:
                raise self._as_user_error(model, error) from error

    def _finished(self, answer: Answer, pictures: Sequence[Path]) -> Answer:
        """The answer with its boxes drawn on each picture that it may speak of. It stands if they cannot be."""
        if not pictures or not parse_boxes(answer.text):
            return replace(answer, state="done")
        drawn, undrawn = [], ""
        for picture in pictures:
            file = self._folder / f"boxes_{secrets.token_hex(8)}.jpg"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                draw_boxes(_at_shown_size(picture), answer.text).save(file, quality=90)
            except (InternVLError, OSError, ValueError) as error:  # an old upload is gone; the disk is full
                logger.warning("boxes are not drawn: %s", error)
                undrawn = f"boxes cannot be drawn: {first_line(error)}"
            else:
                drawn.append(file)
        names = legend(answer.text) if drawn else ()
        return replace(answer, state="done", drawn=tuple(drawn), legend=names, undrawn=undrawn)

    def _as_user_error(self, model: Model, error: BaseException) -> InternVLError:
        if isinstance(error, InternVLError):
            return error
        logger.error("%s: the answer failed", model.name, exc_info=error)
        if "out of memory" in str(error).lower():
            return InternVLError(f"{model.name}: out of memory; take fewer tiles or frames, or clear the conversation")
        return InternVLError(f"{model.name}: {first_line(error)} (the log has more)")

    def _copies(self) -> list[Chat]:
        """The conversations as they are now: what was said is never changed, only added to in a new value."""
        return [chat.copy() for chat in self._chats]


def sort_files(files: Sequence[str | Path]) -> tuple[tuple[Path, ...], Path | None]:
    """Pictures in order, and the video. Raises DataError for more than one video."""
    pictures = tuple(Path(file) for file in files if not is_video(file))
    videos = [Path(file) for file in files if is_video(file)]
    if len(videos) > 1:
        raise DataError(f"{len(videos)} videos are attached; one video can be asked about at once")
    return pictures, videos[0] if videos else None


def is_video(file: str | Path) -> bool:
    """By its name; an animated picture counts as a picture."""
    kind, _ = mimetypes.guess_type(str(file))
    return (kind or "").startswith("video/") or Path(file).suffix.lower() in _VIDEO_SUFFIXES


def _take(news: SimpleQueue[tuple[int, str]], answers: list[Answer]) -> bool:
    """Bring the answers up to date, waiting for news a little. Returns whether there was any."""
    try:
        batch = [news.get(timeout=PAUSE)]
    except Empty:
        return False
    while not news.empty():
        batch.append(news.get())
    for number, what in batch:
        if what == _WAITING:
            answers[number] = replace(answers[number], state="waiting")
        else:
            answers[number] = Answer(answers[number].text + what)
    return True


def _at_shown_size(picture: Path) -> Image.Image:
    image = read_picture(picture)
    smallest, largest = SHOWN_SIDES
    side = max(image.size)
    factor = smallest / side if side < smallest else min(1.0, largest / side)
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
