"""A line for the terminal: what it holds, what it costs, and its prompt token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from internvl_chat.tools.preview_look import Film, Look, Picture, Token, item_text, problems_of, visible

_OPEN, _CLOSE = "⟦", "⟧"
_BETWEEN = "¦"
_RESET = "\033[0m"
# Whose a turn is that the line itself does not have.
SYSTEM = "system (of the manifest)"
# Two shades each, in turn, so that one sees where a token ends.
_LEARNED, _OTHER = ("\033[32m", "\033[1;92m"), ("\033[0m", "\033[2m")


def look_lines(look: Look, color: bool) -> Iterator[str]:
    """All that there is to say about a line of an annotation."""
    yield f"{look.place}, data set {look.spec.name!r}"
    if look.fault is not None:
        yield fault_line(look)
    if look.record is None or look.sample is None:
        yield item_text(look.line)
        return
    yield from media_lines(look.media)
    yield f"size: {size_text(look)}"
    for problem in problems_of(look.record):
        yield f"warning: {visible(problem)}"
    yield ""
    if look.system is not None:
        yield f"{SYSTEM}: {visible(look.system)}"
    for turn in look.record.turns:
        note = "" if turn.supervised or turn.role != "gpt" else " (not learned)"
        yield f"{turn.role}{note}: {visible(turn.text)}"
    yield ""
    mark = f"{_LEARNED[0]}green{_RESET}" if color else f"{_OPEN}in brackets{_CLOSE}, tokens divided by {_BETWEEN}"
    yield f"as the model reads it; learned: {mark}"
    yield token_text(look.tokens, color)


def fault_line(look: Look) -> str:
    return "" if look.fault is None else f"left out ({look.fault.code.name}): {visible(str(look.fault))}"


def media_lines(media: Sequence[Picture | Film]) -> Iterator[str]:
    """One line per picture or video."""
    for number, medium in enumerate(media, 1):
        yield f"{number}. {visible(medium.name)}: {medium_text(medium)}"


def medium_text(medium: Picture | Film) -> str:
    """Size and tiles in words."""
    if isinstance(medium, Film):
        clip = "" if medium.clip is None else f" of seconds {medium.clip[0]:g} to {medium.clip[1]:g}"
        return f"video, {len(medium.frames)} frames{clip}, one tile each"
    width, height = medium.image.size
    columns, rows = medium.grid
    thumbnail = " and a thumbnail" if medium.thumbnail else ""
    count = len(medium.tiles)
    tiles = f"{columns} x {rows} tiles{thumbnail} = {count}" if count > 1 else "1 tile"
    boxes = sum(len(grounding.boxes) for grounding in medium.boxes)
    return f"{width} x {height} pixels, {tiles}" + (f", {boxes} box{'es' * (boxes > 1)}" if boxes else "")


def size_text(look: Look) -> str:
    """Footprint in words."""
    if look.sample is None:
        return "none"
    size = look.sample.footprint
    cut = f", cut to fit ({look.cut.name})" if look.cut else ""
    share = 100 * size.supervised / max(1, size.tokens)
    return f"{size.tokens} tokens, {size.tiles} tiles, {size.supervised} tokens learned ({share:.1f} %){cut}"


def token_text(tokens: Sequence[Token], color: bool) -> str:
    """The prompt; line breaks are shown and made."""
    if color:
        pieces = []
        for number, token in enumerate(tokens):
            shade = (_LEARNED if token.weight > 0 else _OTHER)[number % 2]
            pieces.append(f"{shade}{shown(token)}{_RESET}")
        return "".join(pieces)
    runs = []
    for learned, run in groupby(tokens, key=lambda token: token.weight > 0):
        text = _BETWEEN.join(shown(token) for token in run)
        runs.append(f"{_OPEN}{text}{_CLOSE}" if learned else text)
    return "".join(runs)


def shown(token: Token) -> str:
    """A token's text; ``<IMG_CONTEXT> x 256`` for as many of them."""
    text = visible(token.text).replace("\n", "\\n\n")
    same = len(set(token.ids)) == 1 and len(token.ids) > 1
    return f"{text} x {len(token.ids)}" if same else text
