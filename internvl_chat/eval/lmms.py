"""A model of lmms-eval: its tasks asked of our checkpoints (``lmms-eval --model internvl_chat``).

lmms-eval finds ``manifest`` through the entry point ``lmms_eval.models`` and asks this module for ``InternVLChat``, a
subclass of its base class that is made when it is asked for: the package does not need lmms-eval otherwise.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from PIL import Image

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.data.record import Role, Turn
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer.batch import answers
from internvl_chat.infer.load import load
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import NUM_SEGMENTS, Shown, Video
from internvl_chat.infer.questions import Question
from internvl_chat.infer.sharing import share_machine
from internvl_chat.launch import find_launch

NAME = "internvl_chat"
_ROLES: dict[str, Role] = {"system": "system", "user": "human", "assistant": "gpt"}
# Arguments of a task's generation_kwargs that go to ``generate``; what else tasks write there is of other models.
_TAKEN = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample")
_LONGEST = 1024
# Tasks that say nothing get this from lmms-eval as the end of an answer; it would cut off second paragraphs.
_NO_END = "\n\n"


def manifest() -> Any:
    """What lmms-eval registers: ``--model internvl_chat``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.InternVLChat")


def __getattr__(name: str) -> Any:
    if name == "InternVLChat":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    class InternVLChat(lmms):  # type: ignore[misc, unused-ignore]
        """A checkpoint, its arguments those of ``--model_args`` (``pretrained=FOLDER,max_tiles=6,...``)."""

        is_simple = False

        def __init__(self, pretrained: str, batch_size: int | str = 1, device: str | None = None, **more: Any) -> None:
            super().__init__()
            launch = find_launch(os.environ, resolve=str)
            self._adapter = Adapter.of(pretrained, share_machine(launch, _device(device)), int(batch_size), more)
            self._rank, self._world_size = launch.rank, launch.world_size

        @property
        def device(self) -> Any:
            return self._adapter.loaded.model.device

        @property
        def batch_size(self) -> int:
            return self._adapter.batch_size

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            texts = self._adapter.answer([request.args for request in requests], self.task_dict)
            for request, text in zip(requests, texts, strict=True):
                self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), text)
            return texts

        def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
            raise ConfigError("the task compares likelihoods of given answers; internvl_chat only writes answers")

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            raise ConfigError("the task asks in several rounds that depend on each other; internvl_chat asks once")

    return InternVLChat


def _device(named: str | None) -> str | None:
    """lmms-eval names "cuda" by itself, also on machines without a GPU and for each of several processes."""
    return None if named in (None, "", "cuda", "cuda:0") else named


class Adapter:
    """What lmms-eval asks -> questions -> answers; it knows lmms-eval's forms, and imports nothing of it.

    ``num_frames``: of a video.
    """

    def __init__(self, loaded: Loaded, batch_size: int = 1, num_frames: int = NUM_SEGMENTS) -> None:
        self.loaded, self.batch_size, self.num_frames = loaded, batch_size, num_frames

    @classmethod
    def of(cls, pretrained: str, device: str | None, batch_size: int, options: Mapping[str, Any]) -> Adapter:
        """A checkpoint folder with the options of ``infer.load.load``, ``max_tiles``, ``dynamic``, ``num_frames``.

        Raises ConfigError, CheckpointError.
        """
        rest = {name: value for name, value in options.items() if name not in ("max_batch_size",)}
        tiles, dynamic = rest.pop("max_tiles", None), rest.pop("dynamic", None)
        frames = int(rest.pop("num_frames", NUM_SEGMENTS))
        known = (
            "dtype", "device_map", "load_in_8bit", "load_in_4bit", "attn_implementation", "conv_style",
            "system_message", "image_backend", "base",
        )  # fmt: skip
        for name in rest:
            if name not in known:
                legal = ", ".join(("max_tiles", "dynamic", "num_frames", *known))
                raise ConfigError(f"model_args: internvl_chat has no {name!r} (legal: pretrained, {legal})")
        if tiles is not None and int(tiles) < 1:
            raise ConfigError(f"model_args: max_tiles={tiles}: at least 1")
        if rest.get("device_map") is not None:
            device = None
        loaded = load(pretrained, device=device, **rest)
        changes: dict[str, Any] = {} if tiles is None else {"max_tiles": int(tiles)}
        changes |= {} if dynamic is None else {"dynamic": str(dynamic).lower() not in ("false", "0", "no")}
        return cls(replace(loaded, tiles=replace(loaded.tiles, **changes)), batch_size, frames)

    def answer(self, requests: Sequence[tuple[Any, ...]], documents: Mapping[str, Any]) -> list[str]:
        """Answers in order. ``requests``: (context, document -> messages, generation arguments, id, task, split).

        Raises DataError naming task and document.
        """
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, (_, _, given, *_) in enumerate(requests):
            groups.setdefault(repr(sorted(_generation(given).items())), []).append(number)
        for group in groups.values():
            options = _generation(requests[group[0]][2])
            questions = (self._question(requests[number], documents) for number in group)
            for place, found in answers(self.loaded, questions, self.batch_size, **options):
                _, _, given, name, task, _ = requests[group[place]]
                if isinstance(found, DataError):
                    raise DataError(f"{task}: document {name}: {found}") from found
                texts[group[place]] = _ended(found.text, given)
        return texts

    def _question(self, request: tuple[Any, ...], documents: Mapping[str, Any]) -> Question:
        _, messages_of, _, name, task, split = request
        try:
            return question_of_messages(
                messages_of(documents[task][split][name]), self.loaded.tiles.max_tiles, self.num_frames
            )
        except DataError as error:
            raise DataError(f"{task}: document {name}: {error}") from error


