"""Scores of free answers: LLaVA-Bench, MM-Vet, MMHal; and DriveLM's points."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score.drivelm import own_pixels
from internvl_chat.eval.score.llava_bench import judged_pair, read_pair, summary, summary_lines, vlm_summary
from internvl_chat.eval.score.mmhal import hallucinates, rating
from internvl_chat.eval.score.mmhal import summary as mmhal_summary
from internvl_chat.eval.score.mmvet import capability_means, judged_mark, mmvet_figures, read_mark
from tests.eval.cases import cases, expected
from tests.eval.judges import FakeJudge


@pytest.mark.parametrize("case", cases("llava_bench_parse"))
def test_review_as_the_original_reads_it(case: dict[str, Any]) -> None:
    found = read_pair(case["prediction"], strict=True)
    assert (list(found) if found else [-1, -1]) == expected(case)


@pytest.mark.parametrize(
    ("review", "pair"),
    [
        (" 8  7 \nwhy", (8, 7)), ("8, 7", (8, 7)), ("9.5 8", (9.5, 8)), ("8 7 6", None), ("", None), ("nan 8", None),
        ("Ratings:\n8 7", None),
    ],
)  # fmt: skip
def test_blanks_do_no_harm(review: str, pair: tuple[float, float] | None) -> None:
    assert read_pair(review) == pair


@pytest.mark.parametrize("case", cases("llava_bench_summary"))
def test_llava_summary(case: dict[str, Any]) -> None:
    reviews = [(row["category"], tuple(row["tuple"])) for row in case["prediction"]]
    assert summary_lines(reviews) == case["expected"]
    # What cannot be read never gets here: the task leaves it out.
    read = [review for review in reviews if -1 not in review[1]]
    assert summary(read)["all"] == ([9.0, 7.5], 83.3, 90.0, 75.0)


@pytest.mark.parametrize("case", cases("llavabench_aggregate"))
def test_llavabench(case: dict[str, Any]) -> None:
    assert {name: list(row) for name, row in vlm_summary(case["prediction"]).items()} == expected(case)


def test_a_reference_without_points_divides_nothing() -> None:
    assert vlm_summary([{"category": "conv", "score": 1, "gpt4_score": 0}])["overall"] == (0.0, 10.0, 0.0)
    assert summary([("conv", (0, 1))])["all"][1] == 0.0


def test_an_empty_answer_has_no_points() -> None:
    judge = FakeJudge({"": "9 4"})
    assert judged_pair("c", "q", "r", "", judge) == (9, 0)
    assert judged_pair("c", "q", "r", "a", judge) == (9, 4)
    assert judge.temperatures == [0.2, 0.2]
    assert judge.systems == ["You are a helpful and precise assistant for checking the quality of the answer."] * 2
    order = [judge.asked[1][0].index(part) for part in ("[Context]\nc\n", "[Question]\nq\n", "[Assistant 1]\nr\n")]
    assert order == sorted(order)
    assert order[-1] < judge.asked[1][0].index("[Assistant 2]\na\n")


@pytest.mark.parametrize("case", cases("mmvet_judge"))
def test_mmvet_judge(case: dict[str, Any]) -> None:
    judge = FakeJudge({"": case["prediction"]})
    found = judged_mark("q", "g", "a", judge)
    assert {"score": found or 0.0, "temperatures": judge.temperatures} == expected(case)


def test_marks_that_cannot_be_read() -> None:
    judge = FakeJudge({"": "no idea"})
    assert judged_mark("q", "g", "a", judge) is None
    assert judge.temperatures == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [read_mark(text) for text in ("1", " 0.3\n", "1.01", "-0.1", "nan", "inf", "0.5.", "")] == [
        1.0, 0.3, *[None] * 6,
    ]  # fmt: skip


def test_a_question_is_one_row_of_the_table() -> None:
    judge = FakeJudge({"": "1"})
    judged_mark("what | is\nit?", "a <AND> b", "a | b\n\n{x}", judge)
    assert judge.asked[0][0].endswith("\nwhat / is it? | a <AND> b | a / b {x} | ")


@pytest.mark.parametrize("case", cases("mmvet_aggregate"))
def test_capabilities(case: dict[str, Any]) -> None:
    rows = [(row["category"], row["score"]) for row in case["prediction"]]
    for twice, wanted in ((True, expected(case)), (False, case.get("expected_by_definition", expected(case)))):
        found = {name: [count, round(mean, 4)] for name, (count, mean) in capability_means(rows, twice).items()}
        assert found == wanted


def test_both_ways_of_counting_are_told() -> None:
    rows = [("rec", 1.0), ("rec,ocr", 0.25)]
    once = mmvet_figures(rows, {"double_count": "no"}, "Overall")
    assert once == {
        "Overall": 62.5, "rec": 62.5, "ocr": 25.0, "rec (single ones twice)": 75.0, "ocr (single ones twice)": 25.0,
    }  # fmt: skip
    twice = mmvet_figures(rows, {"double_count": "yes"}, "Overall")
    assert (twice["rec"], twice["rec (single ones once)"], twice["Overall"]) == (75.0, 62.5, 62.5)


@given(st.lists(st.tuples(st.sampled_from(["rec", "ocr,math", "rec,gen"]), st.floats(0, 1)), min_size=1))
def test_means_lie_between_the_marks(rows: list[tuple[str, float]]) -> None:
    for _, mean in capability_means(rows, single_twice=True).values():
        assert 100 * min(mark for _, mark in rows) - 1e-6 <= mean <= 100 * max(mark for _, mark in rows) + 1e-6


@pytest.mark.parametrize("case", cases("mmhal_rating"))
def test_mmhal_rating(case: dict[str, Any]) -> None:
    score = rating(case["prediction"]) or 0
    assert {"score": score, "hallucination": int(hallucinates(score))} == expected(case)


@pytest.mark.parametrize("case", cases("mmhal_summary"))
def test_mmhal_summary(case: dict[str, Any]) -> None:
    assert mmhal_summary([rating(text) or 0 for text in case["prediction"]] * 12) == expected(case)


@pytest.mark.parametrize("case", cases("drivelm_post_process"))
def test_drivelm(case: dict[str, Any]) -> None:
    assert own_pixels(case["prediction"]) == expected(case)


@pytest.mark.parametrize(
    ("answer", "mapped"),
    [
        ("<c1,CAM_FRONT,[400,333]>", "<c1,CAM_FRONT,320.0,599.4>"),
        ("<c1,CAM_BACK, [ 500 , 750.0 ]>", "<c1,CAM_BACK,800.0,450.0>"),
        ("<c1,CAM_BACK_LEFT,[632.3, 503.2]>", "<c1,CAM_BACK_LEFT,1600,5.8>"),
        ("<c1,CAM_FRONT,[411.11, 12.34]>", "<c1,CAM_FRONT,373.3,22.2>"),
        ("<c1,CAM_FRONT,[333.4, 0.01]>", "<c1,CAM_FRONT,0.3,0.0>"),
        ("<c1,CAM_BACK,[-5, -0.5]>", "<c1,CAM_BACK,0,0>"),
        # A blank beside the camera's name, and numbers that JSON does not have.
        ("<c1, CAM_BACK,[500, 750]>", "<c1, CAM_BACK,[500, 750]>"),
        ("<c1,CAM_BACK ,[500, 750]>", "<c1,CAM_BACK ,[500, 750]>"),
        ("<c1,CAM_BACK,[.5, 1]>", "<c1,CAM_BACK,[.5, 1]>"),
        ("<c1,CAM_BACK,[500, -.5]>", "<c1,CAM_BACK,[500, -.5]>"),
        ("<c1,CAM_BACK,[0500, 750]>", "<c1,CAM_BACK,[0500, 750]>"),
        ("<c2,CAM_BACK,[0, 1000]>", "<c2,CAM_BACK,0,900>"),  # outside: on the edge
        ("<c2,CAM_ROOF,[0, 0]>", "<c2,CAM_ROOF,[0, 0]>"),
        ("<c2,CAM_BACK,[a, 0]>", "<c2,CAM_BACK,[a, 0]>"),
        ("", ""),
    ],
)
def test_drivelm_by_hand(answer: str, mapped: str) -> None:
    assert own_pixels(answer) == mapped


def test_drivelm_whole_thousandths() -> None:
    for number in range(1001):
        x, y = Fraction(number * 48, 10) - 1600, Fraction(number * 18, 10)
        due = [min(max(0, one), size) for one, size in ((x, 1600), (y, 900))]
        *_, across, down = own_pixels(f"<c1,CAM_FRONT,[{number}, {number}]>")[:-1].split(",")
        assert [Fraction(across), Fraction(down)] == due
