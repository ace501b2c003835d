"""A model made fit for a serving engine: the layout that it takes, and a tower that it runs as we do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError
from internvl_chat.model.build import check_folder, load_config
from internvl_chat.model.draft import layers_left
from internvl_chat.model.parts import cut_tower
from internvl_chat.tools.engines import facts_of, layout_for


def layout_from_config(source: Path, engine: str) -> str:
    """The layout that ``engine`` takes of the model in ``source``, before its weights are read.

    Raises ConfigError, with the reasons, if it takes none; CheckpointError for a damaged folder.
    """
    config = load_config(source)
    check_folder(source, config)
    vision = config.vision_config
    # As loading and ``fit_tower`` will leave it.
    vision.num_hidden_layers = layers_left(vision.num_hidden_layers, config.select_layer)
    vision.image_size = config.force_image_size = config.image_size
    config.select_layer = -1
    return layout_for(engine, config, code=any(source.glob("*.py")))


def check_code(source: Path, engine: str) -> None:
    """Raise ConfigError if ``engine`` runs the release's code for the original layout, and the folder has none."""
    if facts_of(engine)["layouts"]["original"].get("remote_code") and not any(source.glob("*.py")):
        raise ConfigError(
            f"--format original --for {engine}: it runs the release's own code, and {source} has no *.py files; start "
            "from a folder that has them, or leave --format out"
        )


def fit_tower(model: Any) -> None:
    """Drop the layers of the tower that no picture reaches, and name the size of tiles, in place.

    Engines run all layers that are there, or look for the hidden state of another layer in their own way.
    """
    config = model.config
    config.force_image_size = config.image_size
    if config.select_layer != -1:
        cut_tower(model.vision_model, config.select_layer)
        config.vision_config = model.vision_model.config
        config.select_layer = -1
