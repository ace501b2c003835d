"""MME, POPE and Tiny LVLM: layouts, prompts, files, scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.items import load_items, options_of
from internvl_chat.eval.prepare import verify
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.task import Answered, Ask, Item
from internvl_chat.eval.tasks.common import SHORT
from tests.eval.harness import ask, format_cases
from tests.eval.mini import mme, pope, tiny_lvlm
from tests.eval.mini.blobs import parquet, png
from tests.eval.mini.common import json_file, jsonl, picture
from tests.eval.mini.mme import LINES


def items_of(key: str, root: Path, **options: str) -> list[Item]:
    (task,) = resolve([key])
    return load_items(task, Ask(root, 6, True, options_of(task, options)))


def asked_of(items: list[Item]) -> list[tuple[object, ...]]:
    return [(item.id, item.text, item.gold, dict(item.extra)) for item in items]


# -- MME ------------------------------------------------------------------------------------------------------------


def test_mme_by_hand(tmp_path: Path) -> None:
    mme.guide(tmp_path)
    answers = ["Yes", "No", "yes\tsir", "Yes", "是", "不是", "hm", ""]
    asked = ask("mme", tmp_path, answers)
    assert asked.prompts[0] == (
        "Is it a cat 1? Please answer yes or no. Answer the question using a single word or phrase."
    )
    assert asked.result is not None
    # existence: 3 of 4, 1 of 2 pairs; code_reasoning: 2 of 4, 1 of 2 pairs
    assert asked.result.figures == {
        "perception": 125.0, "cognition": 100.0, "total": 225.0, "existence": 125.0, "code_reasoning": 100.0,
    }  # fmt: skip
    assert asked.result.marks == [1, 1, 1, 0, 1, 1, 0, 0]
    assert len(asked.result.missing) == 12 and asked.result.missing[:2] == ["count", "position"]
    assert sorted(asked.files) == ["code_reasoning.txt", "existence.txt"]
    assert asked.files["existence.txt"].content.decode().splitlines()[2] == (
        f"0002.jpg\tIs it a cat 2? Please answer yes or no. {SHORT}\tYes\tyes sir"
    )


def test_mme_layouts_agree(tmp_path: Path) -> None:
    mme.guide(tmp_path / "guide")
    mme.release(tmp_path / "release")
    rows = [
        {"question_id": f"{subtask}/{image}", "image": png(k), "question": question, "answer": answer,
         "category": subtask}
        for k, (subtask, image, question, answer) in enumerate(LINES)
    ]  # fmt: skip
    parquet(tmp_path / "hub/mme/data/test-00000-of-00001.parquet", rows[::2] + rows[1::2])
    guide = asked_of(items_of("mme", tmp_path / "guide"))
    assert asked_of(items_of("mme", tmp_path / "release")) == guide
    assert asked_of(items_of("mme", tmp_path / "hub")) == guide
    (task,) = resolve(["mme"])
    assert task.layouts[0].write is not None
    task.layouts[0].write(tmp_path / "new", task.layouts[2].read(tmp_path / "hub"))
    assert asked_of(items_of("mme", tmp_path / "new")) == guide


def test_mme_bad_lines(tmp_path: Path) -> None:
    mme.guide(tmp_path)
    path = tmp_path / "mme/Your_Results/existence.txt"
    path.write_text("0001.jpg\tIs it?\tPerhaps\n")
    with pytest.raises(DataError, match=r"existence.txt:1: the answer is 'Perhaps'"):
        items_of("mme", tmp_path)
    path.write_text("0001.jpg Is it? Yes\n")
    with pytest.raises(DataError, match=r"existence.txt:1: 3 fields"):
        items_of("mme", tmp_path)


def test_mme_of_another_set(tmp_path: Path) -> None:
    row = {"question_id": "x/1.png", "image": png(), "question": "?", "answer": "Yes", "category": "x"}
    path = parquet(tmp_path / "mme/data/test-0.parquet", [row])
    with pytest.raises(DataError, match=r"no subtask is called 'x'; is it MME\?"):
        items_of("mme", tmp_path)
    parquet(path, [{"id": 1}])
    with pytest.raises(DataError, match=r"no field 'question_id' \(there are: id\)"):
        items_of("mme", tmp_path)


# -- POPE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", format_cases("pope"), ids=lambda case: case["evaluate_sh_key"])
def test_pope_as_the_original_writes_it(tmp_path: Path, case: dict) -> None:
    record = case["input_record"]
    labels = ["yes", "no"]
    jsonl(tmp_path / "pope/llava_pope_test.jsonl", [{**record, "question_id": k} for k in range(2)])
    for category in ("random", "popular", "adversarial"):
        rows = [{"label": label} for label in labels] if category == "random" else []
        jsonl(tmp_path / f"pope/coco/coco_pope_{category}.json", rows or [{"label": "yes"}])
    picture(tmp_path / "pope/val2014" / record["image"])
    asked = ask("pope", tmp_path, case["model_answers"], model="pretrained/Fake")
    assert asked.prompts == case["prompts_seen"]
    (content,) = case["files"].values()
    assert asked.files["pope.json"].content.decode() == content
    assert asked.result is not None
    assert list(asked.result.lines) == case["stdout"][3:]
    assert asked.result.missing == ["popular", "adversarial"]


def test_pope_by_hand(tmp_path: Path) -> None:
    pope.guide(tmp_path)
    asked = ask("pope", tmp_path, ["Yes", "No!", "Yes.", "No, it", ""])
    assert asked.result is not None
    figures = asked.result.figures
    assert figures["random/TP"] == 1
    assert figures["random/FP"] == 1  # "No!" is yes
    assert figures["adversarial/f1"] == 1.0
    assert figures["overall_f1"] == pytest.approx(100 * (2 / 3 + 1 + 1) / 3)
    assert asked.result.notes == {"answers without a clear yes or no": 1, "empty answers, which count as yes": 1}
    assert not asked.result.missing


def test_pope_aloud(tmp_path: Path) -> None:
    pope.guide(tmp_path)
    asked = ask("pope", tmp_path, ["I see a cat. Final answer: Yes\nso", "x Answer: no", "Yes", "No", "Yes"], cot="on")
    assert asked.prompts[0].endswith("Question:\n\nIs there a cat in the image?")
    assert asked.result is not None
    assert asked.result.marks == [1, 1, 1, 1, 1]


def test_pope_layouts_agree(tmp_path: Path) -> None:
    pope.guide(tmp_path / "guide")
    pope.labels(tmp_path / "release")
    rows = [
        {"id": str(k), "question_id": "1", "question": text, "answer": label, "image_source": Path(image).stem,
         "image": png(k), "category": category}
        for k, (category, image, text, label) in enumerate(pope.ROWS)
    ]  # fmt: skip
    parquet(tmp_path / "hub/pope/data/test-00000-of-00001.parquet", rows)
    guide = asked_of(items_of("pope", tmp_path / "guide"))
    assert asked_of(items_of("pope", tmp_path / "hub")) == guide
    assert asked_of(items_of("pope", tmp_path / "release")) == guide
    (task,) = resolve(["pope"])
    assert task.layouts[0].write is not None
    task.layouts[0].write(tmp_path / "hub", task.layouts[2].read(tmp_path / "hub"))
    assert [row[:3] for row in asked_of(items_of("pope", tmp_path / "hub"))] == [row[:3] for row in guide]
    assert (tmp_path / "hub/pope/val2014/a.jpg").is_file()


def test_pope_refuses_labels_of_another_release(tmp_path: Path) -> None:
    pope.guide(tmp_path)
    path = tmp_path / "pope/coco/coco_pope_random.json"
    jsonl(path, [{"image": "a.png", "text": "Is there a cat in the image?", "label": "yes"}])
    with pytest.raises(DataError, match="more questions of category 'random' than labels"):
        items_of("pope", tmp_path)
    texts = ("Is there a cat in the imange?", "Is there a cow in the image?")  # a slip, and another object
    jsonl(
        path,
        [{"image": image, "text": text, "label": "no"} for image, text in zip(("a.png", "b.png"), texts, strict=True)],
    )
    with pytest.raises(DataError, match=r"coco_pope_random\.json:2: not the label of question 1"):
        items_of("pope", tmp_path)
    jsonl(path, [{"image": "z.png", "text": "Is there a cat in the image?", "label": "yes"}] * 2)
    with pytest.raises(DataError, match=r"coco_pope_random\.json:1: not the label of question 0"):
        items_of("pope", tmp_path)


# -- Tiny LVLM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", format_cases("updated_datasets"), ids=lambda case: case["evaluate_sh_key"])
def test_tiny_lvlm_as_the_original_writes_it(tmp_path: Path, case: dict) -> None:
    folder = tmp_path / "tiny_lvlm/updated_datasets/Visual_Reasoning"
    picture(folder / "a.png")
    tiny_lvlm.guide(tmp_path)
    json_file(folder / "dataset.json", [case["input_record"]])
    (task,) = resolve(["tiny_lvlm"])
    assert task.score is not None and task.files is not None
    run = Answered(items_of("tiny_lvlm", tmp_path)[:1], case["model_answers"])  # of one ability, as there
    assert [item.text for item in run.items] == case["prompts_seen"]
    (content,) = case["files"].values()
    (file,) = task.files(run)
    assert (file.name, file.content.decode()) == ("updated_datasets.json", content)
    assert list(task.score(run).lines) == case["stdout"][3:]


ABILITIES = (
    "Visual_Reasoning", "Visual_Perception", "Visual_Knowledge_Acquisition", "Visual_Commonsense",
    "Object_Hallucination",
)  # fmt: skip


def test_tiny_lvlm_by_hand(tmp_path: Path) -> None:
    tiny_lvlm.guide(tmp_path)
    asked = ask("tiny_lvlm", tmp_path, ["It is the puppy!", "three", "blue", "", "Yes", "No."])
    assert asked.result is not None
    assert asked.result.figures == {**dict(zip(ABILITIES, (0.5, 0, 0, 0, 1), strict=True)), "Overall": 1.5}


def test_tiny_lvlm_is_a_sum_of_all_abilities_or_none(tmp_path: Path) -> None:
    tiny_lvlm.guide(tmp_path)
    lost = tmp_path / "tiny_lvlm/updated_datasets/Visual_Commonsense/dataset.json"
    lost.unlink()
    with pytest.raises(DataError, match=r"not there: .*Visual_Commonsense/dataset\.json; docs"):
        items_of("tiny_lvlm", tmp_path)
    (task,) = resolve(["tiny_lvlm"])
    assert f"guide layout lacks {lost}, the rest is there" in verify(task, tmp_path).text()
