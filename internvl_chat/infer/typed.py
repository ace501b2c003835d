"""Lines typed or pasted into a terminal, or read from stdin -> questions and commands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

LONG = 'A line that ends in \\ goes on in the next one; lines between """ and """ are one question.'
_QUOTES = '"""'


def read_typed(prompt: str) -> Iterator[str]:
    """Questions and commands without blank ones, those of several lines put together, until stdin ends.

    ``prompt``: empty where nobody sees it. On a terminal that brackets what is pasted, that is one question.
    """
    with contextlib.suppress(ImportError):
        import readline  # arrow keys and history in input()

        readline.parse_and_bind("set enable-bracketed-paste on")
    lines: list[str] = []
    quoted = False
    while True:
        try:
            line = input(prompt and (". " if lines or quoted else prompt))
        except EOFError:
            if text := "\n".join(lines).strip():
                yield text
            return
        begins = not lines and line.lstrip().startswith(_QUOTES)
        if quoted or begins:
            line = line.lstrip().removeprefix(_QUOTES) if begins else line
            quoted = not line.rstrip().endswith(_QUOTES)
            lines.append(line if quoted else line.rstrip().removesuffix(_QUOTES))
        elif line.endswith("\\"):
            lines.append(line[:-1])
            continue
        else:
            lines.append(line)
        if not quoted:
            if text := "\n".join(lines).strip():
                yield text
            lines = []
