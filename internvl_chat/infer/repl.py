"""A conversation on a terminal, or on stdin and stdout: questions, and commands that begin with a slash."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria

from internvl_chat.constants import VIDEO_PLACEHOLDER
from internvl_chat.errors import ConfigError, DataError, InternVLError, first_line, nearest
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.pictures import NUM_SEGMENTS, Video, place_pictures, read_picture, read_video
from internvl_chat.infer.settings import check_settings, read_setting, searches_beams
from internvl_chat.infer.transcript import Round, to_line, to_markdown
from internvl_chat.infer.typed import LONG, read_typed

HELP = {
    "/image": "/image PATH           attach a picture to the next question, at its `<image>` or first; repeatable",
    "/video": "/video PATH [FRAMES]  attach a video, a GIF or a folder of frames to the next question",
    "/clear": "/clear                forget the conversation and what is attached",
    "/undo": "/undo                 take back what is attached, or else the last question and its answer",
    "/save": "/save FILE            write the conversation: .jsonl to train on or to ask again, .md to read",
    "/set": "/set [NAME [VALUE]]   show, reset or set a decoding argument: temperature, top_p, max_new_tokens, ...",
    "/help": "/help                 these lines",
    "/quit": "/quit                 leave (also Ctrl-D; Ctrl-C stops an answer, or leaves)",
}

NO_MEMORY = (
    "the GPU has no more memory for this question; take fewer tiles (--max_tiles) or frames of a video, or load the "
    "model in fewer bits (--load_in_8bit, --load_in_4bit)"
)


class Repl:
    """Asks ``chat``. Errors go to stderr and end nothing; ``stats``: so does a line of figures after each answer."""

    def __init__(
        self,
        chat: Chat,
        generation: Mapping[str, Any],
        images: Sequence[str] = (),
        video: Video | None = None,
        *,
        num_segments: int = NUM_SEGMENTS,
        stats: bool = False,
    ) -> None:
        """``images``, ``video``: attached to the first question. ``num_segments``: frames of a video."""
        self._chat = chat
        self._generation = dict(generation)
        self._images = list(images)
        self._video = video
        self._num_segments = num_segments
        self._stats = stats
        self._rounds: list[Round] = []
        self._before: list[Chat] = []  # the conversation before each round
        self._saved: set[Path] = set()

    def run(self) -> int:
        """Read and answer until the end. Returns the exit status."""
        prompt = "> " if sys.stdin.isatty() else ""
        if prompt:
            print("Ask away; /help lists the commands.")
        try:
            for text in read_typed(prompt):
                if "\n" not in text and text.split()[0] in ("/quit", "/exit"):
                    return 0
                self._take(text)
        except KeyboardInterrupt:
            pass
        if prompt:
            print()
        return 0

    def answer(self, question: str) -> None:
        """Stream the answer to stdout. What is attached is used up by an answer that came to its end.

        Raises InternVLError.
        """
        question, before = self._tagged(question), self._chat.copy()
        watch = Watch()
        generation = {**self._generation, "stopping_criteria": [watch]}
        video = self._video
        asked: dict[str, Any] = {"images": self._images, "video": video and video.source, **generation}
        asked["num_segments"] = video.num_segments if video else self._num_segments
        try:
            text = self._print_answer(question, asked)
        except torch.OutOfMemoryError as error:
            raise ConfigError(NO_MEMORY) from error
        print(flush=True)
        if self._stats:
            _print_dim(watch.figures())
        self._before.append(before)
        self._rounds.append(Round(question, tuple(self._images), video, text))
        self._images, self._video = [], None

    def _print_answer(self, question: str, asked: Mapping[str, Any]) -> str:
        if searches_beams(self._chat.loaded, self._generation):  # which token comes next is only known at the end
            text = self._chat.ask(question, **asked)
            print(text, end="", flush=True)
            return text
        text = ""
        with contextlib.closing(self._chat.ask(question, stream=True, **asked)) as pieces:
            for piece in pieces:
                text += piece
                print(piece, end="", flush=True)
        return text

    def _tagged(self, question: str) -> str:
        """The question with a tag for each picture and for the video, as it will be asked and saved."""
        question = place_pictures(question, len(self._images))
        if self._video is not None and VIDEO_PLACEHOLDER not in question:
            return f"{VIDEO_PLACEHOLDER}\n{question}"
        return question

    def _take(self, text: str) -> None:
        try:
            if text.startswith("/") and "\n" not in text:
                self._command(*text.split(maxsplit=1))
            else:
                self._answer_until_interrupted(text)
        except InternVLError as error:
            _print_error(str(error))
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the conversation goes on
            _print_error(first_line(error))

    def _answer_until_interrupted(self, question: str) -> None:
        try:
            self.answer(question)
        except KeyboardInterrupt:
            print("\n[stopped; the question is forgotten]", flush=True)

    def _command(self, name: str, rest: str = "") -> None:
        commands = {
            "/image": self._attach_image,
            "/video": self._attach_video,
            "/clear": self._clear,
            "/undo": self._undo,
            "/save": self._save,
            "/set": self._set,
            "/help": self._help,
        }
        if name not in commands:
            raise ConfigError(f"{name} is no command{nearest(name, HELP)}; /help lists them")
        commands[name](rest.strip())

    def _attach_image(self, rest: str) -> None:
        path = rest.strip("'\"")
        if not path:
            raise ConfigError("/image needs a path")
        width, height = read_picture(path).size
        self._images.append(path)
        print(f"[picture {len(self._images)}: {width} x {height}]", flush=True)

    def _attach_video(self, rest: str) -> None:
        path, space, frames = rest.rpartition(" ")
        if not space or not frames.isdecimal():
            path, frames = rest, str(self._num_segments)
        path = path.strip().strip("'\"")
        if not path:
            raise ConfigError("/video needs a path")
        video = Video(path, int(frames))
        width, height = read_video(video)[0].size
        self._video = video
        print(f"[video: {frames} frames of {width} x {height}]", flush=True)

    def _clear(self, rest: str) -> None:
        self._chat.clear()
        self._rounds, self._before = [], []
        self._images, self._video = [], None

    def _undo(self, rest: str) -> None:
        if self._images or self._video:
            self._images, self._video = [], None
            print("[nothing is attached]", flush=True)
            return
        if not self._rounds:
            raise ConfigError("nothing was asked yet")
        self._chat = self._before.pop()
        print(f"[forgotten: {_short(self._rounds.pop().question)}]", flush=True)

    def _save(self, rest: str) -> None:
        path = Path(rest.strip("'\"")).expanduser()
        if path.suffix not in (".jsonl", ".md"):
            raise ConfigError("/save needs the name of a .jsonl or .md file")
        if not self._rounds:
            raise ConfigError("nothing was asked yet")
        first = self._chat.turns[0]
        system = first.text if first.role == "system" else None
        text = to_markdown(self._rounds, system) if path.suffix == ".md" else to_line(self._rounds, system)
        try:
            if path.exists() and path.resolve() not in self._saved:
                raise ConfigError(f"{path} is there already; give another name")
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror})") from error
        self._saved.add(path.resolve())
        print(f"[saved: {path}]", flush=True)

    def _set(self, rest: str) -> None:
        name, text = re.split(r"\s*[=\s]\s*", f"{rest} ", maxsplit=1)  # NAME VALUE, or NAME=VALUE
        settings = dict(self._generation)
        if text:
            settings[name] = read_setting(name, text.strip())
            check_settings(settings)
        elif name and name not in settings:
            raise ConfigError(f"{name} is not set{nearest(name, settings)}; /set NAME VALUE sets it")
        elif name:
            del settings[name]
        self._generation = settings
        print(
            " ".join(f"{key}={value}" for key, value in sorted(settings.items())) or "[all as by default]", flush=True
        )

    def _help(self, rest: str) -> None:
        print("\n".join([*HELP.values(), LONG]), flush=True)


class Watch(StoppingCriteria):
    """Stops nothing: notes when each token came."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._times.append(time.perf_counter() - self._start)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def figures(self) -> str:
        """Tokens, tokens a second from the first one on, seconds to the first one."""
        if not self._times:
            return "[no tokens]"
        first, last = self._times[0], self._times[-1]
        rate = f", {(len(self._times) - 1) / (last - first):.1f} tokens/s" if last > first else ""
        return f"[{len(self._times)} tokens{rate}, first after {first:.2f} s]"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def _print_dim(text: str) -> None:
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)
