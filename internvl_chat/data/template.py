"""Conversation templates as data: the strings around each message, the stop marker, the default system message."""

from __future__ import annotations

import json
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


# Without {% generation %}: readers before transformers 4.42 fail on tags that they do not know.
_JINJA = """\
{%- macro text_of(message, image) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}
{%- elif image and part['type'] in ['image', 'image_url'] -%}{{ image }}
{%- else -%}{{ raise_exception(message['role'] + ' messages cannot hold parts of type ' + part['type']) }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- BOS + SYSTEM_PREFIX -}}
{%- if messages and messages[0]['role'] == 'system' -%}{{ text_of(messages[0], '') }}
{%- else -%}{{ SYSTEM_MESSAGE }}
{%- endif -%}
{{- SYSTEM_SUFFIX -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ USER_PREFIX + text_of(message, IMAGE) + USER_SUFFIX }}
{%- elif message['role'] == 'assistant' -%}{{ ASSISTANT_PREFIX + ANSWER_PREFIX + text_of(message, '') + STOP + AFTER }}
{%- elif not (loop.first and message['role'] == 'system') -%}{{ raise_exception(ROLE_FAULT) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ASSISTANT_PREFIX }}{%- endif -%}
"""
_ROLE_FAULT = "roles are user and assistant, behind at most one system message"


def chat_template(template: Template, image: str, bos: str = "") -> str:
    """Jinja chat template that writes messages in OpenAI form as ``Encoder`` does; for ``tokenizer.chat_template``.

    Content is a string or a list of parts ``{"type": "text" | "image" | "image_url", ...}``; a picture becomes
    ``image``: ``"<IMG_CONTEXT>\\n"`` in the HF-native layout, ``"<image>\\n"`` in the original one. Without a system
    message the template's own is written.

    ``bos``: the tokenizer's BOS token, if it begins every text with it, else "". ``apply_chat_template`` tokenizes
    without special tokens, so BOS comes from here and comes once. Who tokenizes the written text himself must pass
    ``add_special_tokens=False``, or has BOS twice.
    """
    values = {
        "IMAGE": image,
        "BOS": bos,
        "SYSTEM_MESSAGE": template.system_message,
        "SYSTEM_PREFIX": template.system_prefix,
        "SYSTEM_SUFFIX": template.system_suffix,
        "USER_PREFIX": template.user_prefix,
        "USER_SUFFIX": template.user_suffix,
        "ASSISTANT_PREFIX": template.assistant_prefix,
        "ANSWER_PREFIX": template.answer_prefix,
        "STOP": template.stop,
        "AFTER": template.after,
        "ROLE_FAULT": _ROLE_FAULT,
    }
    # The escapes of a JSON string are escapes of a jinja string too.
    return (
        "".join(f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}\n" for name, text in values.items())
        + _JINJA
    )
