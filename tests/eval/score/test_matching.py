"""Free answers -> options, yes and no; and the reports of VLMEvalKit-style sets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score.hallusion import final_figure, ratings
from internvl_chat.eval.score.matching import (
    judged_option,
    judged_yes_or_no,
    match_option,
    option_report,
    yes_or_no,
)
from internvl_chat.eval.score.ocrbench import contains_gold, totals, with_final
from tests.eval.cases import cases, expected
from tests.eval.judges import FakeJudge

COLOURS = {"A": "red", "B": "green", "C": "blue", "D": "dark green"}


@pytest.mark.parametrize("case", cases("vlm_option_match"))
def test_option(case: dict[str, Any]) -> None:
    assert match_option(case["prediction"], case["ground_truth"]) == (expected(case) or None)


@pytest.mark.parametrize("case", cases("mmmu_vlm_open"))
def test_open_question_of_mmmu(case: dict[str, Any]) -> None:
    found = match_option(case["prediction"], {"A": case["ground_truth"], "B": "Other Answers"})
    assert {"option": found or False, "correct": found == "A"} == expected(case)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B)", "B"),
        ("The answer is: B!", "B"),
        ("**C**", "C"),
        ("Sorry, I can't help with images of people yet.", "Z"),
        ("A: I'm sorry, but without the image provided I cannot", "Z"),
        ("It is GREEN", "B"),
        ("dark green", None),
        ("B is not A", None),
        ("B is not A, it is blue", "C"),
        ("A cat", "A"),
        ("E", None),
    ],
)
def test_option_by_hand(answer: str, letter: str | None) -> None:
    assert match_option(answer, COLOURS) == letter


def test_an_option_without_text_is_none() -> None:
    assert match_option("it is red", {"A": "red", "B": ""}) == "A"
    assert match_option("B", {"A": "red", "B": ""}) is None


@given(st.text(), st.permutations(list("ABCD")))
def test_the_order_of_options_does_not_matter(answer: str, order: list[str]) -> None:
    assert match_option(answer, COLOURS) == match_option(answer, {letter: COLOURS[letter] for letter in order})


def test_a_judge_is_asked_only_where_the_rule_cannot_tell() -> None:
    judge = FakeJudge(
        {"crimson\nLetter": "A", "nothing of that": "Z", "mumble\nLetter": ["?", "B."], "silence\nLetter": "?"}
    )
    assert judged_option("B", COLOURS, "Which?", judge) == "B"
    assert judged_option("", COLOURS, "Which?", judge) is None
    assert not judge.asked
    assert judged_option("crimson", COLOURS, "Which?", judge) == "A"
    assert "A. red B. green C. blue D. dark green" in judge.asked[0][0]
    assert judged_option("nothing of that", COLOURS, "Which?", judge) == "Z"
    judge.asked.clear()
    assert judged_option("mumble", COLOURS, "Which?", judge) == "B"
    assert judge.temperatures == [0.0, 0.5]
    judge.asked.clear()
    assert judged_option("silence", COLOURS, "Which?", judge) is None  # never a random one
    assert len(judge.asked) == 3
    assert judged_option("crimson", COLOURS, "Which?", None) is None


@pytest.mark.parametrize("case", cases("hallusion_yes_no"))
def test_yes_or_no(case: dict[str, Any]) -> None:
    assert yes_or_no(case["prediction"]) == expected(case)


def test_digits_with_a_comma_glue_words() -> None:
    # The punctuation rule deletes all signs then.
    assert yes_or_no("Yes,1,000 of them") == "Unknown"
    assert yes_or_no("Yes, 1000 of them") == "Yes"


def test_judged_yes_or_no() -> None:
    judge = FakeJudge({"It is so": "Yes.", "Maybe": "Unknown", "Hm": ["well", "no"]})
    assert judged_yes_or_no("no", "Is it?", judge) == "No"
    assert judged_yes_or_no("", "Is it?", judge) == "Unknown"
    assert not judge.asked
    assert judged_yes_or_no("It is so", "Is it?", judge) == "Yes"
    assert judged_yes_or_no("Maybe", "Is it?", judge) == "Unknown"
    assert judged_yes_or_no("Hm", "Is it?", judge) == "No"
    assert judge.temperatures == [0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("case", cases("hallusion_rating"))
def test_hallusion_rating(case: dict[str, Any]) -> None:
    found = {name: [round(value, 4) for value in rating] for name, rating in ratings(case["prediction"]).items()}
    assert found == expected(case)
    assert next(iter(found)) == "Overall"


@pytest.mark.parametrize("case", cases("hallusion_final"))
def test_hallusion_final(case: dict[str, Any]) -> None:
    assert final_figure(list(case["prediction"].values())) == pytest.approx(expected(case), abs=5e-5)


@pytest.mark.parametrize("case", cases("ocrbench_item"))
def test_ocrbench_item(case: dict[str, Any]) -> None:
    found = contains_gold(case["prediction"]["text"], case["ground_truth"], case["prediction"]["category"])
    assert found == expected(case)


def test_an_empty_answer_contains_nothing() -> None:
    assert not contains_gold(" ", [""], "Doc-oriented VQA")
    assert not contains_gold("X^2", ["x^2"], "Handwritten Mathematical Expression Recognition")


@pytest.mark.parametrize("case", cases("ocrbench_total"))
def test_ocrbench_total(case: dict[str, Any]) -> None:
    given = case["prediction"]
    if isinstance(given, dict):
        found = with_final(given)
        assert {name: found[name] for name in expected(case)} == expected(case)
    else:
        assert totals([(kind, int(contains_gold(text, golds, kind))) for text, golds, kind in given]) == expected(case)


@pytest.mark.parametrize("case", cases("mcq_report"))
def test_option_report(case: dict[str, Any]) -> None:
    found = option_report(case["prediction"])
    assert found == expected(case)
    assert [list(groups) for groups in found.values()] == [list(groups) for groups in expected(case).values()]


def test_option_report_with_splits() -> None:
    rows = [
        {"hit": 1, "split": "dev", "category": "Art", "l2-category": "Humanities"},
        {"hit": 0, "split": "validation", "category": "Art", "l2-category": "Humanities"},
        {"hit": 1, "split": "validation", "category": "Math", "l2-category": "Science"},
    ]
    assert option_report(rows) == {
        "dev": {"Overall": 1.0, "Humanities": 1.0, "Art": 1.0},
        "validation": {"Overall": 0.5, "Humanities": 0.0, "Science": 1.0, "Art": 0.0, "Math": 1.0},
    }
