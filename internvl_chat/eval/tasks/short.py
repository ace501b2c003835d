"""What the data sets of short answers share: the guide's records, the question, the files, and how they are written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.results import write_whole
from internvl_chat.eval.sources import DATA, field_of, keep_picture, picture, read_json, read_records, write_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result
from internvl_chat.eval.tasks.common import SHORT, json_file, one

Reader = Callable[[Path], Iterator[Record]]
Writer = Callable[[Path, Iterable[Record]], None]
Row = Callable[[Item, str], dict[str, Any]]


def short_item(prompt: str = SHORT, numbered: bool = False) -> Callable[[Record, Ask], Item]:
    """A record of the guide (image, question, question_id, answer) -> its item: the question, a blank, the prompt.

    ``numbered``: the item's id is the record's ``number``, for sets whose own ids nothing hangs on. The gold is
    ``answers`` where an annotation file gave them, else ``answer``.
    """

    def item(record: Record, ask: Ask) -> Item:
        question = record["question"]
        extra = {name: record.get(name) for name in ("question", "question_id", "answer")}
        return Item(
            f"{record['number'] if numbered else record['question_id']}",
            f"{question} {prompt}" if prompt else question,
            one(picture(ask.root, record["image"]), ask),
            record.get("answers", record.get("answer")),
            extra,
        )

    return item


def golds_of(item: Item) -> list[str]:
    """The right answers of an item, one or several. Raises DataError where there is none."""
    golds = [item.gold] if isinstance(item.gold, str) else item.gold
    if not golds:
        raise DataError(
            f"question {item.extra.get('question_id', item.id)!r} has no answer in the data; is it the right file?"
        )
    return [str(gold) for gold in golds]


def marked(
    mark: Callable[[str, Item], float],
    figure: str,
    lines: Callable[[float], Sequence[str]],
    scale: float = 1,
    empty: bool = False,
) -> Callable[[Answered], Result]:
    """A scorer that is the mean of marks.

    ``figure``: name of the mean times ``scale``; ``lines``: the unscaled mean -> what the original prints. ``empty``:
    whether an answer that is missing can be right.
    """

    def score(run: Answered) -> Result:
        pairs = zip(run.items, run.answers, strict=True)
        marks = [mark(answer, item) if answer or empty else 0.0 for item, answer in pairs]
        mean = sum(marks) / len(marks)
        return Result({figure: mean * scale}, figure, marks, {}, lines(mean))

    return score


def written(
    name: str, row: Row, submission: Row | None = None, *, escaped: bool = True
) -> Callable[[Answered], list[OutputFile]]:
    """Files of a data set: the original's, and where that has more than the server wants a clean one beside it.

    ``escaped``: as in ``json_file``, of the original's.
    """

    def files(run: Answered) -> list[OutputFile]:
        pairs = list(zip(run.items, run.answers, strict=True))
        found = [json_file(f"{name}.json", [row(item, answer) for item, answer in pairs], escaped=escaped)]
        if submission is not None:
            found.append(json_file(f"{name}_submission.json", [submission(item, answer) for item, answer in pairs]))
        return found

    return files


def row_with(id_name: str, *rest: str) -> Row:
    """A record of the original's file: question, the id by ``id_name``, answer, and ``rest`` ("annotation")."""

    def row(item: Item, answer: str) -> dict[str, Any]:
        found = {"question": item.text, id_name: item.extra["question_id"], "answer": answer}
        return found | dict.fromkeys(rest, item.extra["answer"])

    return row


def row_of(id_name: str) -> Row:
    """What servers want: the id by ``id_name``, and the answer."""

    def row(item: Item, answer: str) -> dict[str, Any]:
        return {id_name: item.extra["question_id"], "answer": answer}

    return row


def layout(name: str, files: tuple[str, ...], read: Reader, source: str = "", write: Writer | None = None) -> Layout:
    """A layout whose reader names the file where a record is not as expected, instead of failing on a field."""

    def reading(root: Path) -> Iterator[Record]:
        number = 0
        try:
            for record in read(root):
                number += 1
                yield record
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            what = f"{root / files[0]}: record {number + 1} is not what is expected ({type(error).__name__}: {error})"
            raise DataError(f"{what}; is it the right file, of the right version?") from error

    return Layout(name, files, reading, source, write=write)


def numbered(records: Iterable[Record]) -> Iterator[Record]:
    """Each record with its ``number``, from 0."""
    for number, record in enumerate(records):
        yield {"number": number, **record}


def lines_of(path: str) -> Reader:
    """The records of one file below the data root, numbered."""

    def read(root: Path) -> Iterator[Record]:
        yield from numbered(read_records(root / path))

    return read


def vqa_answers(path: Path) -> dict[str, list[str]]:
    """Question id -> answers, of an annotation file in COCO-VQA's layout. Raises DataError."""
    found = read_json(path)
    records = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(records, list):
        raise DataError(f"{path}: no list `annotations`; is it the annotation file of the data set?")
    return {
        str(field_of(record, "question_id", str(path))): [
            str(field_of(answer, "answer", str(path))) for answer in field_of(record, "answers", str(path))
        ]
        for record in records
    }


def with_answers(records: Iterable[Record], answers: Mapping[str, list[str]], path: Path) -> Iterator[Record]:
    """Records with the ``answers`` of the annotation file ``path``. Raises DataError for a question not in it."""
    for record in records:
        name = str(field_of(record, "question_id"))
        if name not in answers:
            raise DataError(f"{path}: no question {name!r}, which the question file has; take both of one release")
        yield {**record, "answers": answers[name]}


def annotated(path: str, annotations: str) -> Reader:
    """The guide's records with the answers of its annotation file, in COCO-VQA's layout."""

    def read(root: Path) -> Iterator[Record]:
        records = numbered(read_records(root / path))
        yield from with_answers(records, vqa_answers(root / annotations), root / annotations)

    return read


def commonest(answers: Sequence[str]) -> str:
    """The answer that most people gave; the first of those on a tie."""
    return Counter(answers).most_common(1)[0][0]


def vqa_document(records: Sequence[Record]) -> dict[str, Any]:
    """An annotation file in COCO-VQA's layout."""
    rows = [(record["question_id"], record["answers"]) for record in records]
    return {"annotations": [{"question_id": name, "answers": [{"answer": one} for one in each]} for name, each in rows]}


def guide_writer(
    path: str,
    pictures: str,
    annotations: str = "",
    document: Callable[[Sequence[Record]], Any] = vqa_document,
) -> Writer:
    """Write records as the guide has them: ``path`` (JSONL), pictures in a folder, and the annotation file.

    Pictures that begin with ``data/`` are in their place. An annotation file that is there stays: it is the release's.
    """

    def write(root: Path, records: Iterable[Record]) -> None:
        rows = [{**record, "image": kept(root, record, pictures)} for record in records]
        names = ("image", "question", "question_id", "answer")
        write_records(root / path, [{name: row[name] for name in names if row.get(name) is not None} for row in rows])
        if annotations and not (root / annotations).exists():
            write_document(root / annotations, document(rows))

    return write


def kept(root: Path, record: Record, folder: str) -> str:
    """The picture of a record in the guide's place, as annotations name it; ``file``: the name it should have there."""
    image = str(record["image"])
    if image.startswith(DATA):
        return image
    name = record.get("file") or Path(image).name
    keep_picture(image, root / folder / name)
    return f"{DATA}{folder}/{name}"


def write_document(path: Path, value: Any) -> None:
    """An annotation file: JSON on one line, as releases have it; whole or not at all. Raises ConfigError."""
    write_whole(path, json.dumps(value, ensure_ascii=False).encode())
