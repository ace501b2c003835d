"""Soft accuracy of VQA: how far an answer agrees with those of ten people, after both are made alike."""

from __future__ import annotations

import re
from collections.abc import Sequence

from internvl_chat.errors import DataError

# Answers that each question has.
PEOPLE = 10
_ENOUGH = 3  # so many of the other nine make an answer right
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
# The original's pattern means to spare periods behind digits and does not; its flag is taken for this count.
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS.split())}
_ARTICLES = ("a", "an", "the")
# Each is also found without its apostrophe.
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll "
    "how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't "
    "should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's "
    "there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's "
    "what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've "
    "wouldn't y'all you'd you'll you're you've"
)
# Each is found with any one of its apostrophes missing.
_DOUBLE = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at"
)


def _restored() -> dict[str, str]:
    found = {whole.replace("'", ""): whole for whole in _CONTRACTIONS.split()}
    for whole in _DOUBLE.split():
        for at, sign in enumerate(whole):
            if sign == "'":
                found[whole[:at] + whole[at + 1 :]] = whole
    # The table of the metric has it so.
    return found | {"somebody'd": "somebodyd"}


_RESTORED = _restored()


def normalise_punctuation(text: str) -> str:
    """The text without the signs of the metric: each is deleted if a blank is beside it, else it becomes a blank.

    Periods go too, but for those before a digit, and at most 32 of them, as in the original.
    """
    thousands = _THOUSANDS.search(text) is not None
    made = text
    for sign in _SIGNS:
        beside = f"{sign} " in text or f" {sign}" in text
        made = made.replace(sign, "" if beside or thousands else " ")
    return _PERIOD.sub("", made, count=_MOST_PERIODS)


def normalise_words(text: str) -> str:
    """Lower case, number words up to ten as digits, without articles, with the apostrophes of contractions."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def normalise(text: str) -> str:
    """An answer as the metric compares it."""
    cleared = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_words(normalise_punctuation(cleared.replace("\n", " ").replace("\t", " ").strip()))


def soft_accuracy(answer: str, golds: Sequence[str], question: object = "") -> float:
    """Share of a point: for each of the ten people left out in turn, whether three others gave the answer (0 to 1).

    ``question``: its id, for the message. Raises DataError unless there are ten golds.
    """
    if len(golds) != PEOPLE:
        name = f"question {question!r}: " if question != "" else ""
        raise DataError(f"{name}{len(golds)} answers of people, {PEOPLE} are needed; check the annotation file")
    own = normalise(answer)
    equal = [normalise(gold) == own for gold in golds]
    shares = [min(1.0, (sum(equal) - one) / _ENOUGH) for one in equal]
    return sum(shares) / len(shares)
