"""How the page looks: style, heading, and a conversation as gradio's chat messages. Plain data, no gradio."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from internvl_chat.infer.demo.seen import Seen
from internvl_chat.infer.demo.session import Answer, Model, Round
from internvl_chat.page import picture_uri

# A browser fetches from this server only, whatever stands in an answer (a picture's address in Markdown, say).
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
HEADERS = [
    (b"content-security-policy", _POLICY.encode("ascii")),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
# Where this machine keeps an upload is nobody's business.
_FOLDERS, _QUOTED_NAME = re.compile(r"""(["'])(?:(?!\1)[^\n])*/((?:(?!\1)[^/\n])+)\1"""), r"\1\2\1"
EMPTY = "Attach pictures or a video below and ask about them."
CSS = """
.gradio-container { width: 100%; max-width: 1500px !important; margin: 0 auto !important; }
#heading h1 { font-size: 1.15rem; margin: 0; display: inline; }
#heading span { color: var(--body-text-color-subdued); margin-left: .6em; overflow-wrap: anywhere; }
.alert { color: var(--error-text-color); background: var(--error-background-fill); margin: 0;
  border: 1px solid var(--error-border-color); border-radius: 8px; padding: 8px 12px; overflow-wrap: anywhere; }
.talk .message-wrap { padding-top: 30px; }
.talk .user img, .talk .user video { max-height: 200px; width: auto; }
.talk .state { color: var(--body-text-color-subdued); font-size: .85rem; }
/* gradio's own: the one clears only what is seen, the other would upload to a web site. */
.talk button[aria-label="Clear"], .talk button[aria-label="Share"] { display: none; }
.talk .icon-button-wrapper:has(> button[aria-label="Share"]:only-child) { display: none; }
@media (max-width: 700px) { .talk { height: 55dvh !important; } }
#tiles figure { margin: 0 0 12px; }
#tiles img { width: 100%; cursor: zoom-in; }
#tiles img:focus { position: fixed; inset: 0; width: 100vw; height: 100vh; padding: 4vmin; object-fit: contain;
  z-index: 1000; background: var(--body-background-fill); pointer-events: none; }
#tiles figcaption, #tiles p { color: var(--body-text-color-subdued); font-size: .85rem; overflow-wrap: anywhere; }
#tiles .alert { color: var(--error-text-color); }
"""


def theme(gr: Any) -> Any:
    """gradio's own look in blue, with the fonts that the reader's system has: nothing is fetched for it."""
    sans, mono = ("ui-sans-serif", "system-ui", "sans-serif"), ("ui-monospace", "Consolas", "monospace")
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono)


def heading(models: Sequence[Model]) -> str:
    """The name of the page, and of what it shows."""
    names = " and ".join(model.name for model in models)
    return f"<h1>internvl demo</h1><span>{escape(names)}</span>"


def messages(rounds: Sequence[Round], number: int) -> list[dict[str, Any]]:
    """The conversation with model ``number``, as the value of gradio's ``Chatbot``."""
    said: list[dict[str, Any]] = []
    for round in rounds:
        files = [{"path": str(file), "alt_text": file.name} for file in round.files]
        said.append({"role": "user", "content": [*files, round.question]})
        said.append({"role": "assistant", "content": _answer(round.answers[number])})
    return said


def _answer(answer: Answer) -> list[Any]:
    """The text, below it the pictures with its boxes, and what is to be said about them."""
    note = {
        "waiting": "waiting: another answer is being written",
        "stopped": "stopped; the model does not remember this question",
    }.get(answer.state)
    text = answer.text or ("" if note else "…" if answer.state == "writing" else "(an empty answer)")
    contents: list[Any] = [text] if text else []
    contents += [{"path": str(file), "alt_text": "boxes of the answer"} for file in answer.drawn]
    notes = [note] if note else []
    if len(answer.drawn) > 1:
        notes.append("the answer does not say which picture its boxes are of, so they are drawn on each")
    notes += [*answer.legend, *([_without_folders(answer.undrawn)] if answer.undrawn else [])]
    contents += [f'<span class="state">{escape("; ".join(notes))}</span>'] if notes else []
    return contents


def tiles_html(seen: Sequence[Seen]) -> str:
    """Pictures of tiles with a line about each; one that is clicked fills the window."""
    return "".join(
        f'<figure><img tabindex="0" alt="tiles" src="{picture_uri(one.image, kind="WEBP", quality=85)}">'
        f"<figcaption>{escape(one.text)}</figcaption></figure>"
        for one in seen
    )


def alert(text: str) -> str:
    """A message that something cannot be done; of files it names, the folders are left out."""
    return f'<p class="alert" role="alert">{escape(_without_folders(text))}</p>'


def _without_folders(text: str) -> str:
    return _FOLDERS.sub(_QUOTED_NAME, text)
