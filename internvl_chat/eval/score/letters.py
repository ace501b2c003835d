"""Answers to questions with options -> the letter that is meant, by the original's rules for each benchmark."""

from __future__ import annotations

from collections.abc import Mapping


def scienceqa_letter(answer: str, options: Mapping[str, str]) -> str:
    """Letter of an answer to ScienceQA, or the answer itself where none is found.

    ``options``: letter -> text. Words that begin with an option's letter are read as that letter, as in the original.
    """
    answer = answer.strip()
    if len(answer) == 1:
        return answer
    if answer[:1] in options:
        return answer[0]
    for letter, text in options.items():
        if text in answer:
            return letter
    if len(answer) > 1 and answer[1] == ".":
        return answer[0]
    if len(answer) > 2 and answer[0] == "(" and answer[2] == ")":
        return answer[1]
    return answer


def mcq_letter(answer: str, options: Mapping[str, str]) -> str:
    """Letter of an answer to MMMU, MMBench, CCBench, MMVP and MMIU, or the answer itself where none is found.

    ``options``: letter -> text. Unlike ScienceQA's, this rule does not know "(B)"; it reads "Answer: B" as A, and an
    option inside another one's text as itself, as in the original. "" stays "" (the original fails).
    """
    answer = answer.strip()
    if len(answer) <= 1:
        return answer
    if answer[0] in options:
        return answer[0]
    return next((letter for letter, text in options.items() if text in answer), answer)
