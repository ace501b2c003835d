"""What a user may set about the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class DataArguments:
    """None means: what the checkpoint says."""

    meta_path: str | None = field(
        default=None, metadata={"help": "Manifest (JSON or YAML) that names the annotations."}
    )
    eval_meta_path: str | None = field(
        default=None,
        metadata={"help": "Manifest of what is evaluated on, beside the lines that --meta_path holds out of training."},
    )
    eval_tasks: str | None = field(
        default=None,
        metadata={
            "help": "Benchmarks that are asked at each evaluation: names of `internvl eval`, separated by commas."
        },
    )
    eval_task_items: int = field(
        default=64, metadata={"help": "At most so many items of each of --eval_tasks, always the same; 0: all."}
    )
    eval_data_root: str = field(default="data", metadata={"help": "Folder that the data of --eval_tasks lie in."})
    conv_style: str | None = field(
        default=None,
        metadata={"help": "Conversation template; chat_template = whatever the tokenizer's own chat template says."},
    )
    system_message: str | None = field(
        default=None, metadata={"help": "Written where a conversation has no system turn. Default: the template's."}
    )
    max_seq_length: int = field(default=8192, metadata={"help": "Most tokens of one sample; see --long_samples."})
    long_samples: Literal["drop", "fail", "fewer_tiles", "truncate"] = field(
        default="drop",
        metadata={
            "help": "What becomes of samples beyond --max_seq_length or the tile budget: left out and listed, the run "
            "stops, fewer tiles (then frames), or whole rounds left away from the end."
        },
    )
    force_image_size: int | None = field(
        default=None, metadata={"help": "Side of a tile in pixels; position embeddings are resized to it."}
    )
    down_sample_ratio: float | None = field(
        default=None, metadata={"help": "Pixel-shuffle factor; must be the checkpoint's."}
    )
    pad2square: bool = field(
        default=False, metadata={"help": "Pad to a square with the mean colour first (only without tiling)."}
    )
    dynamic_image_size: bool | None = field(default=None, metadata={"help": "Cut pictures into tiles by aspect ratio."})
    use_thumbnail: bool | None = field(
        default=None, metadata={"help": "Append a tile of the whole picture when there is more than one."}
    )
    min_dynamic_patch: int | None = field(default=None, metadata={"help": "Fewest tiles of a picture."})
    max_dynamic_patch: int | None = field(
        default=None, metadata={"help": "Most tiles of a sample, thumbnails not counted."}
    )
    min_num_frame: int = field(default=8, metadata={"help": "Fewest frames of a video."})
    max_num_frame: int = field(default=32, metadata={"help": "Most frames of a video, one tile each."})
    sampling_method: str = field(
        default="rand",
        metadata={"help": "Which frames: rand or middle of as many equal parts, or fpsX, that many per second."},
    )
    remote_media: bool = field(
        default=False, metadata={"help": "Fetch pictures and videos from s3://, http(s):// and other machines."}
    )
    normalize_type: Literal["imagenet", "clip", "siglip"] | None = field(
        default=None, metadata={"help": "Mean and deviation that pixels are normalised with."}
    )
    image_backend: Literal["torch", "pillow"] = field(
        default="torch", metadata={"help": "Resizing: torch is faster, pillow is bit-exact with the original."}
    )
    use_packed_ds: bool = field(default=False, metadata={"help": "Pack whole samples into one row, no padding."})
    max_packed_tokens: int | None = field(
        default=None,
        metadata={"help": "Token budget of a pack (default 8192), or of a padded batch with its padding (none)."},
    )
    num_images_expected: int | None = field(
        default=None, metadata={"help": "Tile budget of a pack (default 40), or of a padded batch (none)."}
    )
    worst_first: bool = field(
        default=False,
        metadata={"help": "Begin each epoch with its heaviest steps: what runs out of memory does so at once."},
    )
    use_data_resampling: bool = field(
        default=False,
        metadata={"help": "Weigh data sets by the square root of their size instead of their size."},
    )
    loss_reduction: Literal["token", "sample", "square"] = field(
        default="token",
        metadata={"help": "Weight of a token: 1, 1/n or 1/sqrt(n), n the supervised tokens of its sample."},
    )
    max_fault_share: float = field(
        default=0.01,
        metadata={"help": "Share of a data set's lines (0..1) that may be unusable; above it the run stops."},
    )
    index_dir: str | None = field(
        default=None,
        metadata={"help": "Where the indexes of annotations are kept. Default: ~/.cache/internvl_chat/index."},
    )
    index_workers: int | None = field(
        default=None, metadata={"help": "Processes that build an index. Default: all cores."}
    )
    rebuild_index: bool = field(default=False, metadata={"help": "Build the indexes anew."})

    def __post_init__(self) -> None:
        if self.use_packed_ds:
            self.max_packed_tokens = self.max_packed_tokens or 8192
            self.num_images_expected = self.num_images_expected or 40
