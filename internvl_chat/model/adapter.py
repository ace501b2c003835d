"""Which base model an adapter folder belongs to. Knows nothing of peft, so that it is cheap to ask."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.errors import CheckpointError
from internvl_chat.model.layout import ADAPTER_FILE

ORIGIN = "internvl_adapter.json"


@dataclass(frozen=True)
class Origin:
    """What an adapter belongs to: the folder of its base model, the settings changed in its config.

    ``new_token_ids``: tokens of which the adapter holds rows of its own.
    """

    base: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    new_token_ids: tuple[int, ...] = ()


def read_origin(folder: Path, base: str | Path | None = None) -> Origin:
    """What the adapter in ``folder`` belongs to; ``base`` overrides where that is. Raises CheckpointError."""
    try:
        config = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        path = folder / ORIGIN
        own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable adapter ({error})") from error
    found = Path(str(base or own.get("base") or config.get("base_model_name_or_path") or ""))
    if not (found / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: its base model is not at {str(found) or '(no path given)'}; say where it is: --base FOLDER"
        )
    return Origin(found, own.get("overrides", {}), tuple(own.get("new_token_ids", ())))
