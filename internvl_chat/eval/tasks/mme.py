"""MME: 14 subtasks, two yes-or-no questions about each picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from internvl_chat.errors import DataError, first_line
from internvl_chat.eval.score.mme import COGNITION, PERCEPTION, clean_answer, marks, report_lines, subtask_score, totals
from internvl_chat.eval.sources import field_of, find, keep_picture, unpacked
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import SHORT, one

_SUBTASKS = (*PERCEPTION, *COGNITION)
_PICTURES = "mme/MME_Benchmark_release_version"
_QUESTIONS = "mme/Your_Results"
_PARQUET = "mme/data/test-*.parquet"
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")


def _item(record: Record, ask: Ask) -> Item:
    subtask, name = record["subtask"], record["image"]
    return Item(
        f"{subtask}/{name}/{record['number']}",
        f"{record['question']} {SHORT}",
        one(Path(record["picture"]), ask),
        record["answer"],
        {"subtask": subtask, "image": name, "question": record["question"]},
    )


def _by_subtask(run: Answered) -> dict[str, list[int]]:
    """Places of each subtask's items, in the order of the published table."""
    return {
        name: places
        for name in _SUBTASKS
        if (places := [k for k, item in enumerate(run.items) if item.extra["subtask"] == name])
    }


def _score(run: Answered) -> Result:
    golds = [item.gold for item in run.items]
    scores = {
        name: subtask_score([golds[k] for k in places], [run.answers[k] for k in places])
        for name, places in _by_subtask(run).items()
    }
    hits = [float(hit) for hit in marks(golds, run.answers)]
    missing = [name for name in _SUBTASKS if name not in scores]
    return Result(totals(scores) | scores, "total", hits, lines=report_lines(scores), missing=missing)


def _files(run: Answered) -> list[OutputFile]:
    found = []
    for name, places in _by_subtask(run).items():
        rows = [
            (run.items[k].extra["image"], run.items[k].text, run.items[k].gold, clean_answer(answer))
            for k, answer in ((k, run.answers[k]) for k in places)
        ]
        found.append(OutputFile(f"{name}.txt", "".join("\t".join(row) + "\n" for row in rows).encode()))
    return found


def _numbered(records: Iterable[Record]) -> Iterator[Record]:
    """``number``: which question about its picture a record is, from 1."""
    seen: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record["subtask"], record["image"])
        seen[key] = seen.get(key, 0) + 1
        yield {**record, "number": seen[key]}


def _record(subtask: str, image: str, question: str, answer: str, path: str, where: str) -> Record:
    if answer not in ("Yes", "No"):
        raise DataError(f"{where}: the answer is {answer[:40]!r}, not Yes or No; download the file again")
    return {"subtask": subtask, "image": image, "question": question, "answer": answer, "picture": path}


def _lines(path: Path, fields: int) -> Iterator[tuple[str, list[str]]]:
    """Where a line stands, and its fields, parted by tabs."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); take the shipped file") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts = line.strip().split("\t")
            if len(parts) < fields:
                raise DataError(f"{path}:{number}: {fields} fields parted by tabs are expected; take the shipped file")
            yield f"{path}:{number}", parts[:fields]


def _guide(root: Path) -> Iterator[Record]:
    folder = root / _PICTURES
    for subtask in _SUBTASKS:
        path = root / _QUESTIONS / f"{subtask}.txt"
        if path.is_file():
            rows = (
                _record(subtask, image, question, answer, str(_placed(folder / subtask, image)), where)
                for where, (image, question, answer) in _lines(path, 3)
            )
            yield from _numbered(rows)


def _placed(folder: Path, name: str) -> Path:
    """The picture, or where it would be; the release has those of five subtasks in a folder of their own."""
    inner = folder / "images" / name
    return inner if inner.is_file() and not (folder / name).is_file() else folder / name


def _release(root: Path) -> Iterator[Record]:
    for subtask in _SUBTASKS:
        folder = root / _PICTURES / subtask
        texts = sorted(folder.glob("*.txt")) or sorted((folder / "questions_answers_YN").glob("*.txt"))
        for path in texts:
            image = _picture_of(folder, path)
            rows = (
                _record(subtask, image.name, question, answer, str(image), where)
                for where, (question, answer) in _lines(path, 2)
            )
            yield from _numbered(rows)


def _picture_of(folder: Path, text: Path) -> Path:
    places = [inside / f"{text.stem}{suffix}" for inside in (folder, folder / "images") for suffix in _SUFFIXES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(f"{text}: the picture that it asks about is not beside it; unpack the release again")
    return found


def _parquet(root: Path) -> Iterator[Record]:
    rows = []
    for row in unpacked(find(root, [_PARQUET])):
        fields = ("question_id", "category", "question", "answer", "image")
        name, subtask, question, answer, path = (str(field_of(row, field, _PARQUET)) for field in fields)
        if subtask not in _SUBTASKS:
            raise DataError(f"{_PARQUET} {name}: no subtask is called {subtask!r}; is it MME?")
        image = name.rsplit("/", 1)[-1]
        rows.append(_record(subtask, image, question, answer, path, f"{_PARQUET} {name}"))
    order = {subtask: number for number, subtask in enumerate(_SUBTASKS)}
    # Questions about a picture stand together, as in the other layouts.
    yield from _numbered(sorted(rows, key=lambda row: (order[row["subtask"]], row["image"])))


def _write(root: Path, records: Iterable[Record]) -> None:
    texts: dict[str, list[str]] = {}
    for record in records:
        keep_picture(record["picture"], root / _PICTURES / record["subtask"] / record["image"])
        line = "\t".join((record["image"], record["question"], record["answer"]))
        texts.setdefault(record["subtask"], []).append(line + "\n")
    (root / _QUESTIONS).mkdir(parents=True, exist_ok=True)
    for subtask, lines in texts.items():
        (root / _QUESTIONS / f"{subtask}.txt").write_text("".join(lines), encoding="utf-8")


TASKS = (
    Task(
        "mme",
        "MME, perception and cognition",
        (
            Layout(
                "guide",
                (f"{_QUESTIONS}/*.txt", _PICTURES),
                _guide,
                "the guide of the InternVL project: its eval/mme/Your_Results, and the pictures of the release",
                write=_write,
            ),
            Layout(
                "release",
                (f"{_PICTURES}/existence/*.txt",),
                _release,
                "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
            ),
            Layout("parquet", (_PARQUET,), _parquet, "https://huggingface.co/datasets/lmms-lab/MME, below mme/"),
        ),
        _item,
        _score,
        max_new_tokens=20,
        min_new_tokens=None,
        count=2374,
        files=_files,
        neighbours=2,
    ),
)
KEYS = {"mme": ("mme",)}
