"""Questions about several pictures: Mantis-Eval, MIRB and MMIU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from internvl_chat.eval.arrow import read_arrow
from internvl_chat.eval.score import mantis, mirb
from internvl_chat.eval.score.letters import mcq_letter
from internvl_chat.eval.sources import field_of, find, picture, read_records, unpacked
from internvl_chat.eval.task import Answered, Ask, Item, Layout, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTER, SHORT, answers_file
from internvl_chat.infer.pictures import Shown, place_pictures

_MARKER = "<image>"
# The files of the hub, and what the datasets library makes of them where the original has run.
_MANTIS = {
    "guide": "mantis_eval/mantis_eval/test-*.parquet",
    "files alone": "mantis_eval/test-*.parquet",
    "cache": "mantis_eval/**/mantis-eval-test*.arrow",
}
_MMIU = ("mmiu/mmiu.jsonl", "mmiu/*.parquet")
_OPTION = re.compile(r"\(?([A-Z])\)?\s*[:.)]\s*(.*)", re.DOTALL)
_MIRB_PROMPTS = {
    "Answer with a single word.": (
        "analogy", "attribute", "plot_code", "plot_text", "sightseeing", "image_needles", "image_needles_concat",
        "visual_chain", "visual_chain_concat",
    ),
    "Answer with the option symbol.": ("codeu", "food", "image_jigsaw", "codeu_text"),
    "Answer with the paper title.": ("arxiv", "arxiv_text"),
    "Answer with a single number.": ("count", "count_concat"),
    "The following images are different views of the same 3D scene. Answer with a single number.": (
        "3d_scene", "3d_scene_concat",
    ),
}  # fmt: skip
_MIRB_PROMPT_OF = {task: prompt for prompt, tasks in _MIRB_PROMPTS.items() for task in tasks}
# What the figure is made of.
_MIRB_TASKS = tuple(task for group in mirb.GROUPS.values() for task in group)
# The tasks of the InternVL project's list, which are also in the public file.
_MMIU_TASKS = (
    "point_tracking", "ravens_progressive_matrices", "single_object_tracking", "threed_cad_recognition",
    "threed_indoor_recognition", "Egocentric_Video_QuestionAnswering", "Homography_estimation",
    "Icon_Question_Answering_with_Spatial_Context", "Image_Captioning_with_Spatial_Context",
    "Image_Spatial_Transformation_Estimation", "Image_text_retrieval_with_Spatial_Context",
    "Multiview_Action_Recognition", "Multiview_reasoning", "jigsaw_puzzle_solving", "threeD_Depth_Estimation",
    "threeD_Object_Detection", "threeD_Object_Tracking", "threeD_Pose_Estimation", "threeD_Scene_Reconstruction",
    "threeD_question_answering",
)  # fmt: skip


def _shown(names: Sequence[str], ask: Ask, folder: str = "") -> tuple[Shown, ...]:
    """The pictures, which share the tile limit: each has its part of it, at least one tile."""
    limit = max(1, ask.max_tiles // max(1, len(names)))
    return tuple(Shown(picture(ask.root, name, folder), limit) for name in names)


def _shares(items: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Share of right answers of each group, in order of appearance."""
    hits: dict[str, list[bool]] = {}
    for group, hit in items:
        hits.setdefault(group, []).append(hit)
    return {group: sum(own) / len(own) for group, own in hits.items()}


# -- Mantis-Eval ----------------------------------------------------------------------------------------------------


_MANTIS_TITLES = {"multi-choice": "Multi-choice", "short-answer": "Short-answer", "overall": "Overall"}


def _mantis_item(record: Record, ask: Ask) -> Item:
    images, options = record["images"], [option.strip() for option in record["options"] or []]
    # Markers of all pictures in a row say nothing; others are named in the text.
    question = record["question"].replace(" ".join([_MARKER] * len(images)), "").strip()
    for number in range(1, question.count(_MARKER) + 1):
        question = question.replace(_MARKER, f"Image-{number}", 1)
    prompt = LETTER if record["question_type"] == mantis.MULTI_CHOICE else SHORT
    return Item(
        str(record["id"]),
        place_pictures("", len(images)) + "\n".join([question, *options, prompt]),
        _shown(images, ask),
        record["answer"],
        {"kind": record["question_type"], "options": options},
    )


def _mantis_score(run: Answered) -> Result:
    hits = [
        bool(answer.strip()) and mantis.is_right(answer, item.extra["kind"], item.gold, item.extra["options"])
        for item, answer in zip(run.items, run.answers, strict=True)
    ]
    figures = {"overall": sum(hits) / len(hits)}
    figures |= _shares((item.extra["kind"], hit) for item, hit in zip(run.items, hits, strict=True))
    lines = [f"{title} Accuracy: {figures[name]:.4f}" for name, title in _MANTIS_TITLES.items() if name in figures]
    return Result(figures, "overall", [float(hit) for hit in hits], lines=lines)


def _mantis_reader(pattern: str) -> Callable[[Path], Iterator[Record]]:
    rows = read_arrow if pattern.endswith(".arrow") else read_records

    def read(root: Path) -> Iterator[Record]:
        for record in unpacked(find(root, [pattern]), rows):
            field_of(record, "question_type", pattern)
            yield record

    return read


# -- MIRB -----------------------------------------------------------------------------------------------------------


