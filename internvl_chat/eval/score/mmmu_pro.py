"""MMMU-Pro: the letter that an answer names in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

_MARKER = "Answer:"
_STRIPPED = ",.!?;:'"
# A longer answer is searched for the options' texts, too.
_WORDS = 5


def final_letter(answer: str, options: Mapping[str, str]) -> str:
    """Letter of an option, or "" where none is found (the original draws one then).

    ``options``: letter -> text. Behind the last "Answer:" a letter that alone occurs there; else letters in brackets;
    else followed by a blank; else by a period; else options' texts in an answer of more than five words. Of several the
    last. With ten options the word "I" is option I, as in the original.
    """
    behind = answer.rfind(_MARKER)
    if behind >= 0:
        rest = answer[behind + len(_MARKER) :]
        named = [letter for letter in options if letter in rest]
        if len(named) == 1:
            return named[0]
    text = answer
    for sign in _STRIPPED:
        text = text.strip(sign)
    text = f" {text} "
    places: Sequence[tuple[str, Callable[[str], int]]] = (
        ("({})", lambda letter: text.rfind(f"({letter})")),
        ("{} ", lambda letter: text.rfind(f" {letter} ")),
        ("{}.", lambda letter: text.rfind(f" {letter} ")),
    )
    for form, place in places:
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            return _last(found, place)
    if len(text.split()) <= _WORDS:
        return ""
    low = text.lower()
    found = [letter for letter, option in options.items() if option.lower() in low]
    return _last(found, lambda letter: low.rfind(options[letter].lower()))


def _last(letters: Sequence[str], place: Callable[[str], int]) -> str:
    """The letter whose place is farthest behind; the first one of equal places; "" of none."""
    return max(letters, key=place, default="")
