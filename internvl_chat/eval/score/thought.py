"""Answers that think aloud first (``--cot``): the prompt that asks for it, and what of an answer counts."""

from __future__ import annotations

import re

# Tokens that an answer may have then.
MAX_NEW_TOKENS = 4096
_PROMPT = (
    "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready "
    'to answer, please use the format "Final answer: .."\n\nQuestion:\n\n{question}'
)
_MARKER = re.compile(r"(?:final answer|answer):", re.IGNORECASE)


def thoughtful(question: str) -> str:
    """The question with the request to reason first."""
    return _PROMPT.format(question=question)


def final_answer(answer: str) -> str:
    """The rest of the line behind the first ``Final answer:`` or ``Answer:``; without one the answer as it is."""
    found = _MARKER.search(answer)
    if found is None:
        return answer
    rest = answer[found.end() :].strip()
    return rest.split("\n", 1)[0].strip()