def _mirb_item(record: Record, ask: Ask) -> Item:
    task, images = record["task"], record["images"]
    names = [images] if isinstance(images, str) else images
    return Item(
        f"{task}/{record['number']}",
        f"{place_pictures('', len(names))}{record['questions']}\n{_MIRB_PROMPT_OF[task]}",
        _shown(names, ask, "MIRB"),
        str(record["answers"]),
        {"task": task},
    )


def _mirb_score(run: Answered) -> Result:
    hits = [
        bool(answer.strip()) and mirb.is_right(item.extra["task"], answer, item.gold)
        for item, answer in zip(run.items, run.answers, strict=True)
    ]
    tasks = _shares((item.extra["task"], hit) for item, hit in zip(run.items, hits, strict=True))
    means = mirb.group_means(tasks)
    figures = {"Mean": means.pop("Mean", sum(hits) / len(hits)), **means, **tasks}
    lines = [f"{name} Acc: {figures[name]}" for name in (*means, "Mean")]
    return Result(figures, "Mean", [float(hit) for hit in hits], lines=lines)


def _mirb_read(root: Path) -> Iterator[Record]:
    """The files that are tasks, called like them; there may be variants beside those of the groups."""
    for path in find(root, ["MIRB/*.json"]):
        if path.stem in _MIRB_PROMPT_OF:
            for number, record in enumerate(read_records(path), 1):
                yield {**record, "task": path.stem, "number": number}


# -- MMIU -----------------------------------------------------------------------------------------------------------


def _mmiu_item(record: Record, ask: Ask) -> Item:
    images = record["input_image_path"]
    names = [images] if isinstance(images, str) else images
    tags = place_pictures("", len(names)) if len(names) > 1 else ""
    parts = [record["question"], record["context"], LETTER]
    found = (_OPTION.match(line.strip()) for line in str(record["options"]).split("\n"))
    return Item(
        str(record["number"]),
        tags + "\n".join(parts),
        _shown([name.removeprefix("./") for name in names], ask, "mmiu"),
        record["output"],
        {"task": record["task"], "options": {match[1]: match[2].strip() for match in found if match}},
    )


def _mmiu_score(run: Answered) -> Result:
    letters = [mcq_letter(answer, item.extra["options"]) for item, answer in zip(run.items, run.answers, strict=True)]
    hits = [bool(letter) and letter == item.gold for item, letter in zip(run.items, letters, strict=True)]
    tasks = _shares((item.extra["task"], hit) for item, hit in zip(run.items, hits, strict=True))
    unresolved = sum(letter not in item.extra["options"] for item, letter in zip(run.items, letters, strict=True))
    listed = [value for task, value in tasks.items() if task in _MMIU_TASKS] or list(tasks.values())
    figures = {"Overall": sum(listed) / len(listed), **tasks}
    if len(listed) < len(tasks):
        figures["mean of all tasks"] = sum(tasks.values()) / len(tasks)
    lines = [f"{name} accuracy: {value}" for name, value in [*tasks.items(), ("Overall", figures["Overall"])]]
    notes = {"answers without a letter": unresolved}
    missing = [task for task in _MMIU_TASKS if task not in tasks]
    return Result(figures, "Overall", [float(hit) for hit in hits], notes, lines, missing)


def _mmiu_guide(root: Path) -> Iterator[Record]:
    for number, record in enumerate(read_records(root / _MMIU[0]), 1):
        where = f"{_MMIU[0]}:{number}"
        asked, said = (field_of(record, name, where) for name in ("input", "output"))
        yield {
            "number": number,
            **{name: field_of(record, name, where) for name in ("task", "options")},
            **{name: field_of(asked, name, where) for name in ("question", "context", "input_image_path")},
            "output": field_of(said, "output_text", where),
        }


def _mmiu_parquet(root: Path) -> Iterator[Record]:
    for number, record in enumerate(unpacked(find(root, [_MMIU[1]])), 1):
        field_of(record, "input_image_path", _MMIU[1])
        yield {**record, "number": number}


_HUB = "https://huggingface.co/datasets/"
TASKS = (
    Task(
        "Mantis-Eval",
        "Mantis-Eval, several pictures",
        tuple(
            Layout(name, (pattern,), _mantis_reader(pattern), f"{_HUB}TIGER-Lab/Mantis-Eval, below mantis_eval/")
            for name, pattern in _MANTIS.items()
        ),
        _mantis_item,
        _mantis_score,
        max_new_tokens=50,
        count=217,
        files=answers_file("Mantis-Eval"),
    ),
    Task(
        "MIRB",
        "MIRB, relations between pictures",
        (Layout("guide", tuple(f"MIRB/{task}.json" for task in _MIRB_TASKS), _mirb_read, f"{_HUB}VLLMs/MIRB"),),
        _mirb_item,
        _mirb_score,
        max_new_tokens=512,
        files=answers_file("MIRB"),
    ),
    Task(
        "mmiu",
        "MMIU, many tasks about several pictures",
        (
            Layout("guide", _MMIU[:1], _mmiu_guide, "the InternVL project's list, which it does not publish"),
            Layout("parquet", _MMIU[1:], _mmiu_parquet, f"{_HUB}FanqingM/MMIU-Benchmark, below mmiu/"),
        ),
        _mmiu_item,
        _mmiu_score,
        max_new_tokens=100,
        max_tiles=12,
        files=answers_file("mmiu"),
    ),
)
KEYS = {"mantis": ("Mantis-Eval",), "mirb": ("MIRB",), "mmiu": ("mmiu",)}
