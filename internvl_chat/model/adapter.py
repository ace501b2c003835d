"""Which base model an adapter folder belongs to. Knows nothing of peft, so that it is cheap to ask."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.errors import CheckpointError
from internvl_chat.log import get_logger
from internvl_chat.model.fingerprint import fingerprint
from internvl_chat.model.hub import find_folder
from internvl_chat.model.layout import ADAPTER_FILE

log = get_logger(__name__)

ORIGIN = "internvl_adapter.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Origin:
    """What an adapter belongs to: the folder of its base model, the settings changed in its config.

    ``new_token_ids``: tokens of which the adapter holds rows of its own; ``fingerprint``: of the base's weights.
    """

    base: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    new_token_ids: tuple[int, ...] = ()
    fingerprint: str = ""


def is_adapter(folder: Path) -> bool:
    """Whether it is the folder of an adapter alone: a whole model beside it wins."""
    return (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file()


def read_origin(folder: Path, base: str | Path | None = None) -> Origin:
    """What the adapter in ``folder`` belongs to; ``base`` overrides where that is. Raises CheckpointError."""
    try:
        config = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        path = folder / ORIGIN
        own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable adapter ({error})") from error
    named = str(base or own.get("base") or config.get("base_model_name_or_path") or "")
    try:
        found = find_folder(named)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: its base model is not at {named or '(no path given)'}; say where it is: --base FOLDER"
        ) from error
    known = own.get("fingerprint", "")
    if known and fingerprint(found) != known:
        message = f"{folder}: the weights in {found} are not those that this adapter was trained on"
        if base is None:
            raise CheckpointError(f"{message}; they have changed since. Say where the right ones are: --base FOLDER")
        log.warning("%s, or another form of them (layout, dtype)", message)
    return Origin(found, own.get("overrides", {}), tuple(own.get("new_token_ids", ())), known)
