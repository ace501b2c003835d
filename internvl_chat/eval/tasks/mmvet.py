"""MM-Vet and MM-Vet v2: files for their evaluators, and a score through a judge where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from internvl_chat.errors import DataError
from internvl_chat.eval.sources import picture, read_json, read_records, write_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, NoScore, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import json_file, one
from internvl_chat.eval.tasks.tables import TOTAL_TILES
from internvl_chat.eval.tasks.vlm_judged import mmvet_score
from internvl_chat.infer.pictures import Shown

_MAX_NEW_TOKENS = 1000
_FIRST = "mm-vet"
_SECOND = "mm-vet-v2"
_QUESTIONS = "mm-vet/llava-mm-vet.jsonl"
_GOLDS = "mm-vet/mm-vet.json"
_PARTS = "<IMG>"
_PICTURES = (".png", ".jpg", ".jpeg")
_DETAIL = "Answer this question in detail."


def _write_guide(root: Path, records: Iterable[Record]) -> None:
    """The release's pictures lie where the guide has them."""
    fields = ("image", "text", "question_id")
    write_records(root / _QUESTIONS, ({name: record[name] for name in fields} for record in records))


def _read_guide(root: Path) -> Iterator[Record]:
    """The guide's questions; right answers are the release's, where it lies beside them."""
    golds = read_json(root / _GOLDS) if (root / _GOLDS).exists() else {}
    for record in read_records(root / _QUESTIONS):
        yield {**record, **_gold_of(golds.get(f"v1_{record['question_id']}", {}))}


def _read_release(root: Path) -> Iterator[Record]:
    for name, record in read_json(root / _GOLDS).items():
        number = int(name.removeprefix("v1_"))
        own = {"image": record["imagename"], "text": record["question"], "question_id": number}
        yield {**own, **_gold_of(record)}


def _gold_of(record: Mapping[str, object]) -> Record:
    return {name: record[name] for name in ("answer", "capability") if name in record}


def _read_second(root: Path) -> Iterator[Record]:
    for name, record in read_json(root / f"{_SECOND}/{_SECOND}.json").items():
        yield {"id": name, **record}


def _item(record: Record, ask: Ask) -> Item:
    shown = one(picture(ask.root, record["image"], f"{_FIRST}/images"), ask)
    # The original's prompt is empty, the blank before it is not.
    extra = {"question": record["text"], "capability": ",".join(record.get("capability", ()))}
    return Item(f"v1_{record['question_id']}", f"{record['text']} ", shown, record.get("answer"), extra)


def _second_item(record: Record, ask: Ask) -> Item:
    pieces = record["question"].split(_PARTS)
    parts = [piece.strip() for piece in pieces]
    names = [part for part in parts if part.lower().endswith(_PICTURES)]
    if not names:
        raise DataError(f"{record['id']}: no picture in the question {record['question'][:80]!r}")
    if ask.options["parts"] == "first":
        names, parts = names[:1], pieces[:1]  # as it is, with its blanks
    paths = [picture(ask.root, name, f"{_SECOND}/images") for name in names]
    limit = max(1, min(ask.max_tiles, TOTAL_TILES // len(paths)))
    texts, front = [], ""
    for part in parts:
        if part not in names:
            texts.append(part)
        elif len(names) > 1:
            front += f"Image-{front.count(':') + 1}: <image>\n"
            texts.append(f"Image-{front.count(':')}")
    text = " ".join(part for part in texts if part)
    extra = {"question": text.strip(), "capability": ",".join(record.get("capability", ()))}
    shown = tuple(Shown(path, limit) for path in paths)
    return Item(record["id"], f"{front}{text} {_DETAIL}", shown, record.get("answer"), extra)


def _score(name: str, where: str) -> Callable[[Answered], Result]:
    def score(run: Answered) -> Result:
        if run.judge is not None:
            lacking = sum(not item.gold or not item.extra["capability"] for item in run.items)
            if lacking:
                raise NoScore(
                    f"{name}: {lacking} questions have no right answer or no capability, which a judge needs; put the "
                    f"release's {where} below the data root"
                )
        return mmvet_score(run, name, "total")

    return score


def _files(name: str) -> Callable[[Answered], list[OutputFile]]:
    def files(run: Answered) -> list[OutputFile]:
        return [json_file(f"{name}.json", {item.id: text for item, text in zip(run.items, run.answers, strict=True)})]

    return files


TASKS = (
    Task(
        "mmvet",
        "MM-Vet",
        (
            Layout("guide", (_QUESTIONS,), _read_guide, write=_write_guide),
            Layout("release", (_GOLDS,), _read_release, "https://github.com/yuweihao/MM-Vet"),
        ),
        _item,
        _score("mmvet", _GOLDS),
        max_new_tokens=_MAX_NEW_TOKENS,
        count=218,
        files=_files("mmvet"),
        options={"double_count": ("no", "yes")},
        judged="optional",
    ),
    Task(
        "mmvet-v2",
        "MM-Vet v2",
        (Layout("guide", (f"{_SECOND}/{_SECOND}.json",), _read_second, "https://github.com/yuweihao/MM-Vet"),),
        _second_item,
        _score("mmvet-v2", f"{_SECOND}/{_SECOND}.json"),
        max_new_tokens=_MAX_NEW_TOKENS,
        count=517,
        files=_files("mmvet-v2"),
        # The original loses all that stands behind a question's first picture.
        options={"parts": ("all", "first"), "double_count": ("no", "yes")},
        judged="optional",
    ),
)
KEYS = {"mmvet": ("mmvet",), "mmvetv2": ("mmvet-v2",)}
