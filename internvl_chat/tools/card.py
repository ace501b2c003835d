"""The model card (README.md) of a folder that a tool wrote: what it is and how it was made."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from internvl_chat import __version__

CARD = "README.md"
_PACKAGES = ("torch", "transformers", "peft")


def write_card(path: Path, title: str, parents: Mapping[str, str], facts: Mapping[str, str], usage: str) -> None:
    """Write the card to ``path``. ``parents``: role -> folder it was made from; ``facts``: what was measured."""
    bases = "\n".join(f"- {Path(path).name}" for path in parents.values())
    made_from = "\n".join(f"- {role}: `{path}`" for role, path in parents.items())
    measured = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    command = shlex.join(["internvl", *sys.argv[1:]])
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    text = f"""---
pipeline_tag: image-text-to-text
tags:
- internvl
base_model:
{bases}
---

# {title}

Made from

{made_from}

by

```
{command}
```

(internvl_chat {__version__}, {versions}).

{measured}

```
{usage}
```
"""
    path.write_text(text, encoding="utf-8")
