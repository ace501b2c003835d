"""MM-Vet: a judge's mark between 0 and 1 for each answer, and its mean for each capability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from internvl_chat.eval.task import Judge

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
# Only the second version has it.
SEQUENCE = "seq"
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)

_PROMPT = """\
Mark the answer of a model to a question about a picture: how much of the right answer does it give? The mark is a \
number from 0.0 (nothing of it) to 1.0 (all of it), in steps of a tenth. Where <AND> joins parts of the right answer, \
the answer has to give all of them, and each is worth an equal part of the mark. Where <OR> joins parts, one of them \
is enough for the whole mark. What the answer says beside that costs nothing unless it contradicts the right answer.
Fill in the last mark of the table, and write nothing but this number.

Question | Right answer | Answer of the model | Mark
--- | --- | --- | ---
Which two values solve the equation on the board? | 2 <AND> -7 | x = 3 | 0.0
Which two values solve the equation on the board? | 2 <AND> -7 | x = 2 | 0.5
Which two values solve the equation on the board? | 2 <AND> -7 | x = 2 or x = 7 | 0.5
Which two values solve the equation on the board? | 2 <AND> -7 | It is solved by -7 and by 2. | 1.0
What share of the pie chart is blue? | 3/4 <OR> 75% | one half | 0.0
What share of the pie chart is blue? | 3/4 <OR> 75% | Three quarters of it are blue. | 1.0
What is funny about this picture? | {clerk} | There is a dog. | 0.2
What is funny about this picture? | {clerk} | A dog wears a suit in an office, which dogs do not do. | 0.6
What is funny about this picture? | {clerk} | The dog plays a bored employee: in a suit, at a desk, it watches the \
clock for closing time. | 1.0
{question} | {gold} | {answer} | """

_CLERK = "A dog in a suit sits at a desk and looks at the clock as an office clerk does who waits for the evening."


def judged_mark(question: str, gold: str, answer: str, judge: Judge) -> float | None:
    """The judge's mark; None if none of its replies is a number between 0 and 1. Raises JudgeError."""
    row = {"question": _cell(question), "gold": _cell(gold), "answer": _cell(answer)}
    prompt = _PROMPT.format(clerk=_CLERK, **row)
    for temperature in TEMPERATURES:
        mark = read_mark(judge.ask(prompt, temperature=temperature, max_tokens=16))
        if mark is not None:
            return mark
    return None


def read_mark(reply: str) -> float | None:
    """The number that a reply is, if it is one between 0 and 1."""
    try:
        mark = float(reply)
    except ValueError:
        return None
    return mark if math.isfinite(mark) and 0 <= mark <= 1 else None


def capability_means(rows: Sequence[tuple[str, float]], single_twice: bool = False) -> dict[str, tuple[int, float]]:
    """(capabilities, mark) of each question -> capability -> (questions, mean in percent), "Overall" last.

    Capabilities are one text such as ``rec,ocr``. ``single_twice``: a question that names just one counts twice for
    it, as in VLMEvalKit. A capability that no question names is left out.
    """
    found: dict[str, tuple[int, float]] = {}
    for capability in (*CAPABILITIES, SEQUENCE):
        marks = []
        for named, mark in rows:
            if capability in named:
                marks += [mark] * (2 if single_twice and named.strip() == capability else 1)
        if marks:
            found[capability] = (len(marks), _percent(marks))
    found["Overall"] = (len(rows), _percent([mark for _, mark in rows]))
    return found


def mmvet_figures(rows: Sequence[tuple[str, float]], options: Mapping[str, str], overall: str) -> dict[str, float]:
    """All, called ``overall``, and each capability, counted as ``double_count`` says; and as it is otherwise."""
    twice = options["double_count"] == "yes"
    chosen, other = (capability_means(rows, way) for way in (twice, not twice))
    name = "{} (single ones once)" if twice else "{} (single ones twice)"
    figures = {overall: chosen["Overall"][1]}
    figures |= {capability: mean for capability, (_, mean) in chosen.items() if capability != "Overall"}
    return figures | {name.format(key): mean for key, (_, mean) in other.items() if key != "Overall"}


def _percent(marks: Sequence[float]) -> float:
    return 100 * sum(marks) / len(marks)


def _cell(text: str) -> str:
    """A row of the table is one line, and its columns are told by bars."""
    return " ".join(text.replace("|", "/").split())
