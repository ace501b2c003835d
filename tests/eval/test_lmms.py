"""The model for lmms-eval: its messages as questions, its requests answered as we answer; with the library if there."""

from __future__ import annotations

import abc
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import internvl_chat.eval.lmms as ours
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.lmms import Adapter, question_of_messages
from internvl_chat.infer.batch import batch_answer
from internvl_chat.infer.load import load
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import Video
from tests.eval.mini.common import picture

REAL = importlib.util.find_spec("lmms_eval") is not None


# -- a stand-in with the signatures of lmms-eval 0.7 ----------------------------------------------------------------


class _Hook:
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.seen.append((attr, req, res))


class _Base(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = _Hook()
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        pairs = dict(pair.split("=", 1) for pair in arg_string.split(",") if pair)
        return cls(**pairs, **{k: v for k, v in (additional_config or {}).items() if v is not None})

    @property
    def rank(self) -> int:
        return self._rank


@dataclass(frozen=True)
class _Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class _Request:
    args: tuple[Any, ...]
    resps: list[Any] = field(default_factory=list)


@pytest.fixture()
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lmms-eval, or what stands in for it."""
    ours._model_class.cache_clear()
    if not REAL:
        parts: dict[str, dict[str, Any]] = {
            "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {"lmms": _Base},
            "lmms_eval.models": {}, "lmms_eval.models.registry_v2": {"ModelManifest": _Manifest},
        }  # fmt: skip
        for name, members in parts.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)
    yield
    ours._model_class.cache_clear()


@pytest.fixture(scope="module")
def loaded(lively: Path) -> Loaded:
    return load(lively, device="cpu")


@pytest.fixture()
def pictures(tmp_path: Path) -> list[Path]:
    return [picture(tmp_path / f"{number}.png", number, (120, 60)) for number in range(3)]


def documents(pictures: list[Path]) -> list[dict[str, Any]]:
    return [
        {"text": "What is it?", "images": [Image.open(pictures[0])]},
        {"text": "Which differs?", "images": [str(pictures[1]), str(pictures[2])]},
        {"text": "Say something.", "images": []},
        {"text": "And this?", "images": [{"bytes": pictures[1].read_bytes(), "path": None}]},
    ]


def messages_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """As lmms-eval builds them of what a task shows and asks."""
    content = [{"type": "image", "url": image} for image in document["images"]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["text"]}]}]


def requests(count: int, given: Callable[[int], dict[str, Any]]) -> list[_Request]:
    return [_Request(("context", messages_of, given(number), number, "task", "test")) for number in range(count)]


def test_its_requests_are_answered_as_we_answer(
    library: None, lively: Path, loaded: Loaded, pictures: list[Path]
) -> None:
    model = ours.InternVLChat.create_from_arg_string(
        f"pretrained={lively}", {"batch_size": 2, "max_batch_size": None, "device": "cuda:0"}
    )
    assert not model.is_simple and model.rank == 0 and model.batch_size == 2
    shown = documents(pictures)
    model.task_dict = {"task": {"test": shown}}
    given = {"max_new_tokens": 6, "temperature": 0, "do_sample": False, "until": ["\n\n"], "image_aspect_ratio": "pad"}
    found = model.generate_until(requests(4, lambda number: given | ({"max_new_tokens": 3} if number == 2 else {})))
    paths = [[pictures[0]], pictures[1:], [], [pictures[1]]]
    expected = batch_answer(
        loaded, [(one["text"], some) for one, some in zip(shown, paths, strict=True)], 1, max_new_tokens=6
    )
    expected[2] = batch_answer(loaded, [(shown[2]["text"], [])], 1, max_new_tokens=3)[0]
    assert found == expected and len(set(found)) == 4
    if not REAL:
        assert [res for _, _, res in model.cache_hook.seen] == expected
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(ConfigError):
            ask([])


def test_the_entry_point_names_the_class(library: None) -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    group = text.split('[project.entry-points."lmms_eval.models"]\n', 1)[1].split("\n[", 1)[0]
    assert group.strip() == 'internvl_chat = "internvl_chat.eval.lmms:manifest"'
    made = ours.manifest()
    module, _, name = made.chat_class_path.rpartition(".")
    assert (made.model_id, module) == ("internvl_chat", ours.__name__)
    assert getattr(ours, name) is getattr(ours, name)
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = ours.Other


def test_without_the_library_the_module_can_be_imported() -> None:
    assert callable(ours.manifest)


@pytest.mark.parametrize(
    ("parts", "text", "shown"),
    [
        ([("image", "a"), ("text", "What?")], "<image>\nWhat?", ["a"]),
        ([("text", "What?"), ("image", "a")], "What?<image>\n", ["a"]),
        ([("image", "a"), ("image", "b"), ("text", "Q")], "Image-1: <image>\nImage-2: <image>\nQ", ["a", "b"]),
        ([("image", "a"), ("image", "b"), ("text", "<image> or <image>?")], "<image> or <image>?", ["a", "b"]),
        ([("image", "a"), ("text", "<image> <image>?")], "<image>\n ?", ["a"]),
        ([("image", "a"), ("text", "See <image 1>.")], "<image>\nSee <image 1>.", ["a"]),
    ],
)
def test_pictures_stand_where_they_come(parts: list[tuple[str, str]], text: str, shown: list[str]) -> None:
    content = [{"type": kind, "text" if kind == "text" else "url": value} for kind, value in parts]
    question = question_of_messages([{"role": "user", "content": content}], 7, 2)
    assert question.turns[-1].text == text
    assert [one.source for one in question.shown] == shown
    assert {one.max_tiles for one in question.shown} == {7 // len(shown)}


def test_rounds_system_and_video() -> None:
    video = {"type": "video", "url": {"video": "v.mp4", "video_start": 1, "video_end": 4.5}}
    question = question_of_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]},
        ],
        6,
        2,
    )
    assert [turn.role for turn in question.turns] == ["system", "human", "gpt", "human"]
    assert question.turns[-1].text == "Frame-1: <image>\nFrame-2: <image>\nWhat happens?"
    (one,) = question.shown
    assert (one.source, one.max_tiles) == (Video("v.mp4", 2, (1.0, 4.5)), 1)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "do not end with a question"),
        ([{"role": "assistant", "content": "x"}], "do not end with a question"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"role": "user", "content": [{"type": "audio", "url": "x"}]}], "a message with 'audio'"),
        ([{"role": "user", "content": [{"type": "video", "url": 5}]}], "given by its path"),
        ([{"role": "user", "content": [{"type": "image", "url": {"bytes": b"x"}}]}], "cannot be decoded"),
    ],
)
def test_messages_that_cannot_be_asked(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        question_of_messages(messages, 6, 8)


def test_a_picture_that_is_lost_names_task_and_document(loaded: Loaded) -> None:
    adapter = Adapter(loaded)
    request = ("", lambda document: messages_of(document), {}, 3, "task", "test")
    with pytest.raises(DataError, match=r"task: document 3: .*none\.png"):
        adapter.answer([request], {"task": {"test": {3: {"text": "?", "images": ["none.png"]}}}})


def test_ends_and_sampling(loaded: Loaded) -> None:
    assert ours._ended("a\n\nb Q: c", {"until": ["\n\n", "Q:"]}) == "a\n\nb "
    assert ours._ended("a", {}) == "a" and ours._ended("ab", {"until": "b"}) == "a"
    assert ours._generation({"temperature": 0, "top_p": 1.0, "num_beams": 1}) == {
        "max_new_tokens": 1024,
        "num_beams": 1,
    }
    sampled = {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "do_sample": True}
    assert ours._generation(sampled | {"until": [], "foo": 1}) == sampled
    assert "temperature" not in ours._generation(sampled | {"do_sample": False})


def test_model_arguments(lively: Path, loaded: Loaded) -> None:
    adapter = Adapter.of(str(lively), "cpu", 3, {"max_tiles": "2", "dynamic": False, "max_batch_size": None})
    assert adapter.loaded.tiles == replace(loaded.tiles, max_tiles=2, dynamic=False)
    assert adapter.batch_size == 3
    for wrong, message in (({"max_tile": 2}, "has no 'max_tile'"), ({"max_tiles": 0}, "at least 1")):
        with pytest.raises(ConfigError, match=message):
            Adapter.of(str(lively), "cpu", 1, wrong)
