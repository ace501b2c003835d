"""Jinja chat templates: written for a named template; read, where a checkpoint is to be asked as its own one says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from internvl_chat.constants import SPECIAL_TOKENS
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.template import OWN_TEMPLATE, Frame, Framing, Template, get_template
from internvl_chat.errors import ConfigError, first_line

_SOME_DAY = "01 Jan 2025"
_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def template_of(config: Any, tokenizer: Any) -> Framing:
    """The template that a checkpoint's config names, with the system message that it sets, if it sets one.

    ``config`` is any object with ``template`` and ``system_message``. Raises ConfigError if it names none, or if its
    tokenizer's own one is asked for and cannot be used.
    """
    if config.template is None:
        raise ConfigError("the checkpoint names no template; say which one it was trained with: --conv_style")
    if config.template == OWN_TEMPLATE:
        return OwnTemplate(tokenizer, config.system_message)
    template = get_template(config.template)
    return template if config.system_message is None else replace(template, system_message=config.system_message)


@dataclass(frozen=True)
class OwnTemplate:
    """What the tokenizer's chat template writes, found by rendering it around placeholders.

    Works for any template that writes each message once, in order, and ends answers with a special token. Text that
    comes between the generation prompt and an answer (an empty block of thoughts) is the model's to write, so it is
    supervised. What a template does with a message's text (trimming) is not done. Samples must not depend on the clock:
    a template that takes the date from ``date_string``, as Llama's do, gets the same day always, others that write it
    are refused.
    """

    tokenizer: Any = field(repr=False)
    system_message: str | None = None
    writes_bos: bool = field(default=True, init=False)
    markers: tuple[str, ...] = field(init=False)
    stop: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"--conv_style {OWN_TEMPLATE}: the checkpoint's tokenizer has no chat template; name a template"
            )
        if "strftime_now" in self.tokenizer.chat_template and "date_string" not in self.tokenizer.chat_template:
            raise self._unusable("it writes the date of the day, on which samples must not depend")
        added = self.tokenizer.added_tokens_decoder.values()
        names = dict.fromkeys([*(str(t) for t in added if t.special), *self.tokenizer.all_special_tokens])
        # The longest first, as they are looked for in this order.
        markers = sorted((name for name in names if name not in SPECIAL_TOKENS), key=len, reverse=True)
        object.__setattr__(self, "markers", tuple(markers))
        behind = self.frames(("human", "gpt"), prompt=False)[-1].header
        object.__setattr__(self, "stop", next(name for name in markers if behind.startswith(name)))

    @property
    def name(self) -> str:
        return OWN_TEMPLATE

    def __repr__(self) -> str:  # goes into the key of an index
        probe = self.frames(("human", "gpt", "human", "gpt"), prompt=False)  # bos_token and such are in it
        return f"OwnTemplate({self.tokenizer.chat_template!r}, {self.system_message!r}, {self.markers!r}, {probe!r})"

    def frames(self, roles: Sequence[str], prompt: bool) -> tuple[Frame, ...]:
        """See Framing. Raises Fault for a system turn that the template refuses, ConfigError if it cannot be read."""
        texts = self._render(roles, prompt)
        frames = [Frame(text) for text in texts]
        for number, role in enumerate(roles):
            if role != "gpt":
                continue
            header = self._render(roles[:number], True)[-1]
            if not texts[number].startswith(header) or not texts[number + 1].startswith(self.markers):
                raise self._unusable("it does not write an answer behind its generation prompt, up to a special token")
            frames[number] = Frame(header, texts[number].removeprefix(header))
        return tuple(frames)

    def _render(self, roles: Sequence[str], prompt: bool) -> list[str]:
        """The text before, between and behind the messages."""
        marks = [f"@@message-{number}-goes-here@@" for number in range(len(roles))]
        messages = [{"role": _ROLES[role], "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, date_string=_SOME_DAY
            )
        except Exception as error:  # a template may raise whatever its author thought of
            if roles[0] == "system":
                what = f"the checkpoint's chat template takes no system turn here ({first_line(error)})"
                raise Fault(FaultCode.UNSUPPORTED, what, "remove the turn, or name another --conv_style") from error
            raise self._unusable(first_line(error)) from error
        texts = []
        for mark in marks:
            before, found, text = text.partition(mark)
            texts.append(before if found else mark)
        texts.append(text)
        if any(mark in text for mark in marks for text in texts):
            if roles[0] == "system":
                what = "the checkpoint's chat template does not write a system turn here"
                raise Fault(FaultCode.UNSUPPORTED, what, "remove the turn, or name another --conv_style")
            raise self._unusable("it does not write every message once, in order")
        return texts

    def _unusable(self, why: str) -> ConfigError:
        return ConfigError(
            f"--conv_style {OWN_TEMPLATE}: the checkpoint's chat template cannot be used: {why}; name a template"
        )


# Content in parts -> one text, for the template of a language model that knows texts only.
_FLATTEN = """\
{#- pictures and texts of a message become one text -#}
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set joined = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- set joined.text = joined.text + (part['text'] if part['type'] == 'text' else IMAGE) -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=joined.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
_FLATTEN_HEAD = _FLATTEN.splitlines()[0]


def flattened_chat_template(own: str, image: str) -> str:
    """A language model's chat template that also takes content in parts; pictures become ``image``."""
    if _FLATTEN_HEAD in own:  # saved by us before
        own = own.split("{#- own -#}\n", 1)[1]
    return f"{{%- set IMAGE = {json.dumps(image)} -%}}\n{_FLATTEN}{{#- own -#}}\n{own}"


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


def write_chat_template(template: Template, image: str, bos: str = "") -> str:
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
