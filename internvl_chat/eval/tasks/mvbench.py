"""MVBench: twenty tasks of short videos, one of several options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.score.mvbench import option_matches, task_shares
from internvl_chat.eval.sources import field_of, read_json
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTERS, json_file
from internvl_chat.infer.pictures import Shown, Video

_PROMPT = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
_ENDING = "\nOnly give the best option."
_JSON = "MVBench/json"
_VIDEOS = "MVBench/video"


class _Source(NamedTuple):
    """Folder of a task's videos; ``bound``: its records name a segment; ``fps``: its videos are folders of frames."""

    folder: str
    bound: bool = False
    fps: float | None = None


_TASKS = {
    "Action Sequence": _Source("star/Charades_v1_480", bound=True),
    "Action Prediction": _Source("star/Charades_v1_480", bound=True),
    "Action Antonym": _Source("ssv2_video"),
    "Fine-grained Action": _Source("Moments_in_Time_Raw/videos"),
    "Unexpected Action": _Source("FunQA_test/test"),
    "Object Existence": _Source("clevrer/video_validation"),
    "Object Interaction": _Source("star/Charades_v1_480", bound=True),
    "Object Shuffle": _Source("perception/videos"),
    "Moving Direction": _Source("clevrer/video_validation"),
    "Action Localization": _Source("sta/sta_video", bound=True),
    "Scene Transition": _Source("scene_qa/video"),
    "Action Count": _Source("perception/videos"),
    "Moving Count": _Source("clevrer/video_validation"),
    "Moving Attribute": _Source("clevrer/video_validation"),
    "State Change": _Source("perception/videos"),
    "Fine-grained Pose": _Source("nturgbd"),
    "Character Order": _Source("perception/videos"),
    "Egocentric Navigation": _Source("vlnqa"),
    "Episodic Reasoning": _Source("tvqa/frames_fps3_hq", bound=True, fps=3),
    "Counterfactual Inference": _Source("clevrer/video_validation"),
}


def _file_of(task: str) -> str:
    return f"{_JSON}/{task.lower().replace(' ', '_').replace('-', '_')}.json"


def _item(record: Record, ask: Ask) -> Item:
    source = _TASKS[record["task"]]
    frames = _frames(ask.options["num_segments"])
    options = [f"({letter}) {text}" for letter, text in zip(LETTERS, record["candidates"], strict=False)]
    if record["answer"] not in record["candidates"]:
        raise DataError(f"the answer {record['answer']!r} is none of its candidates; download the file again")
    gold = options[record["candidates"].index(record["answer"])]
    bound = (float(record["start"]), float(record["end"])) if source.bound else None
    video = Video(
        ask.root / _VIDEOS / source.folder / record["video"],
        frames,
        bound,
        source.fps,
        # Folders count their frames from 1.
        first=0 if source.fps is None else 1,
        # Some segments end behind their video; the original takes what is there.
        lenient=True,
    )
    tags = "".join(f"Frame{number}: <image>\n" for number in range(1, frames + 1))
    question = "\n".join([f"Question: {record['question']}", "Options:", *options])
    return Item(
        f"{record['task']}/{record['number']}",
        f"{tags}{_PROMPT}\n{question}{_ENDING}",
        (Shown(video, ask.max_tiles),),
        gold,
        {"task": record["task"]},
    )


def _frames(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"option num_segments={text!r}: the number of frames, 1 or more, is expected")
    return int(text)


def _shares(run: Answered) -> tuple[list[bool], dict[str, float]]:
    hits = [option_matches(answer, item.gold) for item, answer in zip(run.items, run.answers, strict=True)]
    return hits, task_shares((item.extra["task"], hit) for item, hit in zip(run.items, hits, strict=True))


def _score(run: Answered) -> Result:
    hits, figures = _shares(run)
    notes = {"answers without a word, which the original counts as right": sum(map(_wordless, run.answers))}
    missing = [task for task in _TASKS if task not in figures]
    return Result(figures, "Avg", [float(hit) for hit in hits], notes, [str(figures)], missing)


def _wordless(answer: str) -> bool:
    first = answer.replace("Answer: ", "").split(" ", 1)[0]
    return not any(sign.isalnum() for sign in first)


def _files(run: Answered) -> list[OutputFile]:
    rows = zip(run.items, run.answers, strict=True)
    records = [
        {"question": item.text, "pred": answer, "gt": item.gold, "task_type": item.extra["task"]}
        for item, answer in rows
    ]
    return [json_file("MVBench.json", records), json_file("MVBench_result_final.json", _shares(run)[1])]


def _read(root: Path) -> Iterator[Record]:
    for task in _TASKS:
        path = root / _file_of(task)
        if not path.is_file():
            continue
        records = read_json(path)
        if not isinstance(records, list):
            raise DataError(f"{path}: no list of questions; download it again")
        for number, record in enumerate(records, 1):
            for name in ("video", "question", "candidates", "answer"):
                field_of(record, name, f"{path}: item {number}")
            yield {**record, "task": task, "number": number}


TASKS = (
    Task(
        "mvbench",
        "MVBench, twenty tasks of videos",
        (Layout("guide", (f"{_JSON}/*.json",), _read, "https://huggingface.co/datasets/OpenGVLab/MVBench"),),
        _item,
        _score,
        max_new_tokens=1000,
        max_tiles=1,
        count=4000,
        files=_files,
        options={"num_segments": ("16", "")},
    ),
)
KEYS = {"mvbench": ("mvbench",)}
