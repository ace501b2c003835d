"""The end of a run: of LoRA, merge the adapter and write a plain model beside it."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from internvl_chat.folder import write_folder
from internvl_chat.log import get_logger
from internvl_chat.model.adapter import Origin
from internvl_chat.model.merge import load_merged
from internvl_chat.train import dist
from internvl_chat.train.source import whole_models
from internvl_chat.train.state import ADAPTER
from internvl_chat.train.trainer import InternVLTrainer

log = get_logger(__name__)


def finish(trainer: InternVLTrainer, output_dir: Path, merge: bool) -> Path:
    """The folder to use from now on. Merging reads base and adapter from disk again, as any later user would."""
    adapter = output_dir / ADAPTER
    if not isinstance(trainer.model, PeftModel):
        return output_dir
    if not merge:
        return adapter

    def write() -> None:
        origin: Origin = trainer.source.origin
        model, tokenizer = load_merged(adapter, origin.base)
        write_folder(model, tokenizer, output_dir, source=origin.base)

    with whole_models(trainer.args):
        dist.decide_on_main(write)
    log.info("adapter: %s; merged into its base: %s", adapter, output_dir)
    return output_dir
