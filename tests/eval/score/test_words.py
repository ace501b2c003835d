"""Words of captions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score.words import caption_words
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("caption_tokenise"))
def test_words(case: dict[str, Any]) -> None:
    assert " ".join(caption_words(case["prediction"])) == expected(case)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's dog isn't here, can't won't.", "a man 's dog is n't here ca n't wo n't"),
        ("Mr. Smith at St. John's Ave. in no. 5", "mr. smith at st. john 's ave. in no. 5"),
        ('$5.00 50% 1/2 and/or "quoted" #1', "$ 5.00 50 % 1/2 and/or quoted # 1"),
        ("the t-shirt--half-eaten, at 5 p.m.", "the t-shirt half-eaten at 5 p.m."),
        ("two\nlines [x] {y} it’s 12:30pm", "two lines -lsb- x -rsb- -lcb- y -rcb- it 's 12:30 pm"),
        ("dogs' tails & rock 'n' roll gonna!!", "dogs tails & rock 'n' roll gon na !!"),
        ("plan b. A man on pier b.", "plan b a man on pier b."),
        ("", ""),
        ("...", ""),
    ],
)
def test_words_as_the_java_program_cuts_them(caption: str, words: str) -> None:
    """What PTBTokenizer of Stanford CoreNLP 3.4.1 gave, punctuation of COCO's list left out."""
    assert " ".join(caption_words(caption)) == words


@given(st.text(max_size=60))
def test_any_text_is_cut(text: str) -> None:
    words = caption_words(text)
    assert all(words)
    assert not set(words) & {"", ",", ".", "'", "-"}
    assert words == [word.lower() for word in words]
