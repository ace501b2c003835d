"""Conversation templates as data: the strings around each message, the stop marker, the default system message."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from internvl_chat.errors import ConfigError, nearest

_INTERNVL_1 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


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


def template_of(config: Any) -> Template:
    """The template that a checkpoint's config names, with the system message that it sets, if it sets one.

    ``config`` is any object with ``template`` and ``system_message``. Raises ConfigError if it names none.
    """
    if config.template is None:
        raise ConfigError("the checkpoint names no template; say which one it was trained with: --conv_style")
    template = get_template(config.template)
    return template if config.system_message is None else replace(template, system_message=config.system_message)


def get_template(name: str) -> Template:
    """The template of that name. Raises ConfigError with the legal names."""
    if name not in TEMPLATES:
        raise ConfigError(
            f"--conv_style {name!r} is not a template{nearest(name, TEMPLATES)}; legal: {', '.join(TEMPLATES)}"
        )
    return TEMPLATES[name]
