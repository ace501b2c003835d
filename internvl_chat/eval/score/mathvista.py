"""MathVista: the value that an answer ends with -> right or not, by the original's rules and by VLMEvalKit's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from internvl_chat.eval.score.anls import levenshtein
from internvl_chat.eval.score.matching import match_option
from internvl_chat.eval.score.thought import final_answer
from internvl_chat.eval.task import Judge

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
_PROMPT = """\
Each example below has a question with a hint on the form of its answer, and what a model wrote. Take from what it \
wrote the answer that it settles on, in the form that the hint asks for, and write that and nothing else. Do not solve \
or correct anything. If it settles on nothing, write None.

Hint: The answer is a whole number, e.g., 1, 2, 3.
Question: How many bars are higher than 40?
Model: The second, the third and the last bar rise above the line at 40, which makes three of them.
Extracted answer: 3

Hint: The answer is a number with one decimal, e.g., 1.2, 1.3, 1.4.
Question: What is the perimeter of the triangle in cm?
Model: Adding up 3.5, 4 and 5.2, the perimeter comes to 12.7 cm.
Extracted answer: 12.7

Hint: The answer is a number with two decimals, e.g., 1.23, 1.34, 1.45.
Question: What fraction of the disk is shaded?
Model: The picture is too dark for me to tell.
Extracted answer: None

Hint: The answer is a list, e.g., [1, 2, 3], [1.2, 1.3, 1.4].
Question: Between which two years does the line fall most?
Model: The steepest fall is the one that begins in 1994 and ends in 1996.
Extracted answer: [1994, 1996]

Hint: Give the letter of the right option at the end, e.g., A, B, C, D.
Question: How long is the ladder?
Choices: (A) 5 m (B) 6.5 m (C) 8 m
Model: By the theorem of Pythagoras the ladder is 6.5 m long.
Extracted answer: B

{query}
Model: {response}
Extracted answer: """


@dataclass(frozen=True)
class Extraction:
    """``text``: the value, None where neither rules nor judge found one; ``judged``: whether the judge was asked."""

    text: str | None
    judged: bool = False


def extract(response: str, record: Mapping[str, Any], quick: bool, judge: Judge | None) -> Extraction:
    """The value of a response by the original's own rules.

    ``record``: ``question_type``, ``answer_type``, ``choices``, ``query``. ``quick``: what stands behind the marker of
    an answer that thinks aloud, instead of the judge. Raises JudgeError.
    """
    if not response:
        return Extraction("")
    if record["question_type"] == "multi_choice" and response in record["choices"]:
        return Extraction(response)
    kind = {"integer": int, "float": float}.get(record["answer_type"])
    if kind is not None:
        try:
            return Extraction(str(kind(response)))
        except ValueError:
            pass  # more than a number
    if quick:
        return Extraction(final_answer(response))
    if judge is None:
        return Extraction(None)
    return Extraction(judged_value(record["query"], response, judge, max_tokens=256), True)


def judged_value(query: str, response: str, judge: Judge, max_tokens: int) -> str:
    """What the judge takes from a response; "" if all its replies are empty. Raises JudgeError."""
    prompt = _PROMPT.format(query=query, response=response)
    for temperature in _TEMPERATURES:
        reply = judge.ask(prompt, temperature=temperature, max_tokens=max_tokens)
        if reply.strip():
            return reply.strip()
    return ""


def settled(extraction: str, record: Mapping[str, Any]) -> str | None:
    """An extracted value in the form of the right answer; None for what is no number where one is asked for."""
    if record["question_type"] == "multi_choice":
        return _option(extraction, record["choices"])
    try:
        if record["answer_type"] == "integer":
            return str(int(float(extraction)))
        if record["answer_type"] == "float":
            return str(round(float(extraction), int(record["precision"])))
    except (ValueError, OverflowError, TypeError):
        return None
    return extraction


def _option(extraction: str, choices: Sequence[str]) -> str:
    """The option of a letter, else the one that takes the fewest edits; of equals the first."""
    text = extraction.strip()
    bracketed = _BRACKETED.search(text)
    letter = bracketed.group(1).upper() if bracketed else text
    if len(letter) == 1 and letter in _LETTERS[: len(choices)]:
        return choices[_LETTERS.index(letter)]
    return min(choices, key=lambda choice: levenshtein(letter, choice))


def vlm_prefetch(answer: str, record: Mapping[str, Any]) -> str | int | float | None:
    """VLMEvalKit's value without a judge: any option that the rules find, or a number if it is right already.

    ``record``: ``question_type``, ``answer_type``, ``answer``, ``options`` (letter -> text).
    """
    if record["question_type"] == "multi_choice":
        return match_option(answer, record["options"])
    number = _number(answer, record["answer_type"])
    return number if number is not None and number == _number(record["answer"], record["answer_type"]) else None


def vlm_right(value: str, record: Mapping[str, Any], lists: bool) -> bool:
    """Whether a value is right in VLMEvalKit's style. ``lists``: texts and lists can be; there they never are."""
    if record["question_type"] == "multi_choice":
        return match_option(value, record["options"]) == record["answer_option"]
    if record["answer_type"] not in ("integer", "float"):
        return lists and value.strip() == str(record["answer"]).strip()
    number = _number(value, record["answer_type"])
    return number is not None and number == _number(record["answer"], record["answer_type"])


def _number(text: Any, kind: str) -> int | float | None:
    try:
        if kind == "integer":
            return int(text)
        return float(text) if kind == "float" and not math.isnan(float(text)) else None
    except (ValueError, TypeError):
        return None
