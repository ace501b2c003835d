"""MMMU: college questions of thirty subjects with one to seven pictures."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.arrow import read_arrow
from internvl_chat.eval.score.letters import mcq_letter
from internvl_chat.eval.score.mmmu import DOMAINS, letter_is, open_is, report
from internvl_chat.eval.score.thought import MAX_NEW_TOKENS, final_answer, thoughtful
from internvl_chat.eval.sources import field_of, find, picture, read_json, read_records, unpacked
from internvl_chat.eval.task import Answered, Ask, Item, Layout, NoScore, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTER, LETTERS, SHORT, jsonl_file, option_lines
from internvl_chat.infer.pictures import Shown

PICTURES = 7
# Options that the original letters.
_MOST = 13
_ANSWERS = "MMMU/answer_dict_test.json"
_SOURCE = "https://huggingface.co/datasets/MMMU/MMMU, below MMMU/"
_COUNTS = {"dev": 150, "validation": 900, "test": 10500}


def listed(text: Any, where: str) -> list[str]:
    """A list that is written as text, ``"['a', 'b']"``; nothing is run. Raises DataError."""
    try:
        found = ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{where}: the options {str(text)[:80]!r} are no list; download the data again") from error
    if not isinstance(found, list):
        raise DataError(f"{where}: the options {str(text)[:80]!r} are no list; download the data again")
    return [str(one) for one in found]


def _golds(answer: Any) -> Any:
    """One gold, or several that are written as a list."""
    if isinstance(answer, str) and answer.startswith("[") and answer.endswith("]"):
        try:
            found = ast.literal_eval(answer)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return answer
        return [str(one) for one in found] if isinstance(found, list) else answer
    return answer


def _shown(record: Record, ask: Ask) -> tuple[Shown, ...]:
    """The first picture twice as wide and high; of the others one tile each. Without tiles only the first is seen."""
    names = [record[f"image_{number}"] for number in range(1, PICTURES + 1) if record.get(f"image_{number}")]
    paths = [picture(ask.root, name) for name in names]
    if not paths:
        raise DataError(f"{record['id']}: no picture; download the data again")
    if not ask.dynamic:
        return (Shown(paths[0], 1),)
    return (Shown(paths[0], ask.max_tiles, enlarge=2), *(Shown(path, 1) for path in paths[1:]))


def _item(record: Record, ask: Ask) -> Item:
    is_open = record["question_type"] != "multiple-choice"
    options = [] if is_open else listed(record["options"], record["id"])[:_MOST]
    parts = [record["question"], *([option_lines(options)] if options else [])]
    if ask.options["cot"] == "on":
        text = thoughtful("\n".join(parts).strip())
    else:
        text = "\n".join([*parts, SHORT if is_open else LETTER]).strip()
    shown = _shown(record, ask)
    pictures = sum(bool(record.get(f"image_{number}")) for number in range(1, PICTURES + 1))
    return Item(
        record["id"],
        text,
        shown,
        record["gold"],
        {
            "open": is_open,
            "options": dict(zip(LETTERS, options, strict=False)),
            "answer": record["answer"],
            "unseen": pictures - len(shown),
        },
    )


def _cleaned(run: Answered) -> list[str]:
    clean = final_answer if run.options["cot"] == "on" else str
    return [
        clean(answer).strip() if item.extra["open"] else mcq_letter(clean(answer), item.extra["options"])
        for item, answer in zip(run.items, run.answers, strict=True)
    ]


def _score(run: Answered) -> Result:
    if any(item.gold is None for item in run.items):
        raise NoScore(
            f"no score: the answers are not in the data; {_ANSWERS} of https://github.com/MMMU-Benchmark/MMMU"
        )
    answers = _cleaned(run)
    hits = []
    for item, answer in zip(run.items, answers, strict=True):
        is_right = open_is if item.extra["open"] else letter_is
        hits.append(bool(answer) and is_right(answer, item.gold))
    table = report(zip((item.id for item in run.items), hits, strict=True))
    figures = {"Overall": float(table["Overall"]["acc"])}
    figures |= {name: float(row["acc"]) for name, row in table.items() if row["num"]}
    letters = [(item, answer) for item, answer in zip(run.items, answers, strict=True) if not item.extra["open"]]
    notes = {"answers without a letter": sum(answer not in item.extra["options"] for item, answer in letters)}
    unseen = sum(item.extra["unseen"] > 0 for item in run.items)
    if unseen:
        notes["questions of which only the first picture was seen"] = unseen
    missing = [subject for subjects in DOMAINS.values() for subject in subjects if subject not in table]
    return Result(figures, "Overall", [float(hit) for hit in hits], notes, [str(table)], missing)


def _filer(name: str) -> Callable[[Answered], list[OutputFile]]:
    def files(run: Answered) -> list[OutputFile]:
        rows = list(zip(run.items, _cleaned(run), strict=True))
        records = [
            {"question": item.text, "answer": answer, "gt_answers": item.extra["answer"], "data_id": item.id}
            for item, answer in rows
        ]
        answers = json.dumps({item.id: answer for item, answer in rows}, indent=4).encode()
        return [OutputFile(f"{name}.json", answers), jsonl_file(f"{name}.jsonl", records)]

    return files


def _reader(split: str, pattern: str) -> Callable[[Path], Iterator[Record]]:
    rows = read_arrow if pattern.endswith(".arrow") else read_records

    def read(root: Path) -> Iterator[Record]:
        answers = root / _ANSWERS
        golds = read_json(answers) if split == "test" and answers.is_file() else {}
        found = []
        for record in unpacked(find(root, [pattern]), rows):
            name = field_of(record, "id", pattern)
            gold = _golds(record.get("answer"))
            if split == "test":  # there the column holds "?"
                known = golds.get(name)
                gold = known["ground_truth"] if isinstance(known, dict) else known
            found.append({**record, "gold": gold})
        lacking = [record["id"] for record in found if record["gold"] is None]
        if lacking and len(lacking) < len(found):  # without any there is no score, but answers
            where = answers if golds else root / pattern
            raise DataError(
                f"{where}: {len(lacking)} of {len(found)} questions have no answer there, the first is {lacking[0]!r}; "
                "download it again"
            )
        yield from found

    return read


def _task(split: str, cot: bool = False) -> Task:
    name = f"MMMU_{split}_cot" if cot else f"MMMU_{split}"
    # The files of the hub, and what the datasets library makes of them where the original has run.
    patterns = {"guide": f"MMMU/*/{split}-*.parquet", "cache": f"MMMU/**/mmmu-{split}*.arrow"}
    return Task(
        name,
        f"MMMU, {split}, answers that think aloud first" if cot else f"MMMU, {split}",
        tuple(Layout(kind, (pattern,), _reader(split, pattern), _SOURCE) for kind, pattern in patterns.items()),
        _item,
        _score,
        max_new_tokens=MAX_NEW_TOKENS if cot else 10,
        count=_COUNTS[split],
        files=_filer(name),
        options={"cot": ("on",) if cot else ("off", "on")},
    )


TASKS = tuple(_task(split, cot) for cot in (False, True) for split in _COUNTS)
_SPLITS = {"dev": "dev", "val": "validation", "test": "test"}
KEYS = {f"mmmu-{key}": (f"MMMU_{split}",) for key, split in _SPLITS.items()}
# The original has the keys, but not their script.
KEYS |= {f"mmmu-{key}-cot": (f"MMMU_{split}_cot",) for key, split in _SPLITS.items()}
