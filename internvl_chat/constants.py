"""Facts shared by all layers: special tokens, ignored label, image statistics, limits."""

from __future__ import annotations

IGNORE_INDEX = -100

IMG_START = "<img>"
IMG_END = "</img>"
IMG_CONTEXT = "<IMG_CONTEXT>"
# Tokens that users write into text on purpose (grounding), as against the markers above, which only the code may place.
GROUNDING_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
# Order matters: new tokens get consecutive ids in this order, as in the published checkpoints.
SPECIAL_TOKENS = (IMG_START, IMG_END, IMG_CONTEXT, *GROUNDING_TOKENS)

# What a user writes in an annotation where a picture or a video stands.
IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"

# Per channel (mean, std) of RGB in [0, 1].
IMAGE_STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

# Answering many questions: most tokens of the prompts of a batch, pads included (of small models on large cards more
# fit, of large ones less), and threads that read and cut the pictures of the next one meanwhile.
BATCH_TOKENS = 65536
READERS = 2

# Pictures above this many pixels are refused: Pillow's own threshold for a suspected decompression bomb.
MAX_IMAGE_PIXELS = 89_478_485
# Files above these are not read: no camera makes them, and a worker would run out of memory.
MAX_PICTURE_BYTES = 256 * 2**20
MAX_VIDEO_BYTES = 4 * 2**30
# Frames of a video that is decoded as a whole to be counted (animated pictures, streams without times).
MAX_COUNTED_FRAMES = 100_000

# How long processes wait for each other, in seconds: at the start, and in a step; and how long before they say so.
START_TIMEOUT_S = 600.0
DDP_TIMEOUT_S = 1800.0
LATE_AFTER_S = 120.0