def _generation(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` of a task's; greedy unless it samples at a temperature above 0."""
    options = {name: given[name] for name in _TAKEN if given.get(name) is not None}
    if not options.get("temperature") or options.get("do_sample") is False:
        for name in ("temperature", "top_p", "top_k", "do_sample"):
            options.pop(name, None)
    else:
        options["do_sample"] = True
    return {"max_new_tokens": _LONGEST, **options}


def _ended(text: str, given: Mapping[str, Any]) -> str:
    ends = given.get("until") or []
    for end in [ends] if isinstance(ends, str) else ends:
        if end and end != _NO_END:
            text = text.split(end)[0]
    return text


# -- messages -------------------------------------------------------------------------------------------------------


def question_of_messages(messages: Sequence[Mapping[str, Any]], max_tiles: int, num_frames: int) -> Question:
    """Chat messages -> a question.

    Each has a ``role`` (system, user, assistant) and ``content``: a text, or parts with a ``type`` (text, image,
    video). Where the text has a tag for each picture they stand there; else each stands where it comes, one as
    ``<image>``, several as ``Image-1: <image>``. Pictures share the tile limit. Raises DataError.
    """
    images = sum(part.get("type") == "image" for message in messages for part in _parts(message))
    limit = max(1, max_tiles // max(1, images))
    turns: list[Turn] = []
    shown: list[Shown] = []
    seen = 0
    for message in messages:
        role = _ROLES.get(str(message.get("role")))
        if role is None:
            raise DataError(f"a message of the role {message.get('role')!r}; known: {', '.join(_ROLES)}")
        parts = _parts(message)
        tagged = _tagged(parts)
        text = ""
        for part in parts:
            if part.get("type") == "text":
                text += (
                    str(part.get("text", "")) if tagged else str(part.get("text", "")).replace(IMAGE_PLACEHOLDER, "")
                )
            elif part.get("type") == "image":
                seen += 1
                shown.append(Shown(_image(part.get("url")), limit))
                text += (
                    ""
                    if tagged
                    else f"{IMAGE_PLACEHOLDER}\n"
                    if images == 1
                    else f"Image-{seen}: {IMAGE_PLACEHOLDER}\n"
                )
            elif part.get("type") == "video":
                shown.append(Shown(_video(part, num_frames), 1))
                text += "".join(f"Frame-{number}: {IMAGE_PLACEHOLDER}\n" for number in range(1, num_frames + 1))
            else:
                raise DataError(f"a message with {part.get('type')!r}; the model sees pictures and videos only")
        turns.append(Turn(role, text))
    if not turns or turns[-1].role != "human":
        raise DataError("the messages do not end with a question of the user")
    return Question(tuple(turns), tuple(shown))


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def _tagged(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the texts themselves say where each picture stands."""
    tags = sum(str(part.get("text", "")).count(IMAGE_PLACEHOLDER) for part in parts if part.get("type") == "text")
    kinds = [part.get("type") for part in parts]
    return tags > 0 and tags == kinds.count("image") and "video" not in kinds


def _image(source: Any) -> Any:
    if isinstance(source, Mapping) and source.get("bytes"):
        try:
            return Image.open(io.BytesIO(source["bytes"]))
        except OSError as error:
            raise DataError(f"picture cannot be decoded ({error})") from error
    return source.get("path") if isinstance(source, Mapping) else source


def _video(part: Mapping[str, Any], num_frames: int) -> Video:
    """A path, or an object with the path and the seconds from which and to which it is meant."""
    source = part.get("url")
    times = list(_times(part)) or (list(_times(source)) if isinstance(source, Mapping) else [])
    if isinstance(source, Mapping):
        source = next((source[key] for key in ("url", "path", "video") if isinstance(source.get(key), str)), None)
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"a video is given by its path, not as {type(source).__name__}")
    return Video(os.fspath(source), num_frames, (times[0], times[1]) if len(times) == 2 else None)


def _times(source: Mapping[str, Any]) -> Iterator[float]:
    for names in (("start_time", "video_start"), ("end_time", "video_end")):
        yield from (float(source[name]) for name in names if source.get(name) is not None)
