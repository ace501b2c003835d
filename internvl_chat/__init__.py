"""Training and use of InternVL-family vision-language models (InternViT + MLP + LLM).

``load`` and ``Chat`` are the short way to ask a model::

    from internvl_chat import Chat, load
    print(Chat(load("pretrained/InternVL2-2B")).ask("What is this?", images=["photo.jpg"]))
"""

from typing import Any

__version__ = "0.1.0"
_LATE = {"load": "internvl_chat.infer.load", "Chat": "internvl_chat.infer.chat"}


def __getattr__(name: str) -> Any:
    """What is heavy to import is imported when it is asked for."""
    if name not in _LATE:
        raise AttributeError(f"module 'internvl_chat' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
