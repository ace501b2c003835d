"""ScienceQA, questions with a picture of the test split; and M3CoT, which has the same fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from internvl_chat.eval.score.letters import scienceqa_letter
from internvl_chat.eval.score.thought import final_answer, thoughtful
from internvl_chat.eval.sources import picture, read_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTER, LETTERS, jsonl_file, one, option_lines

# Options that the original looks at.
_MOST = 5


def _item(record: Record, ask: Ask) -> Item:
    choices = list(record["choices"])
    parts = [record["hint"]] if record.get("hint") else []
    parts += [record["question"], option_lines(choices[:_MOST])]
    plain = ask.options["cot"] == "off"
    text = "\n".join([*parts, LETTER] if plain else parts).strip()
    options = dict(zip(LETTERS, choices[:_MOST], strict=False))
    return Item(
        # The records have no id of their own.
        f"{record['number']}",
        text if plain else thoughtful(text),
        one(picture(ask.root, record["image"]), ask),
        LETTERS[record["answer"]],
        {"options": options, "image": record["image"]},
    )


def _letters(run: Answered) -> list[str]:
    clean = final_answer if run.options["cot"] == "on" else str
    return [
        scienceqa_letter(clean(answer), item.extra["options"])
        for item, answer in zip(run.items, run.answers, strict=True)
    ]


def _score(run: Answered) -> Result:
    letters = _letters(run)
    marks = [float(letter == item.gold) for item, letter in zip(run.items, letters, strict=True)]
    accuracy = sum(marks) / len(marks)
    unresolved = sum(letter not in item.extra["options"] for item, letter in zip(run.items, letters, strict=True))
    return Result(
        {"accuracy": accuracy}, "accuracy", marks, {"answers without a letter": unresolved}, [f"Acc@1: {accuracy}"]
    )


def _files(name: str) -> Callable[[Answered], list[OutputFile]]:
    def files(run: Answered) -> list[OutputFile]:
        rows = zip(run.items, _letters(run), run.answers, strict=True)
        records = [
            {
                "question": item.text,
                "answer": letter,
                "answer_orig": answer,
                "gt_answers": item.gold,
                "image_path": item.extra["image"],
            }
            for item, letter, answer in rows
        ]
        return [jsonl_file(f"{name}.jsonl", records)]

    return files


def _numbered(path: str) -> Callable[[Path], Iterator[Record]]:
    def read(root: Path) -> Iterator[Record]:
        for number, record in enumerate(read_records(root / path)):
            yield {"number": number, **record}

    return read


def _task(name: str, title: str, path: str, count: int | None, source: str) -> Task:
    return Task(
        name,
        title,
        (Layout("guide", (path,), _numbered(path), source),),
        _item,
        _score,
        max_new_tokens=100,
        count=count,
        files=_files(name),
        options={"cot": ("off", "on")},
    )


TASKS = (
    _task(
        "sqa_test", "ScienceQA, test questions with a picture", "scienceqa/scienceqa_test_img.jsonl", 2017,
        "https://scienceqa.github.io",
    ),
    _task("m3cot_test", "M3CoT, test", "M3CoT/test.jsonl", None, "https://huggingface.co/datasets/LightChen2333/M3CoT"),
)  # fmt: skip
KEYS = {"scienceqa": ("sqa_test",), "m3cot": ("m3cot_test",)}
