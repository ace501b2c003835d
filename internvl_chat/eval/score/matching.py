"""Which option, or which of yes and no, a free answer means: VLMEvalKit's rule of 2024, and its judge behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from internvl_chat.eval.score.vqa import normalise_punctuation
from internvl_chat.eval.task import Judge

# What stands for "none of the options".
REFUSED = "Z"
UNKNOWN = "Unknown"
# Answers with one of these are refusals.
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# A reply that cannot be read is asked for anew, each time a little more freely.
_TEMPERATURES = (0.0, 0.5, 1.0)

_OPTION_PROMPT = """\
A student answered a multiple-choice question in his own words. Find out which option he means.
Compare meanings, not wording: give the letter of the option that says the same as his answer. If his answer says the \
same as none of them, or he does not answer, give Z. Do not answer the question yourself; whether he is right does not \
matter. Reply with one capital letter and nothing else.

Question: Which animal is in the basket?
Options: A. kitten B. puppy C. hen
Student's answer: There is a very young cat in it.
Letter: A

Question: Which animal is in the basket?
Options: A. kitten B. puppy C. hen
Student's answer: A goldfish.
Letter: Z

Question: {question}
Options: {options}
Student's answer: {answer}
Letter:"""

_YES_NO_PROMPT = """\
A student answered a question that can be answered by yes or no. Find out what his answer amounts to. Reply with one \
word: Yes, No, or Unknown if it amounts to neither. Do not answer the question yourself.

Question: Is the line on the left longer than the one on the right?
Student's answer: The two lines are equally long.
Word: No

Question: Does the map show a river?
Student's answer: A river runs along the border.
Word: Yes

Question: {question}
Student's answer: {answer}
Word:"""


def match_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer means; "Z" for a refusal; None where the rule cannot tell.

    ``options``: letter -> text; one with an empty text is none. In this order: a known refusal; the only option letter
    that stands among the words as a word; the only option whose text occurs in the answer, in whatever case.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    options = {letter: text for letter, text in options.items() if text}
    words = set(answer.translate(_BLANKS).split())
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1:
        return letters[0]
    if not letters and REFUSED in words:
        return REFUSED
    lowered = answer.lower()
    texts = [letter for letter, text in options.items() if text.lower() in lowered]
    return texts[0] if len(texts) == 1 else None


def judged_option(answer: str, options: Mapping[str, str], question: str, judge: Judge | None) -> str | None:
    """``match_option``, and where that cannot tell, what the judge finds; None also where the judge cannot be read.

    An empty answer is never put to it. Raises JudgeError.
    """
    found = match_option(answer, options)
    if found is not None or judge is None or not answer.strip():
        return found
    shown = " ".join(f"{letter}. {text}" for letter, text in options.items())
    prompt = _OPTION_PROMPT.format(question=question, options=shown, answer=answer)
    for temperature in _TEMPERATURES:
        reply = judge.ask(prompt, temperature=temperature, max_tokens=64)
        found = match_option(reply, options)
        if found is not None:
            return found
    return None


def yes_or_no(answer: str) -> str:
    """ "Yes" or "No" if exactly one of the two words occurs, else "Unknown"."""
    words = normalise_punctuation(answer.lower()).split()
    if ("yes" in words) == ("no" in words):
        return UNKNOWN
    return "Yes" if "yes" in words else "No"


def judged_yes_or_no(answer: str, question: str, judge: Judge | None) -> str:
    """``yes_or_no``, and where that cannot tell, what the judge finds. Raises JudgeError."""
    found = yes_or_no(answer)
    if found != UNKNOWN or judge is None or not answer.strip():
        return found
    prompt = _YES_NO_PROMPT.format(question=question, answer=answer)
    for temperature in _TEMPERATURES:
        reply = judge.ask(prompt, temperature=temperature, max_tokens=64)
        found = yes_or_no(reply)
        if found != UNKNOWN or "unknown" in reply.lower():
            return found
    return UNKNOWN


def option_report(rows: Sequence[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Split -> "Overall" and each group -> share of hits.

    ``rows``: ``hit`` (0 or 1), ``split`` ("none" where a table has no splits), ``l2-category``, ``category``; groups
    without a row in a split are left out of it.
    """
    splits: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        splits.setdefault(str(row.get("split") or "none"), []).append(row)
    report: dict[str, dict[str, float]] = {}
    for split, members in splits.items():
        report[split] = {"Overall": _share(members)}
        for column in ("l2-category", "category"):
            named = [row for row in members if row.get(column)]
            for group in sorted({str(row[column]) for row in named}):
                report[split][group] = _share([row for row in named if str(row[column]) == group])
    return report


def _share(rows: Sequence[Mapping[str, object]]) -> float:
    return sum(float(str(row["hit"])) for row in rows) / len(rows)
