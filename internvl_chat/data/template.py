"""Conversation templates as data: the strings around each message, the stop marker, the default system message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from internvl_chat.errors import ConfigError, nearest

# ``--conv_style`` of a model that is asked as its own chat template says (data/chat_template.py).
OWN_TEMPLATE = "chat_template"

_INTERNVL_1 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands before a message: ``header``, which the model reads, and, before an answer, what it has to write
    itself ahead of the answer's text. The header behind an answer begins with a marker that ends it.
    """

    header: str
    answer_prefix: str = ""


class Framing(Protocol):
    """A conversation template, named or a checkpoint's own, as the encoder asks it.

    ``markers``: the pieces of headers that are single tokens of the tokenizer. ``system_message``: written where a
    conversation brings none, None = no system turn then. ``writes_bos``: whether the headers hold the BOS token.
    """

    @property
    def name(self) -> str: ...
    @property
    def markers(self) -> tuple[str, ...]: ...
    @property
    def stop(self) -> str: ...
    @property
    def system_message(self) -> str | None: ...
    @property
    def writes_bos(self) -> bool: ...
    def frames(self, roles: Sequence[str], prompt: bool) -> tuple[Frame, ...]:
        """A frame before each of the messages, and one behind the last; ``prompt``: up to where an answer begins."""
        ...


@dataclass(frozen=True)
class Template:
    """One exchange is ``user_prefix Q user_suffix assistant_prefix | answer_prefix A stop | after``.

    What stands between the bars is supervised. ``markers`` are the pieces that are single tokens of the tokenizer.
    """

    name: str
    system_message: str
    system_prefix: str
    system_suffix: str
    user_prefix: str
    user_suffix: str
    assistant_prefix: str
    stop: str
    markers: tuple[str, ...]
    answer_prefix: str = ""
    after: str = ""
    writes_bos: bool = False

    def frames(self, roles: Sequence[str], prompt: bool) -> tuple[Frame, ...]:
        before = {"system": self.system_prefix, "human": self.user_prefix, "gpt": self.assistant_prefix}
        behind = {"system": self.system_suffix, "human": self.user_suffix, "gpt": self.stop + self.after}
        frames, text = [], ""
        for role in roles:
            frames.append(Frame(text + before[role], self.answer_prefix if role == "gpt" else ""))
            text = behind[role]
        return (*frames, Frame(text + self.assistant_prefix if prompt else text))


def _chatml(name: str, system_message: str, after: str) -> Template:
    return Template(
        name=name,
        system_message=system_message,
        system_prefix="<|im_start|>system\n",
        system_suffix="<|im_end|>" + after,
        user_prefix="<|im_start|>user\n",
        user_suffix="<|im_end|>" + after,
        assistant_prefix="<|im_start|>assistant\n",
        stop="<|im_end|>",
        markers=("<|im_start|>", "<|im_end|>"),
        after=after,
    )


_ALL = (
    _chatml("Hermes-2", _INTERNVL_1, after=""),
    _chatml("internlm2-chat", _INTERNVL_1, after=""),
    _chatml("internvl2_5", _INTERNVL_2_5, after="\n"),
    Template(
        name="phi3-chat",
        system_message=_INTERNVL_1,
        system_prefix="<|system|>\n",
        system_suffix="<|end|>",
        user_prefix="<|user|>\n",
        user_suffix="<|end|>",
        assistant_prefix="<|assistant|>\n",
        stop="<|end|>",
        markers=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Template(
        name="internvl_zh",
        system_message="",
        system_prefix="",
        system_suffix=" ",
        user_prefix="<human>: ",
        user_suffix=" ",
        assistant_prefix="<bot>:",
        answer_prefix=" ",
        stop="</s>",
        markers=("</s>",),
    ),
)
TEMPLATES: dict[str, Template] = {template.name: template for template in _ALL}


def get_template(name: str) -> Template:
    """The named template. Raises ConfigError with the legal names."""
    if name not in TEMPLATES:
        raise ConfigError(
            f"conv_style {name!r} is not a template{nearest(name, TEMPLATES)}; legal: {', '.join(TEMPLATES)}, "
            f"{OWN_TEMPLATE} (as the checkpoint's chat template says)"
        )
    return TEMPLATES[name]
