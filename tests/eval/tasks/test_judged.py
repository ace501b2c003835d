"""MM-Vet, LLaVA-Bench, MMHal-Bench, MathVista and DriveLM, as the original asks them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.items import load_items, options_of
from internvl_chat.eval.judge import JudgeError
from internvl_chat.eval.registry import keys, tasks
from internvl_chat.eval.task import Answered, Ask, NoScore
from tests.eval.harness import ask, format_cases
from tests.eval.judges import FakeJudge
from tests.eval.mini.common import json_file, jsonl, picture
from tests.eval.mini.judged import WRITERS, mathvista_annotations, mmvet

THOUGHT = "Your task is to answer the question below. Give step by step reasoning before you answer, and when "
KEYS = {
    "mmvet": "mmvet", "mmvetv2": "mmvet-v2", "llava-bench": "llava_bench", "mmhal": "mmhal-bench_with_image",
    "mathvista-testmini": "MathVista_testmini", "mathvista-test": "MathVista_test", "drivelm": "DriveLM_val",
}  # fmt: skip


@pytest.mark.parametrize(("key", "name"), KEYS.items())
def test_every_set_is_asked(tmp_path: Path, key: str, name: str) -> None:
    assert keys()[key] == (name,)
    WRITERS[name](tmp_path)
    found = ask(key, tmp_path, lambda item: "")
    assert len(found.questions) >= 2
    # Only rules score silence; a judge's score is none.
    assert (found.result is None) == (name != "MathVista_testmini")
    assert found.result is None or found.result.figures["average"] == 0


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("MathVista_test", "DriveLM_val")])
def test_silence_is_worth_nothing_to_any_judge(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    judge = FakeJudge({"Assistant 1": "8 8", "": "1"})
    result = ask(name, tmp_path, lambda item: "", judge=judge).result
    assert result is not None
    assert result.figures[result.main] == 0
    assert set(result.marks) == {0.0}


def name_of(case: dict[str, Any]) -> str:
    return case["dataset"]


def test_a_judge_of_whom_nothing_can_be_read_gives_no_score(tmp_path: Path) -> None:
    WRITERS["mmvet"](tmp_path)
    with pytest.raises(JudgeError, match=r"none of . replies of fake is a mark"):
        ask("mmvet", tmp_path, lambda item: "an answer", judge=FakeJudge({"": "I cannot say."}))


@pytest.mark.parametrize("case", format_cases("mmvet"), ids=name_of)
def test_mmvet_as_the_original_writes_it(tmp_path: Path, case: dict[str, Any]) -> None:
    picture(tmp_path / "mm-vet/images/v1_0.png")
    jsonl(tmp_path / "mm-vet/llava-mm-vet.jsonl", [case["input_record"]])
    found = ask("mmvet", tmp_path, case["model_answers"])
    assert found.prompts == case["prompts_seen"]
    assert [found.files["mmvet.json"].content.decode()] == list(case["files"].values())


@pytest.mark.parametrize("parts", ["first", "all"])
@pytest.mark.parametrize("case", format_cases("mmvet-v2"), ids=name_of)
def test_mmvet_v2_as_the_original_writes_it(tmp_path: Path, case: dict[str, Any], parts: str) -> None:
    picture(tmp_path / "mm-vet-v2/images/a.png")
    json_file(tmp_path / "mm-vet-v2/mm-vet-v2.json", case["input_record"])
    found = ask("mmvetv2", tmp_path, case["model_answers"], parts=parts)
    prompts = case["prompts_seen"] if parts == "first" else ["What? more Answer this question in detail."]
    assert found.prompts == prompts
    assert [found.files["mmvet-v2.json"].content.decode()] == list(case["files"].values())


@pytest.mark.parametrize("case", format_cases("llava_bench"), ids=name_of)
def test_llava_bench_as_the_original_writes_it(tmp_path: Path, case: dict[str, Any]) -> None:
    folder = tmp_path / "llava-bench-in-the-wild"
    picture(folder / "images/a.png")
    jsonl(folder / "questions.jsonl", [case["input_record"]])
    jsonl(folder / "context.jsonl", [{"image": "a.png", "caption": "c"}])
    jsonl(folder / "answers_gpt4.jsonl", [{"question_id": 0, "text": "r"}])
    found = ask("llava-bench", tmp_path, case["model_answers"])
    assert found.prompts == case["prompts_seen"]
    assert [found.files["llava_bench_results.jsonl"].content.decode()] == list(case["files"].values())


# -- MM-Vet ----------------------------------------------------------------------------------------------------------


def test_mmvet_score(tmp_path: Path) -> None:
    mmvet(tmp_path)
    judge = FakeJudge({r"x is -1 \| $": ["two", "0.5"], r"a cat \| a cat \| $": "1.0"})
    found = ask("mmvet", tmp_path, ["x is -1", "a cat"], judge=judge)
    result = found.result
    assert result is not None
    assert result.marks == [0.5, 1.0]
    assert {name: result.figures[name] for name in ("total", "ocr", "rec")} == {
        "total": 75.0, "ocr": 50.0, "rec": 100.0,
    }  # fmt: skip
    assert "rec (single ones twice)" in result.figures
    assert "What is x? | -1 <AND> -5 | x is -1 | " in judge.asked[0][0] + judge.asked[1][0]


def test_mmvet_from_the_release(tmp_path: Path) -> None:
    mmvet(tmp_path)
    guide = ask("mmvet", tmp_path, ["a", "b"])
    file = tmp_path / "mm-vet/llava-mm-vet.jsonl"
    before = file.read_text()
    file.unlink()
    layouts = tasks()["mmvet"].layouts
    assert layouts[0].write is not None
    layouts[0].write(tmp_path, layouts[1].read(tmp_path))
    assert file.read_text() == before
    file.unlink()
    release = ask("mmvet", tmp_path, ["a", "b"])
    for one, other in zip(guide.items, release.items, strict=True):
        assert (one.id, one.text, one.gold, one.extra) == (other.id, other.text, other.gold, other.extra)
        assert one.shown[0].source == other.shown[0].source


def test_mmvet_without_right_answers_has_no_score(tmp_path: Path) -> None:
    mmvet(tmp_path, golds=False)
    found = ask("mmvet", tmp_path, ["a", "b"], judge=FakeJudge({}))
    assert found.result is None
    assert json.loads(found.files["mmvet.json"].content) == {"v1_0": "a", "v1_1": "b"}
    task = tasks()["mmvet"]
    assert task.score is not None
    with pytest.raises(NoScore, match=r"mm-vet/mm-vet\.json"):
        task.score(Answered(found.items, ["a", "b"], options_of(task, {}), "m", FakeJudge({})))
    with pytest.raises(NoScore, match="OPENAI_API_KEY"):
        task.score(Answered(found.items, ["a", "b"], options_of(task, {})))


def test_mmvet_v2_with_several_pictures(tmp_path: Path) -> None:
    WRITERS["mmvet-v2"](tmp_path)
    found = ask("mmvetv2", tmp_path, ["a", "b"])
    assert found.prompts == [
        "What is x? Answer this question in detail.",
        "Image-1: <image>\nImage-2: <image>\nCompare Image-1 with Image-2 please. Answer this question in detail.",
    ]
    assert [Path(str(one.source)).name for one in found.items[1].shown] == ["v2_0_0.png", "v2_0_1.png"]
    first = ask("mmvetv2", tmp_path, ["a", "b"], parts="first")
    assert first.prompts[1] == "Compare Answer this question in detail."
    assert len(first.items[1].shown) == 1
    judge = FakeJudge({r"\| a \| $": "1", r"\| b \| $": "0.4"})
    result = ask("mmvetv2", tmp_path, ["a", "b"], judge=judge).result
    assert result is not None
    assert result.figures["seq"] == 40.0
    assert result.figures["total"] == 70.0


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        (" What? \n<IMG>v1_0.png<IMG>more", " What? \n Answer this question in detail."),
        ("<IMG>v1_0.png", " Answer this question in detail."),
    ],
)
def test_mmvet_v2_first_part_as_it_is(tmp_path: Path, question: str, prompt: str) -> None:
    WRITERS["mmvet-v2"](tmp_path)
    json_file(tmp_path / "mm-vet-v2/mm-vet-v2.json", {"v1_0": {"question": question, "answer": "x"}})
    assert ask("mmvetv2", tmp_path, ["a"], parts="first").prompts == [prompt]


def test_mmvet_v2_without_a_picture(tmp_path: Path) -> None:
    json_file(tmp_path / "mm-vet-v2/mm-vet-v2.json", {"v2_9": {"question": "What?", "answer": "x"}})
    with pytest.raises(DataError, match=r"record 1: v2_9: no picture in the question 'What\?'"):
        ask("mmvetv2", tmp_path, ["a"])


# -- LLaVA-Bench -----------------------------------------------------------------------------------------------------


def test_llava_bench_score(tmp_path: Path) -> None:
    WRITERS["llava_bench"](tmp_path)
    replies = {"What is it": "8 6\nwhy", "Describe": " 10,  9 ", r"Why\?": "Assistant 1: 8"}
    result = ask("llava-bench", tmp_path, ["a", "b", "c"], judge=(judge := FakeJudge(replies))).result
    assert result is not None
    assert result.figures["all"] == 83.3
    assert result.figures["llava_bench_detail"] == 90.0
    assert result.lines == [
        "all [9.0, 7.5] 83.3", "all 83.3 90.0 75.0", "llava_bench_conv [8.0, 6.0] 75.0",
        "llava_bench_conv 75.0 80.0 60.0", "llava_bench_detail [10.0, 9.0] 90.0", "llava_bench_detail 90.0 100.0 90.0",
    ]  # fmt: skip
    assert result.notes == {"reviews that cannot be read, left out": 1}
    assert result.marks == [0.6, 0.9, None]
    (asked,) = [text for text, _ in judge.asked if "[Question]\nDescribe it." in text]
    assert "[Context]\nA hill." in asked
    assert "[Assistant 1]\ngreen hill\n" in asked
    assert "[Assistant 2]\nb\n" in asked
    with pytest.raises(JudgeError, match="take another judge"):
        ask("llava-bench", tmp_path, ["a", "b", "c"], judge=FakeJudge({"": "good"}))


@pytest.mark.parametrize("lost", ["context", "answers_gpt4"])
def test_llava_bench_with_a_gap(tmp_path: Path, lost: str) -> None:
    WRITERS["llava_bench"](tmp_path)
    file = tmp_path / f"llava-bench-in-the-wild/{lost}.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    with pytest.raises(DataError, match=r"questions.jsonl: there is no (caption of '002.jpg'|reference to question 0)"):
        ask("llava-bench", tmp_path, ["a", "b", "c"])


# -- MMHal -----------------------------------------------------------------------------------------------------------


def test_mmhal_score(tmp_path: Path) -> None:
    WRITERS["mmhal-bench_with_image"](tmp_path)
    judge = FakeJudge({r"Question 0\?": "fine\nRating: 6", r"Question 8\?": "Rating: 4 or rating: 5", "": "Rating: 2"})
    result = ask("mmhal", tmp_path, [f"answer {number}" for number in range(9)], judge=judge).result
    assert result is not None
    assert result.figures["average score"] == pytest.approx((6 + 7 * 2 + 0) / 9)
    assert result.figures["hallucination rate"] == pytest.approx(8 / 9)
    assert (result.figures["attribute"], result.figures["adversarial"]) == (3.0, 2.0)
    assert result.lines[0] == "Average score: 2.22"
    assert result.notes == {"reviews without one rating, hence 0": 1}
    (asked,) = [text for text, _ in judge.asked if "Question 3?" in text]
    assert "Hill, Tree" in asked
    assert "gold 3" in asked
    assert "answer 3" in asked


def test_mmhal_thinking_aloud(tmp_path: Path) -> None:
    WRITERS["mmhal-bench_with_image"](tmp_path)
    answers = ["Well.\nFinal answer: so", "Rationale: my answer: no.\nAnswer: yes,\nit is", "Answer:", *[" x"] * 6]
    found = ask("mmhal", tmp_path, answers, cot="on")
    assert found.prompts[0].startswith(THOUGHT)
    assert ask("mmhal", tmp_path, ["x"] * 9).prompts[0] == "Question 0?"
    records = json.loads(found.files["mmhal-bench_with_image.json"].content)
    assert [record["model_answer"] for record in records[:4]] == ["so", "yes,\nit is", "", "x"]


def test_mmhal_keeps_the_fields_of_its_records(tmp_path: Path) -> None:
    WRITERS["mmhal-bench_with_image"](tmp_path)
    file = tmp_path / "mm-halbench/mmhal-bench_with_image.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    more = {"question_type": "attribute", "image_id": "a1", "model_answer": ""}
    jsonl(file, [row | more for row in rows])
    found = ask("mmhal", tmp_path, ["Answer: x"] * 9)
    (first, *_) = json.loads(found.files["mmhal-bench_with_image.json"].content)
    del rows[0]["image"]
    assert first == rows[0] | more | {"model_answer": "Answer: x"}


# -- MathVista -------------------------------------------------------------------------------------------------------


def test_mathvista_by_rules_alone(tmp_path: Path) -> None:
    WRITERS["MathVista_testmini"](tmp_path)
    found = ask("mathvista-testmini", tmp_path, ["8/11", "1.23", "It is 14."])
    assert found.prompts[0].startswith("Hint: Give the letter.")
    result = found.result
    assert result is not None
    assert result.marks == [1.0, 1.0, 0.0]
    assert result.figures["average"] == pytest.approx(200 / 3)
    assert result.figures["question_type: free_form"] == 50.0
    assert result.figures["skills: numeric commonsense"] == pytest.approx(200 / 3)
    assert result.notes == {"values that only a judge could take from answers, hence wrong": 1}
    record = json.loads(found.files["MathVista_testmini.json"].content)["2"]
    assert (record["response"], record["pid"], record["answer"]) == ("1.23", "2", "1.2")
    assert result.lines == ["Correct: 2, Total: 3, Accuracy: 66.67%"]
    records = json.loads(found.files["MathVista_testmini.json"].content).values()
    assert [[record[name] for name in ("extraction", "prediction", "true_false")] for record in records] == [
        ["8/11", "8/11", True], ["1.23", "1.2", True], [None, None, False],
    ]  # fmt: skip
    scores = json.loads(found.files["MathVista_testmini_score.json"].content)
    assert scores["average"] == {"accuracy": "66.67", "correct": 2, "total": 3}
    assert scores["question_type"]["free_form"] == {"accuracy": "50.0", "correct": 1, "total": 2}
    assert list(scores) == [
        "average", "question_type", "answer_type", "language", "source", "category", "task", "context", "grade",
        "skills",
    ]  # fmt: skip


def test_mathvista_with_a_judge_that_fails(tmp_path: Path) -> None:
    WRITERS["MathVista_testmini"](tmp_path)

    class Silent(FakeJudge):
        def ask(self, text: str, **settings: Any) -> str:
            raise JudgeError("busy")

    found = ask("mathvista-testmini", tmp_path, ["8/11", "1.23", "14"], judge=Silent({}))
    assert found.result is not None  # nothing was left to the judge
    task, answers = tasks()["MathVista_testmini"], ["8/11", "1.23", "It is 14."]
    assert task.files is not None
    (file,) = task.files(Answered(found.items, answers, options_of(task, {}), "m", Silent({})))
    assert json.loads(file.content)["3"]["response"] == "It is 14."


def test_mathvista_with_a_judge(tmp_path: Path) -> None:
    WRITERS["MathVista_testmini"](tmp_path)
    judge = FakeJudge({"Model: the second\n": "(b)", "Model: It is 14.\n": "14"})
    found = ask("mathvista-testmini", tmp_path, ["the second", "", "It is 14."], judge=judge)
    result = found.result
    assert result is not None
    records = json.loads(found.files["MathVista_testmini.json"].content).values()
    assert [record["extraction"] for record in records] == ["(b)", "", "14"]
    assert [record["prediction"] for record in records] == ["8/11", None, "14"]
    assert result.marks == [1.0, 0.0, 1.0]
    assert result.notes == {"values that the judge took from answers": 2}


def test_mathvista_thinking_aloud_needs_no_judge(tmp_path: Path) -> None:
    WRITERS["MathVista_testmini"](tmp_path)
    answers = ["So.\nFinal answer: (B)", "Answer: 1.2 cm", "Final answer: 14"]
    found = ask("mathvista-testmini", tmp_path, answers, cot="on")
    assert found.prompts[2].startswith(THOUGHT)
    assert found.prompts[2].endswith("Hint: An integer.\nQuestion: How much?")
    assert found.result is not None
    assert found.result.marks == [1.0, 0.0, 1.0]


def test_mathvista_from_its_annotations(tmp_path: Path) -> None:
    WRITERS["MathVista_testmini"](tmp_path / "parquet")
    mathvista_annotations(tmp_path / "json")
    found = [ask("MathVista_testmini", tmp_path / name, ["8/11", "1", "14"]) for name in ("parquet", "json")]
    for one, other in zip(found[0].items, found[1].items, strict=True):
        assert (one.id, one.text, one.gold, one.extra) == (other.id, other.text, other.gold, other.extra)
        assert Path(str(one.shown[0].source)).read_bytes() == Path(str(other.shown[0].source)).read_bytes()


def test_mathvista_options_that_are_not_there(tmp_path: Path) -> None:
    mathvista_annotations(tmp_path)
    file = tmp_path / "MathVista/annot_testmini.json"
    records = json.loads(file.read_text())
    records["1"]["choices"] = None
    json_file(file, records)
    with pytest.raises(DataError, match="record 1 is not what MathVista_testmini has"):
        ask("MathVista_testmini", tmp_path, [""] * 3)


def test_mathvista_test_is_handed_in(tmp_path: Path) -> None:
    WRITERS["MathVista_test"](tmp_path)
    found = ask("mathvista-test", tmp_path, ["a", "b", "c"])
    assert found.result is None
    assert [item.gold for item in found.items] == [None] * 3
    assert json.loads(found.files["MathVista_test.json"].content)["3"]["response"] == "c"
    assert list(found.files) == ["MathVista_test.json"]


# -- DriveLM ---------------------------------------------------------------------------------------------------------


def test_drivelm(tmp_path: Path) -> None:
    WRITERS["DriveLM_val"](tmp_path)
    found = ask("drivelm", tmp_path, ["<c1,CAM_FRONT,[500, 250]>", "no"])
    assert found.prompts[0] == "<image>\nWhat is ahead?"
    assert found.items[0].shown[0].max_tiles == 12
    first = {
        "question": "<image>\nWhat is ahead?", "answer": "<c1,CAM_FRONT,800.0,450.0>", "gt_answers": "A car.",
        "id": "s_1",
    }  # fmt: skip
    content = found.files["DriveLM_val.json"].content.decode()
    records = json.loads(content)
    assert records[0] == first
    assert list(records[0]) == list(first)
    assert content == json.dumps(records, indent=4)
    folder = tmp_path / "InternVL-Domain-Adaptation-Data/val"
    jsonl(folder / "drivelm_val.jsonl", [{"question_id": 5, "image": "a.jpg", "question": "What?", "answer": "x"}])
    (item,) = load_items(tasks()["DriveLM_val"], Ask(tmp_path, 12))
    assert (item.id, item.text, item.gold) == ("5", "What?", "x")
    record = {"id": 5, "image": "a.jpg", "question": "What?", "question_old": "What is <c1>?", "answer": "x"}
    jsonl(folder / "drivelm_val.jsonl", [record])
    found = ask("drivelm", tmp_path, ["a"])
    assert found.prompts == ["What?"]
    assert json.loads(found.files["DriveLM_val.json"].content)[0]["question"] == "What is <c1>?"
