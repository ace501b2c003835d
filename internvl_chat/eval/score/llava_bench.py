"""LLaVA-Bench (in the wild): a judge rates a reference and the model's answer; the score is how they compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from internvl_chat.eval.task import Judge

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
TEMPERATURE = 0.2
# (rating of the reference, rating of the model's answer)
Pair = tuple[float, float]

_RULE = """\
Two assistants have answered the user's question above. You do not see the picture that it is about; the context \
describes it. Rate both answers: are they helpful, relevant, accurate, and as detailed as the question asks for? Each \
gets one overall rating from 1 to 10; higher is better.
Your first line has two numbers and nothing else: the rating of Assistant 1 and that of Assistant 2, with one blank \
between them. Explain the ratings in the lines below it. Do not favour an answer for the place it stands at."""
_PROMPT = """\
[Context]
{context}

[Question]
{question}

[Assistant 1]
{reference}

[End of Assistant 1]

[Assistant 2]
{answer}

[End of Assistant 2]

[System]
{rule}

"""


def judged_pair(context: str, question: str, reference: str, answer: str, judge: Judge) -> Pair | None:
    """The judge's two ratings; None if its first line cannot be read. Raises JudgeError.

    An empty answer has the rating 0, whatever the judge says of it.
    """
    prompt = _PROMPT.format(context=context, question=question, reference=reference, answer=answer, rule=_RULE)
    pair = read_pair(judge.ask(prompt, system=SYSTEM, temperature=TEMPERATURE, max_tokens=1024))
    return pair if answer.strip() or pair is None else (pair[0], 0.0)


def read_pair(review: str, strict: bool = False) -> Pair | None:
    """The two numbers of a review's first line, between them blanks or a comma; None if they cannot be read.

    ``strict``: the original's rule, for which every blank too many makes a line unreadable.
    """
    line = review.split("\n")[0].replace(",", " ")
    words = line.split(" ") if strict else line.split()
    if len(words) != 2:
        return None
    try:
        pair = (float(words[0]), float(words[1]))
    except ValueError:
        return None
    return pair if all(math.isfinite(number) for number in pair) else None


def summary(reviews: Sequence[tuple[str, Pair]]) -> dict[str, tuple[list[float], float, float, float]]:
    """(category, ratings) of each question -> "all" and each category, sorted by name.

    Values: the two mean ratings, three decimals; the model's in percent of the reference's; ten times the mean of the
    reference; ten times that of the model; one decimal.
    """
    groups: dict[str, list[Pair]] = {}
    for category, pair in reviews:
        groups.setdefault("all", []).append(pair)
        groups.setdefault(category, []).append(pair)
    found = {}
    for name, pairs in sorted(groups.items()):
        reference, model = (round(sum(pair[place] for pair in pairs) / len(pairs), 3) for place in (0, 1))
        relative = round(100 * model / reference, 1) if reference else 0.0
        found[name] = ([reference, model], relative, round(10 * reference, 1), round(10 * model, 1))
    return found


def summary_lines(reviews: Sequence[tuple[str, Pair]]) -> list[str]:
    """The lines that the original prints: two for each row of ``summary``."""
    lines = []
    for name, (means, relative, reference, model) in summary(reviews).items():
        lines += [f"{name} {means} {relative}", f"{name} {relative} {reference} {model}"]
    return lines


def vlm_summary(rows: Sequence[Mapping[str, float | str]]) -> dict[str, tuple[float, float, float]]:
    """VLMEvalKit's table: "overall" and each category -> (relative, ten times the model's mean, and the reference's).

    ``rows``: ``category``, ``score`` of the model, ``gpt4_score`` of the reference.
    """
    names = ["overall", *sorted({str(row["category"]) for row in rows})]
    found = {}
    for name in names:
        members = [row for row in rows if name in ("overall", row["category"])]
        model = sum(float(row["score"]) for row in members) / len(members)
        reference = sum(float(row["gpt4_score"]) for row in members) / len(members)
        relative = 100 * model / reference if reference else 0.0
        found[name] = (round(relative, 1), round(10 * model, 1), round(10 * reference, 1))
    return found
