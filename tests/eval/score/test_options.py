"""SEED, MMVP, Mantis, MIRB, MMMU-Pro, MME-RealWorld."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score import mantis, mirb, mmmu_pro, mmvp, realworld, seed
from internvl_chat.eval.score.letters import mcq_letter
from tests.eval.cases import all_cases, cases, expected

# The questions of the cases of MMVP.
OPTIONS = {"A": "Open", "B": "Closed"}


@pytest.mark.parametrize("case", cases("mcq_post_process"))
def test_mcq(case: dict[str, Any]) -> None:
    assert mcq_letter(case["prediction"], case["ground_truth"]) == expected(case)


@given(st.text(), st.dictionaries(st.sampled_from("ABCDEF"), st.text(min_size=1)))
def test_mcq_of_any_answer(answer: str, options: dict[str, str]) -> None:
    assert mcq_letter(answer, options) in (*options, answer.strip(), *answer)
    assert mcq_letter("", options) == ""


@pytest.mark.parametrize("case", cases("seed"))
def test_seed(case: dict[str, Any]) -> None:
    rows = case["prediction"]
    marks = [
        seed.first_letter_is(row["prediction"], gold) for row, gold in zip(rows, case["ground_truth"], strict=True)
    ]
    lines = seed.report_lines(seed.shares([row["type"] for row in rows], marks), 0.0, len(rows))
    value = case["expected"]
    if "raises" in value:  # ours is said in words
        value = seed_by_definition(rows, case["ground_truth"])
    told = [line for line in lines if line.endswith("%")]
    assert sorted(told) == sorted(f"{name}: {share}%" for name, share in value.items())


def seed_by_definition(rows: list[dict[str, Any]], golds: list[str]) -> dict[str, str]:
    """An empty answer is wrong; a type or a group without a question is left out."""
    groups: dict[str, list[int]] = {}
    for row, gold in zip(rows, golds, strict=True):
        kind = "Image" if row["type"] < 10 else "Video"
        for name in (f"Data type {seed.TYPES[row['type'] - 1]}", "Total accuracy", f"{kind} accuracy"):
            groups.setdefault(name, []).append(row["prediction"][:1] == gold)
    return {name: f"{100 * sum(hits) / len(hits):.2f}" for name, hits in groups.items()}


@pytest.mark.parametrize("case", [one for one in all_cases()["seed"] if "raises" not in one["expected"]])
def test_the_definition_of_seed_is_the_originals(case: dict[str, Any]) -> None:
    assert seed_by_definition(case["prediction"], case["ground_truth"]) == case["expected"]


@pytest.mark.parametrize("rows", [[(3, "", "B")], [(11, "", "A"), (12, "D.", "D")], [(1, "A", "A"), (1, "", "C")]])
def test_seed_as_further_cases_might_have_it(rows: list[tuple[int, str, str]]) -> None:
    entries = [{"type": kind, "prediction": answer} for kind, answer, _ in rows]
    golds = [gold for *_, gold in rows]
    test_seed({"prediction": entries, "ground_truth": golds, "expected": {"raises": "Error"}, "ours": "in words"})


def test_seed_without_types() -> None:
    assert seed.shares([None, None], [True, False]) == {"Total accuracy": 50.0}


@pytest.mark.parametrize("case", cases("mmvp_pair"))
def test_mmvp(case: dict[str, Any]) -> None:
    marks = [
        mcq_letter(answer, OPTIONS) == gold[1].upper()
        for answer, gold in zip(case["prediction"], case["ground_truth"], strict=True)
    ]
    assert mmvp.pair_accuracy(range(1, len(marks) + 1), marks) == expected(case)


def test_mmvp_partners_belong_together() -> None:
    assert mmvp.pair_accuracy([2, 3, 4], [True, True, True]) == 1.0
    assert mmvp.pair_accuracy([2], [True]) == 0.0


@pytest.mark.parametrize("case", cases("mantis"))
def test_mantis(case: dict[str, Any]) -> None:
    gold = case["ground_truth"]
    assert float(mantis.is_right(case["prediction"], gold["type"], gold["answer"], gold["options"])) == expected(case)


def test_mantis_by_hand() -> None:
    assert mantis.is_right("(B)", "multi-choice", "B", ["(A) cat", "(B) dog"])
    assert not mantis.is_right("(A) cat", "multi-choice", "B", ["(A) cat", "(B) dog"])
    assert mantis.is_right("", "short-answer", "", [])  # the task counts no empty answer
    # The whole option is found by its place, however it begins.
    assert mantis.is_right("dog", "multi-choice", "B", ["cat", "dog"])
    assert not mantis.is_right("(B) dog", "multi-choice", "B", ["(B) dog", "(A) cat"])
    assert not mantis.is_right("cat", "multi-choice", "C", ["cat", "dog"])
    assert not mantis.is_right("dog", "multi-choice", "@", ["cat", "dog"])
    assert not mantis.is_right("dog", "multi-choice", "", ["cat", "dog"])


@pytest.mark.parametrize("case", cases("mirb") + cases("mirb_ugly"))
def test_mirb(case: dict[str, Any]) -> None:
    asked = case["prediction"]
    assert float(mirb.is_right(asked["task"], asked["text"], case["ground_truth"])) == expected(case)


@pytest.mark.parametrize(
    ("task", "answer", "gold", "right"),
    [
        ("count", "Three", "3", True),
        ("count", "12 of 20", "12", True),
        ("count", "\n4\n5", "4", True),
        ("food", "(B)", "B", False),
        ("analogy", "maybe", "no", True),
        ("analogy", "", "no", True),  # the task counts no empty answer
        ("attribute", "", "yes", False),
        ("count", "", "0", False),
        ("attribute", "Yes", "no", False),
        ("sightseeing", "No.", "no", True),
        ("codeu", "b", "B", True),
        ("visual_chain_concat", "it says 7", "7", True),
    ],
)
def test_mirb_by_hand(task: str, answer: str, gold: str, right: bool) -> None:
    assert mirb.is_right(task, answer, gold) is right


@pytest.mark.parametrize("case", cases("mirb_groups"))
def test_mirb_groups(case: dict[str, Any]) -> None:
    assert mirb.group_means(case["prediction"]) == pytest.approx(expected(case))


@pytest.mark.parametrize("case", cases("mmmu_pro_parse"))
def test_mmmu_pro(case: dict[str, Any]) -> None:
    assert mmmu_pro.final_letter(case["prediction"], case["ground_truth"]["options"]) == expected(case)


def test_mmmu_pro_by_hand() -> None:
    options = {"A": "red", "B": "deep blue", "C": "blue"}
    assert mmmu_pro.final_letter("It looks as if the sea were deep blue", options) == "C"  # "blue" begins later
    assert mmmu_pro.final_letter("It looks as if the wall were red", options) == "A"
    assert mmmu_pro.final_letter("no idea", options) == ""
    assert mmmu_pro.final_letter("", options) == ""
    assert mmmu_pro.final_letter("I take B.", options) == "B"


@pytest.mark.parametrize("case", cases("mme_realworld_post_process"))
def test_realworld(case: dict[str, Any]) -> None:
    assert realworld.answer_letter(case["prediction"], case["ground_truth"]) == expected(case)


def test_realworld_by_hand() -> None:
    options = ["(A) red", "(B) green", "(C) blue"]
    assert realworld.answer_letter("The best option is blue", options) == "C"
    assert realworld.answer_letter("The correct option is (B).", options) == "B"
    assert realworld.answer_letter("Best answer D", options) == "B"  # without the colon no beginning, but a word with B
    assert realworld.answer_letter("Best option: D", options) == "D"
    assert realworld.answer_letter("Best answer: blue", options) == "C"
    assert realworld.answer_letter("nothing of the kind can be seen on this picture at all, sorry", options) == ""
    marks = [("P", "S", "x", True), ("R", "S", "y", False), ("P", "S", "z", False), ("P", "T", "x", True)]
    assert realworld.shares(marks) == {
        "Overall": 0.5, "P": 2 / 3, "R": 0.0, "P/S": 0.5, "R/S": 0.0, "P/T": 1.0, "P/S/x": 1.0, "R/S/y": 0.0,
        "P/S/z": 0.0, "P/T/x": 1.0,
    }  # fmt: skip
