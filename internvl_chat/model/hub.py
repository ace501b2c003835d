"""A model by folder or by its name on the hub (``OpenGVLab/InternVL3-2B``), as the original's scripts write it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import HfHubHTTPError

from internvl_chat.errors import CheckpointError, first_line
from internvl_chat.model.catalogue import releases

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Configs, tokenizers, safetensors and the code that travels with them; no second copy as .bin, no example pictures.
_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]
_WEIGHTS = ["*.safetensors"]


def find_folder(name: str | Path, weights: bool = True) -> Path:
    """The folder itself, or that of a hub model: from the hub's cache, downloaded into it if need be.

    Without ``weights`` only configs and tokenizer are. Raises CheckpointError for what is neither, and where the hub
    cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        return folder
    # A name on the hub looks like a path of two parts; where the first of them is a folder here, a path was meant.
    if not _NAME.fullmatch(str(name)) or folder.parent.is_dir():
        known = folder.name in {release.name for release in releases()}
        hint = f"; to get it: hf download OpenGVLab/{folder.name} --local-dir {name}" if known else ""
        raise CheckpointError(f"{name}: no such folder; check the path{hint}")
    try:
        return Path(snapshot_download(str(name), allow_patterns=_FILES + _WEIGHTS * weights))
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{name}: neither a folder nor a model on the hub; check the name") from error
    except LocalEntryNotFoundError as error:  # the hub is offline, or cannot be reached
        short = str(name).split("/")[-1]
        raise CheckpointError(
            f"{name}: no such folder, and not in the hub's cache; hf download {name} --local-dir pretrained/{short}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{name}: no such folder, and not to be had from the hub: {first_line(error)}") from error
