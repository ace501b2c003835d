"""Sets that the guides run through VLMEvalKit, read from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.errors import DataError
from internvl_chat.eval.items import load_items
from internvl_chat.eval.published import published_for
from internvl_chat.eval.registry import keys, tasks
from internvl_chat.eval.task import Ask
from internvl_chat.eval.tasks.tables import texts_of
from tests.eval.harness import Asked, ask
from tests.eval.judges import FakeJudge
from tests.eval.mini.vlm import ROWS, WRITERS, base64_picture, table

KEYS = {
    "mmstar": "MMStar", "realworldqa": "RealWorldQA", "ocrbench": "OCRBench", "hallusionbench": "HallusionBench",
    "mathvista-mini-vlm": "MathVista_MINI", "mmmu-dev-val-vlm": "MMMU_DEV_VAL", "mmvet-vlm": "MMVet",
    "llava-bench-vlm": "LLaVABench",
}  # fmt: skip
LETTER = "Answer with the option's letter from the given choices directly."


def asked(root: Path, key: str, answers: Any, **settings: Any) -> Asked:
    WRITERS[KEYS.get(key, key)](root)
    return ask(key, root, answers, **settings)


def scored(root: Path, key: str, answers: Any, **settings: Any) -> Any:
    result = asked(root, key, answers, **settings).result
    assert result is not None
    assert result.main in result.figures
    return result


@pytest.mark.parametrize(("key", "name"), KEYS.items())
def test_keys(key: str, name: str) -> None:
    assert keys()[key] == (name,)
    assert tasks()[name].style == "vlmevalkit"
    assert tasks()[name].max_new_tokens == 1024
    assert tasks()[name].max_tiles == {"MMMU_DEV_VAL": 12, "OCRBench": 24}.get(name, 6)
    assert list(tasks()[name].layouts[0].sums) == [f"LMUData/{name}.tsv"]


@pytest.mark.parametrize("name", ROWS)
def test_every_set_is_asked_and_survives_silence(tmp_path: Path, name: str) -> None:
    judge = FakeJudge({"Assistant 1": "8 8", "": "0"})
    found = asked(tmp_path, name, lambda item: "", judge=judge)
    assert found.result is not None
    assert found.result.main in found.result.figures
    assert found.result.figures[found.result.main] == 0
    assert all(not mark for mark in found.result.marks)


def test_mmstar(tmp_path: Path) -> None:
    found = asked(tmp_path, "mmstar", ["It is a page.", "None", "(D)"])
    options = "A. a page\nB. None\nC. a dog\nD. a car"
    assert found.prompts == [
        f"What is it?\n{options}\n{LETTER}",
        f"What\nis absent?\n{options}\n{LETTER}",
        f"这是什么？\n{options}\n请直接回答选项字母。",
    ]
    result = found.result
    assert result is not None
    # "It is a page." has no letter alone, but one text; "None" is the text of B.
    assert result.marks == [1.0, 1.0, 0.0]
    assert result.figures == {"Overall": 2 / 3, "coarse perception": 1.0, "math": 0.5}
    assert result.notes == {"undecided, hence wrong (exact matching)": 0}
    # The third row has the picture of the first.
    assert found.items[2].shown[0].source == found.items[0].shown[0].source
    assert Image.open(found.items[0].shown[0].source).size == (200, 120)  # type: ignore[arg-type]


def test_undecided_answers_are_wrong_without_a_judge(tmp_path: Path) -> None:
    answers = ["a sheet of paper", "nothing", "A or B"]
    result = scored(tmp_path, "mmstar", answers)
    assert result.figures["Overall"] == 0
    assert result.notes == {"undecided, hence wrong (exact matching)": 3}
    judge = FakeJudge({"paper\nLetter": "A", "nothing\nLetter": "B", "A or B\nLetter": "who knows"})
    result = ask("MMStar", tmp_path, answers, judge=judge).result
    assert result.marks == [1.0, 1.0, 0.0]  # type: ignore[union-attr]
    assert result.notes == {  # type: ignore[union-attr]
        "answers that mean no option": 1,
        "answers that the judge read": 2,
    }


def test_realworldqa_has_no_categories(tmp_path: Path) -> None:
    assert scored(tmp_path, "realworldqa", ["B", "right"]).figures == {"Overall": 0.5}


def test_mmmu(tmp_path: Path) -> None:
    found = asked(tmp_path, "mmmu-dev-val-vlm", ["A", "3", "There are 7 of them"])
    assert found.prompts == [
        f"Look.\nWho <image 1>?\nA. one\nB. two\n{LETTER}",
        "Image-1: <image>\nImage-2: <image>\nImage-3: <image>\n"
        f"<image 1> <image 2> <image 3>: odd one?\nA. 1\nB. 2\nC. 3\n{LETTER}",
        "How many?\nAnswer the question directly.",
    ]
    assert [[(one.max_tiles, one.enlarge) for one in item.shown] for item in found.items] == [
        [(12, 2)], [(12, 2), (12, 1), (12, 1)], [(12, 2)],
    ]  # fmt: skip
    assert found.questions[0].turns[0].text.startswith("<image>\nLook.")
    assert found.result is not None
    assert found.result.main == "validation Overall"
    assert found.result.figures == {
        "validation Overall": 1.0, "validation Art & Design": 1.0, "validation Science": 1.0, "validation Art": 1.0,
        "validation Math": 1.0, "dev Overall": 1.0, "dev Art & Design": 1.0, "dev Art": 1.0,
    }  # fmt: skip


def test_the_letter_a_is_right_for_open_questions_of_mmmu(tmp_path: Path) -> None:
    result = scored(tmp_path, "mmmu-dev-val-vlm", ["Z", "", "A"])
    assert result.marks == [0.0, 0.0, 1.0]
    assert result.notes["open questions answered by the bare letter A, which counts as right here"] == 1


def test_models_without_tiles_see_the_first_picture(tmp_path: Path) -> None:
    found = asked(tmp_path, "mmmu-dev-val-vlm", ["", "", ""], dynamic=False)
    assert [len(item.shown) for item in found.items] == [1, 1, 1]
    assert "Image-1" not in found.prompts[1]
    assert found.items[0].shown[0].enlarge == 1


def test_all_pictures_together_have_64_tiles(tmp_path: Path) -> None:
    rows = [{"index": 1, "image": str([base64_picture(k % 7) for k in range(10)]), "question": "Q", "answer": "x"}]
    table(tmp_path / "LMUData/MMMU_DEV_VAL.tsv", rows)
    assert {one.max_tiles for one in ask("mmmu-dev-val-vlm", tmp_path, [""]).items[0].shown} == {6}


def test_ocrbench(tmp_path: Path) -> None:
    found = asked(tmp_path, "ocrbench", ["PAGE", "7.5", "$x^2$"])
    assert found.prompts[0] == "What is written?\nAnswer the question using a single word or phrase."
    assert found.items[0].gold == ["Region", "page"]
    assert found.result is not None
    assert found.result.marks == [1.0, 0.0, 1.0]
    assert found.result.figures == {
        "Text Recognition": 1, "Scene Text-centric VQA": 0, "Doc-oriented VQA": 0, "Key Information Extraction": 0,
        "Handwritten Mathematical Expression Recognition": 1, "Final Score": 2, "Final Score Norm": 0.2,
    }  # fmt: skip


def test_hallusionbench(tmp_path: Path) -> None:
    found = asked(tmp_path, "hallusionbench", ["No.", "No", "Yes", "No, it is near."])
    assert found.prompts[0] == (
        "Is it red? Please answer yes or no. Answer the question using a single word or phrase."
    )
    assert len(found.items) == 4  # the row without a picture is none
    assert found.result is not None
    figures = found.result.figures
    # Figures: 1 of VD (one answer wrong), 2 of VD, 1 of VS. Questions: 0 of VD (of both figures), 1 of VD, 0 of VS.
    assert figures["aAcc"] == 75.0
    assert figures["fAcc"] == figures["qAcc"] == pytest.approx(200 / 3)
    assert figures["VD fAcc"] == figures["VD qAcc"] == 50.0
    assert figures["average"] == pytest.approx((75 + 400 / 3) / 3)
    assert figures["VD_figure aAcc"] == figures["VD aAcc"] == pytest.approx(200 / 3)
    assert figures["VS_map fAcc"] == 100.0
    judge = FakeJudge({"It surely is\nWord": "Yes"})
    result = ask("hallusionbench", tmp_path, ["no", "It surely is", "yes", "no"], judge=judge).result
    assert result is not None
    assert result.marks == [1.0] * 4
    assert result.notes == {"answers that are neither yes nor no": 0, "answers that the judge read": 1}


def test_mathvista(tmp_path: Path) -> None:
    found = asked(tmp_path, "mathvista-mini-vlm", ["8/11", "0", "[1990, 1992]"])
    assert found.prompts[0].endswith("(B) 8/11")
    result = found.result
    assert result is not None
    assert result.marks == [1.0, 1.0, 0.0]
    assert result.figures == {
        "Overall": pytest.approx(200 / 3), "geometry reasoning": 100.0, "algebraic reasoning": 100.0,
        "geometry problem solving": 100.0, "statistical reasoning": 50.0, "figure question answering": 50.0,
        "prefetch": 2, "prefetch rate": pytest.approx(200 / 3),
    }  # fmt: skip
    assert list(result.figures)[:4] == [
        "Overall", "geometry reasoning", "algebraic reasoning", "geometry problem solving",
    ]  # fmt: skip
    assert result.notes == {"undecided, hence wrong (exact matching)": 1}


def test_mathvista_with_a_judge(tmp_path: Path) -> None:
    judge = FakeJudge({"Model: the second\n": "B", "Model: none\n": "0", "Model: both\n": "[1990, 1992]"})
    answers = ["the second", "none", "both"]
    assert scored(tmp_path, "mathvista-mini-vlm", answers, judge=judge).marks == [1.0, 1.0, 0.0]
    lists = ask("MathVista_MINI", tmp_path, answers, judge=judge, lists="text").result
    assert lists is not None
    assert lists.marks == [1.0, 1.0, 1.0]
    assert lists.notes == {"values that the judge took from answers": 3}


def test_mmvet(tmp_path: Path) -> None:
    assert asked(tmp_path, "mmvet-vlm", ["a", "b"]).result is None
    judge = FakeJudge({"\n.*x = -1 \\| $": "0.5", "\n.*a man \\| $": ["much", "1.0"]})
    found = ask("MMVet", tmp_path, ["x = -1", "a man"], judge=judge)
    assert found.prompts == ["What is x?", "Who is it?"]
    assert found.result is not None
    assert found.result.marks == [0.5, 1.0]
    assert (found.result.figures["Overall"], found.result.figures["rec"]) == (75.0, 100.0)
    assert "rec (single ones once)" in found.result.figures


def test_llavabench(tmp_path: Path) -> None:
    assert asked(tmp_path, "llava-bench-vlm", ["a", "b", "c"]).result is None
    judge = FakeJudge({"What is it": "8 6\nwhy", "Describe": "10, 9", r"Why\?": "no numbers"})
    found = ask("LLaVABench", tmp_path, ["a", "b", "c"], judge=judge)
    assert found.prompts[1] == "Describe it.\nAnswer this question in detail."
    result = found.result
    assert result is not None
    assert result.figures == {
        "overall": 83.3, "overall VLM": 75.0, "overall GPT4": 90.0, "conv": 75.0, "conv VLM": 60.0,
        "conv GPT4": 80.0, "detail": 90.0, "detail VLM": 90.0, "detail GPT4": 100.0,
    }  # fmt: skip
    assert result.marks == [0.6, 0.9, None]
    assert result.notes == {"reviews that cannot be read, left out": 1}
    from internvl_chat.eval.judge import JudgeError

    with pytest.raises(JudgeError, match="take another judge"):
        ask("LLaVABench", tmp_path, ["a", "b", "c"], judge=FakeJudge({"": "fine"}))


# -- tables ----------------------------------------------------------------------------------------------------------


def load(root: Path, rows: list[dict[str, Any]], name: str = "RealWorldQA") -> list[Any]:
    table(root / f"LMUData/{name}.tsv", rows)
    return load_items(tasks()[name], Ask(root, 6))


GOOD: dict[str, Any] = {"index": 0, "image": base64_picture(2), "question": "Q", "A": "x", "B": "y", "answer": "B"}


def test_pictures_by_path(tmp_path: Path) -> None:
    for folder in ("LMUData/images/RealWorldQA", "LMUData/elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / folder / "a.png")
    rows = [{**GOOD, "index": k, "image": "", "image_path": name} for k, name in
            enumerate(("a.png", "elsewhere/a.png", "['a.png', 'a.png']"))]  # fmt: skip
    items = load(tmp_path, rows)
    assert [len(item.shown) for item in items] == [1, 1, 2]
    assert items[1].shown[0].source == tmp_path / "LMUData/elsewhere/a.png"
    rows[0]["image_path"] = "gone.png"
    with pytest.raises(DataError, match=r"1 pictures or videos are not there.*images/RealWorldQA/gone.png"):
        load(tmp_path, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "7"}, "refers to a row without a picture"),
        ({"answer": "E"}, "the right answer 'E' is none of the options"),
        ({"image": "é" * 80}, "row 1: a picture is damaged"),
        ({"image": base64_picture(2)[:-7] + "\x07" * 3}, "row 1: a picture is damaged"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as told:
        load(tmp_path, [{**GOOD, **change}])
    assert len(str(told.value)) < 500


def test_a_table_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no record in it"):
        load(tmp_path, [{**GOOD, "image": ""}])


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"RealWorldQA.tsv.*opencompass.openxlab.space"):
        load_items(tasks()["RealWorldQA"], Ask(tmp_path, 6))


def test_lists_in_fields() -> None:
    assert texts_of("['a', 'b']") == ["a", "b"]
    assert texts_of("[1, 2.5]") == ["1", "2.5"]
    assert texts_of("[a") == ["[a"]
    assert texts_of("[a]") == ["[a]"]
    assert texts_of("") == texts_of(None) == []


def test_mathvista_prefetch_is_published() -> None:
    figure = published_for("InternVL-Chat-V1-2-Plus", "MathVista_MINI")["prefetch"]
    # Of the 1000 questions, as the scorer counts them.
    assert figure.difference(665) == 0 and figure.whole == 1000
