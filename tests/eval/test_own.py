"""Own data as a task: every container, fields, prompts, metrics, training lines; and what is refused."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.items import load_items, options_of, question_of_item
from internvl_chat.eval.own import load_task
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.task import Answered, Ask, Item, Result
from internvl_chat.infer.pictures import Video, read_picture
from internvl_chat.tools.digits import make_digits
from tests.eval.mini.common import jsonl, picture

RECORDS = [
    {"question": "What?", "image": "a.png", "answer": "dog"},
    {"question": "How many?", "image": "b.png", "answer": ["2", "two"]},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))


@pytest.fixture()
def home(tmp_path: Path) -> Path:
    """Folder with pictures and a table."""
    for number, name in enumerate("ab"):
        picture(tmp_path / f"pics/{name}.png", number)
    jsonl(tmp_path / "items.jsonl", RECORDS)
    return tmp_path


def described(home: Path, text: str = "", **keys: Any) -> Path:
    path = home / "task.yaml"
    given = {"name": "mine", "data": "items.jsonl", "root": "pics", "metric": "exact_match"} | keys
    path.write_text(text or yaml.safe_dump({key: value for key, value in given.items() if value is not ...}))
    return path


def items_of(path: Path) -> list[Item]:
    task = load_task(path)
    # The folder of the benchmarks' data has nothing to do with it.
    items = load_items(task, Ask(Path("nowhere"), task.max_tiles, True, options_of(task, {})))
    for item in items:
        question_of_item(item)
    return items


def score(path: Path, *answers: str) -> Result:
    task = load_task(path)
    assert task.score is not None
    return task.score(Answered(items_of(path), answers, {}, "m"))


def test_ten_lines_make_a_task(home: Path) -> None:
    path = described(
        home,
        """
        name: shop_signs
        data: items.jsonl
        root: pics
        fields: {question: question, image: image, answer: answer}
        prompt: "{question} Answer the question using a single word or phrase."
        metric: exact_match
        max_new_tokens: 20
        max_tiles: 12
        """,
    )
    task = load_task(path)
    assert (task.name, task.max_new_tokens, task.max_tiles) == ("shop_signs", 20, 12)
    first, second = items_of(path)
    assert first.text == "<image>\nWhat? Answer the question using a single word or phrase."
    assert (first.shown[0].source, first.shown[0].max_tiles) == (home / "pics/a.png", 12)
    assert (first.id, first.gold, second.gold) == ("1", ["dog"], ["2", "two"])
    found = score(path, " Dog ", "Two")
    assert (found.figures, found.marks) == ({"accuracy": 1.0}, [1.0, 1.0])
    assert score(path, "", "3").figures == {"accuracy": 0.0}


def test_every_container_gives_the_same_items(home: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    records = [{"question": one["question"], "image": one["image"], "answer": "x"} for one in RECORDS]
    (home / "items.json").write_text(json.dumps(records))
    for name, delimiter in (("items.tsv", "\t"), ("items.csv", ",")):
        with (home / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["question", "image", "answer"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(records)
    content = [(home / "pics" / str(one["image"])).read_bytes() for one in records]
    noise = picture(home / "noise.png", 3, (300, 300)).read_bytes() + bytes(2000)  # longer than a path can be
    with (home / "inside.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([["question", "image", "answer"], ["What?", base64.b64encode(noise).decode(), "x"]])
    images = [{"bytes": one, "path": None} for one in content]
    parquet.write_table(
        pyarrow.table({"question": [one["question"] for one in records], "image": images, "answer": ["x", "x"]}),
        home / "items.parquet",
    )
    jsonl(home / "plain.jsonl", records)
    expected = [(item.id, item.text, item.gold) for item in items_of(described(home, data="plain.jsonl"))]
    assert len(expected) == 2
    for name in ("items.json", "items.tsv", "items.csv", "items.parquet"):
        items = items_of(described(home, data=name))
        assert [(item.id, item.text, item.gold) for item in items] == expected, name
        for item, original in zip(items, content, strict=True):
            assert read_picture(item.shown[0].source).size == (80, 50)  # type: ignore[arg-type]
            if name == "items.parquet":
                assert Path(str(item.shown[0].source)).read_bytes() == original
    (inside,) = items_of(described(home, data="inside.tsv"))
    assert read_picture(inside.shown[0].source).size == (300, 300)  # type: ignore[arg-type]


def test_choices_are_lettered(home: Path) -> None:
    record = {"question": "Which?", "image": "a.png", "choices": ["cat", "dog"], "answer": "dog"}
    jsonl(
        home / "items.jsonl",
        [record, record | {"answer": 0}, record | {"answer": "b"}, record | {"choices": '["x", "y"]', "answer": "x"}],
    )
    path = described(home, metric="letter")
    items = items_of(path)
    asked = "Which?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    assert items[0].text == f"<image>\n{asked}"
    assert [item.gold for item in items] == ["B", "A", "B", "A"]
    found = score(path, "B", "It is a cat", "A", "")
    assert found.marks == [1.0, 1.0, 0.0, 0.0]
    assert found.notes == {"empty answers": 1, "answers without a letter": 1}
    path = described(home, metric="letter", prompt="{choices}\n{question}", fields={"choices": "choices"})
    assert items_of(path)[0].text == "<image>\nA. cat\nB. dog\nWhich?"


def test_a_column_for_each_choice(home: Path) -> None:
    (home / "t.tsv").write_text("question\timage\tA\tB\tC\tanswer\nWhich?\ta.png\tNone\tdog\t\tB\n")
    (item,) = items_of(described(home, data="t.tsv", metric="letter", fields={"choices": ["A", "B", "C"]}))
    assert item.extra["options"] == {"A": "None", "B": "dog"} and item.gold == "B"


def test_several_pictures_a_video_and_none(home: Path) -> None:
    frames = home / "pics/film"
    for number in range(4):
        picture(frames / f"{number}.png", number)
    jsonl(
        home / "items.jsonl",
        [
            {"id": "two", "question": "Same?", "images": ["a.png", "b.png"], "answer": "no"},
            {"id": "tags", "question": "<image> or <image>?", "images": ["b.png", "a.png"], "answer": "no"},
            {"id": "film", "question": "What happens?", "video": "film", "answer": "it"},
            {"id": "text", "question": "1 + 1?", "answer": 2},
        ],
    )
    two, tags, film, text = items_of(described(home, prompt="{question}", max_tiles=7, num_segments=2))
    assert two.text == "Image-1: <image>\nImage-2: <image>\nSame?"
    assert [one.max_tiles for one in two.shown] == [3, 3]
    assert tags.text == "<image> or <image>?" and tags.shown[0].source == home / "pics/b.png"
    assert film.text == "Frame-1: <image>\nFrame-2: <image>\nWhat happens?"
    assert film.shown[0].source == Video(frames, 2) and film.shown[0].max_tiles == 1
    assert (text.text, text.shown, text.gold) == ("1 + 1?", (), ["2"])


@pytest.mark.parametrize(
    ("metric", "gold", "answer", "mark", "main"),
    [
        ("exact_match", "Dog", " dog", 1.0, "accuracy"),
        ("exact_match", "dog", "a dog", 0.0, "accuracy"),
        ("contains", "Dog", "It is a dog.", 1.0, "accuracy"),
        ("contains", "", "anything", 0.0, "accuracy"),
        ("vqa", "two dogs", "The 2 dogs.", 1.0, "accuracy"),
        ("vqa", ["dog"] * 2 + ["cat"] * 8, "dog", 0.6, "accuracy"),
        ("anls", "the hague", "The Hagu", 1 - 1 / 9, "anls"),
        ("relaxed", "100", "95", 1.0, "relaxed_accuracy"),
        ("relaxed", "100", "105.2", 0.0, "relaxed_accuracy"),
        ("iou", [10, 10, 50, 40], "<box>[[125, 200, 625, 800]]</box>", 1.0, "accuracy"),
        ("iou", "[10, 10, 50, 40]", "[[0, 0, 10, 10]]", 0.0, "accuracy"),
    ],
)
def test_metrics(home: Path, metric: str, gold: Any, answer: str, mark: float, main: str) -> None:
    jsonl(home / "items.jsonl", [{"question": "?", "image": "a.png", "answer": gold}])
    found = score(described(home, metric=metric), answer)
    assert found.main == main and found.marks == [pytest.approx(mark)]
    assert found.figures[main] == pytest.approx(mark)
    assert score(described(home, metric=metric), "").marks == [0.0]


def test_boxes_are_asked_for_as_the_series_does(home: Path) -> None:
    due = (
        "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: <ref>the dog</ref>"
    )
    own = "Where is <ref>the dog</ref>?"
    jsonl(
        home / "items.jsonl",
        [{"question": q, "image": "a.png", "answer": [1, 2, 3, 4]} for q in ("the dog", "<image>\nthe dog", own)],
    )
    assert [item.text for item in items_of(described(home, metric="iou"))] == [due, due, f"<image>\n{own}"]
    (first, *_) = items_of(described(home, metric="iou", prompt="Find {question}."))
    assert first.text == "<image>\nFind the dog."


def test_what_is_amiss_with_boxes_is_noted(home: Path) -> None:
    jsonl(home / "items.jsonl", [{"question": "it", "image": "a.png", "answer": [0, 0, 40, 25]}] * 2)
    path = described(home, metric="iou")
    good, pixels = "<box>[[0, 0, 500, 500]]</box>", "<box>[[0, 0, 1400, 900]]</box>"
    assert score(path, good, "there").notes == {"answers without a box": 1}
    assert score(path, good, pixels).notes == {"answers without a box": 0}
    without = score(path, "there", "").notes
    assert without.pop("answers without a box") == 2
    ((what, times),) = without.items()
    assert "no answer has a box" in what and "<box>[[x1, y1, x2, y2]]</box>, in 0 to 1000" in what and times == 2
    beyond = score(path, pixels, "there").notes
    assert beyond.pop("answers without a box") == 1
    ((what, times),) = beyond.items()
    assert "numbers beyond 1000" in what and times == 1
    # The command line prints figures by their names where the original has no lines of its own.
    assert not score(path, good, good).lines and list(score(path, good, good).figures) == ["accuracy", "mean IoU"]


def test_choices_are_shown_by_a_prompt_that_has_them(home: Path) -> None:
    jsonl(home / "items.jsonl", [{"question": "Which?", "choices": ["cat", "dog"], "answer": "dog"}])
    for fields in ({}, {"choices": "choices"}):
        (item,) = items_of(described(home, prompt="{question} {choices}", fields=fields))
        assert item.text == "Which? A. cat\nB. dog" and item.gold == ["dog"]


def test_the_name_of_a_task_is_taken(home: Path) -> None:
    path = described(home, name="sqa_test")
    with pytest.raises(ConfigError, match=r"task\.yaml: name: there is a task 'sqa_test' already; give it"):
        resolve([str(path)])
    with pytest.raises(ConfigError, match="there is a task 'mine' already"):
        resolve([str(described(home))] * 2)


def test_a_title_of_its_own(home: Path) -> None:
    assert load_task(described(home)).title == "own data, metric exact_match"
    assert load_task(described(home, title="Signs")).title == "Signs"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "question;image;answer\nWhat?;a.png;x\n", "the separator of .csv is a comma, not ';'; write it anew"),
        ("t.csv", "question\timage\tanswer\n", "is a comma, not a tab; call it .tsv"),
        ("t.tsv", "question,image,answer\nWhat, now?,a.png,x\n", "is a tab, not a comma; call it .csv"),
    ],
)
def test_a_table_with_another_separator(home: Path, name: str, text: str, message: str) -> None:
    (home / name).write_text(text)
    with pytest.raises(DataError) as error:
        items_of(described(home, data=name))
    assert message in str(error.value) and name in str(error.value)


def test_a_table_with_one_column(home: Path) -> None:
    (home / "t.csv").write_text("question\n1 + 1?\n")
    (item,) = items_of(described(home, data="t.csv", metric="none"))
    assert item.text.startswith("1 + 1?")


def test_without_a_metric_answers_alone(home: Path) -> None:
    jsonl(home / "items.jsonl", [{"question": "?"}])
    assert load_task(described(home, metric="none")).score is None
    assert items_of(described(home, metric="none"))[0].gold is None


def test_lines_of_the_training_format(tmp_path: Path) -> None:
    """Real lines: the digits of the quickstart, with one, two and no pictures."""
    make_digits(tmp_path, train=20, held_out=30, seed=1)
    source = tmp_path / "opensource/digits_test.jsonl"
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    path = tmp_path / "digits.yaml"
    manifest = json.loads((tmp_path / "digits_test.json").read_text())
    keys = {"name": "digits", "data": str(source), "format": "internvl", "metric": "exact_match"}
    path.write_text(yaml.safe_dump(keys | {"root": str(tmp_path / next(iter(manifest.values()))["root"])}))
    items = items_of(path)
    assert [item.text for item in items] == [line["conversations"][0]["value"] for line in lines]
    golds = [line["conversations"][-1]["value"] for line in lines]
    assert [item.gold for item in items] == [[gold] for gold in golds]
    assert {len(item.shown) for item in items} == {0, 1, 2}
    assert score(path, *golds).figures == {"accuracy": 1.0}
    assert score(path, *reversed(golds)).figures["accuracy"] < 1


def test_training_lines_with_boxes_letters_and_rounds(home: Path) -> None:
    def line(question: str, *answers: str, **more: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answers[0]}]
        turns += [{"from": side, "value": text} for text in answers[1:] for side in ("human", "gpt")]
        return {"image": "a.png", "conversations": turns} | more

    where = {"ref": ["dog"], "bbox": [[10, 10, 50, 40]]}
    jsonl(home / "items.jsonl", [line("<image>\nWhere is it?", "<ref-object><bbox>", objects=where)])
    path = described(home, format="internvl", metric="iou")
    (item,) = items_of(path)
    assert item.gold == pytest.approx([10, 10, 50, 40])
    assert score(path, "<ref>dog</ref><box>[[125, 200, 625, 800]]</box>").figures["mean IoU"] == pytest.approx(1)
    jsonl(home / "items.jsonl", [line("<image>\nWhich?\nA. cat\nB. dog", "B", "more")])
    path = described(home, format="internvl", metric="letter")
    assert items_of(path)[0].gold == "B"
    assert score(path, "dog").marks == [1.0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metrik": "vqa"}, "unknown key 'metrik'; did you mean 'metric'"),
        ({"metric": "exactmatch"}, "metric: 'exactmatch' is unknown; did you mean 'exact_match'"),
        ({"metric": ...}, "the key 'metric' is missing"),
        ({"format": "internvl2"}, "did you mean 'internvl'"),
        ({"name": "a/b"}, "cannot be the name of a folder"),
        ({"name": 5}, "is no text"),
        ({"data": "none.jsonl"}, "there is no file"),
        ({"fields": {"anwser": "x"}}, "unknown field 'anwser'; did you mean 'answer'"),
        ({"fields": {"answer": 3}}, "the name of a column is expected"),
        ({"fields": {"answer": "a"}, "format": "internvl"}, "goes with 'format: table'"),
        ({"fields": "answer"}, "names of columns are expected"),
        ({"prompt": "Hello"}, "there is no {question}"),
        ({"prompt": "{qestion}"}, "did you mean 'question'"),
        ({"prompt": "{question"}, "prompt: "),
        ({"prompt": "{question} {choices}", "format": "internvl"}, "take it out"),
        ({"fields": {"choices": "c"}}, "metric 'exact_match' does not show choices; take 'metric: letter', or write a"),
        ({"prompt": "{question}", "metric": "letter"}, "has no {choices}, but metric 'letter' is about them"),
        ({"prompt": "{question}", "fields": {"choices": "c"}}, "has no {choices}"),
        ({"max_tiles": 0}, "max_tiles: 0"),
        ({"max_new_tokens": True}, "max_new_tokens: True"),
    ],
)
def test_a_description_that_cannot_be_used(home: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_task(described(home, **keys))
    assert message in str(error.value) and "task.yaml" in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00", "5", "name: a\nname: b\n"])
def test_a_file_that_is_no_description(home: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.yaml"):
        load_task(described(home, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_task(home / "none.yaml")


@pytest.mark.parametrize(
    ("record", "keys", "message"),
    [
        ({"question": "?", "image": "a.png"}, {}, "no column 'answer' (there are: question, image)"),
        ({"question": "?"}, {}, "or 'metric: none' where there are no right answers"),
        ({"conversations": []}, {}, "'format: internvl' reads lines of the training format"),
        ({"question": "?", "choices": ["a", "b"], "answer": "a"}, {}, "which metric 'exact_match' does not show: take"),
        ({"question": "?", "answer": [1, 2, 3, 4], "image": "no.png"}, {"metric": "iou"}, "pics/no.png is not there"),
        ({"question": 5, "answer": "x"}, {}, "question (column 'question') holds 5"),
        ({"question": "?", "answer": {"a": 1}}, {}, "a text, or a list of texts"),
        ({"question": "?", "answer": "x", "image": "none.png"}, {}, "pics/none.png"),
        ({"question": "?", "answer": "x", "image": 5}, {}, "the name of a picture is expected"),
        ({"question": "<image> <image>", "answer": "x", "image": "a.png"}, {}, "2 <image> in the question, 1 given"),
        ({"question": "?", "label": "x"}, {"fields": {"answer": "lable"}}, "did you mean 'label'"),
        ({"question": "?", "choices": ["a", "b"], "answer": "c"}, {"metric": "letter"}, "neither a letter nor"),
        ({"question": "?", "choices": "a, b", "answer": "a"}, {"metric": "letter"}, "which is no JSON list"),
        ({"question": "?", "answer": "x", "image": "a.png"}, {"metric": "iou"}, "is no box"),
        ({"question": "?", "answer": [1, 2, 3, 4]}, {"metric": "iou"}, "a box is of one picture"),
        ({"conversations": []}, {"format": "internvl"}, "conversations"),
    ],
)
def test_a_record_that_cannot_be_used(home: Path, record: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    jsonl(home / "items.jsonl", [record])
    with pytest.raises((DataError, ConfigError)) as error:
        items_of(described(home, **keys))
    assert message in str(error.value) and "mine" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: table.md\ndata: d.jsonl\nmetric: vqa\n", r"name: 'table.md' cannot be the name of a folder"),
        ('name: q\ndata: d.jsonl\nmetric: vqa\nprompt: "{question!r:>9}"\n', r"write {question} with nothing behind"),
    ],
)
def test_names_and_prompts_that_would_fail_later(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.jsonl").write_text('{"question": "?", "answer": "a"}\n')
    (tmp_path / "q.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_task(tmp_path / "q.yaml")
