"""A model folder as users and servers want it: with our chat template and stop ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from internvl_chat.constants import IMAGE_PLACEHOLDER, IMG_CONTEXT
from internvl_chat.data.chat_template import flattened_chat_template, template_of, write_chat_template
from internvl_chat.data.template import Template
from internvl_chat.data.tokens import bos_of
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.save import save_hf_folder, save_model_folder

Layout = Literal["original", "hf"]
LAYOUTS: tuple[Layout, ...] = ("original", "hf")


def write_folder(
    model: InternVLChatModel,
    tokenizer: Any,
    folder: Path,
    *,
    layout: Layout = "original",
    source: Path | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write ``model`` in one of the two layouts. ``source``: the folder it came from, for its modelling code.

    The chat template is that of the conversation template which the model was trained with, so that a server asks as
    we trained. Raises ConfigError for a model that names no template, or that the HF-native layout cannot express.
    """
    template = template_of(model.config, tokenizer)
    stop = [tokenizer.convert_tokens_to_ids(template.stop)]
    tokenizer = copy.copy(tokenizer)
    picture = f"{IMG_CONTEXT if layout == 'hf' else IMAGE_PLACEHOLDER}\n"
    if isinstance(template, Template):
        bos = tokenizer.bos_token if bos_of(tokenizer) else ""
        tokenizer.chat_template = write_chat_template(template, picture, bos)
    else:
        tokenizer.chat_template = flattened_chat_template(tokenizer.chat_template, picture)
    if layout == "hf":
        save_hf_folder(model, tokenizer, folder, stop_token_ids=stop)
    else:
        save_model_folder(model, tokenizer, folder, state_dict=state_dict, stop_token_ids=stop, source=source)
