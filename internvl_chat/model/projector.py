"""From the features of the vision tower to embeddings of the language model: pixel shuffle, then a small MLP."""

from __future__ import annotations

from torch import Tensor, nn

from internvl_chat.errors import ConfigError


def merge_factor(downsample_ratio: float) -> int:
    """Patches merged along each side: 2 for a ratio of 0.5. Raises ConfigError if the ratio is not 1/n."""
    factor = round(1 / downsample_ratio) if downsample_ratio > 0 else 0
    if factor < 1 or abs(factor * downsample_ratio - 1) > 1e-6:
        raise ConfigError(f"downsample_ratio {downsample_ratio} must be 1, 1/2, 1/3, ...")
    return factor


def pixel_shuffle(features: Tensor, scale: float = 0.5, ps_version: str = "v2") -> Tensor:
    """Neighbouring patches ``(N, H, W, C)`` merged into channels: ``(N, H*scale, W*scale, C/scale**2)``.

    v2 keeps rows as rows; v1, the bug of the first releases that their weights have learnt, gives the transposed grid
    (``(N, W*scale, H*scale, C/scale**2)``). Raises ValueError if the grid cannot be cut.
    """
    batch, height, width, channels = features.shape
    factor = merge_factor(scale)
    if height % factor or width % factor:
        raise ValueError(f"a grid of {height} x {width} patches cannot be merged by {factor} x {factor}")
    blocks = features.reshape(batch, height // factor, factor, width // factor, factor, channels)
    order = (0, 3, 1, 2, 4, 5) if ps_version == "v1" else (0, 1, 3, 2, 4, 5)
    return blocks.permute(order).flatten(3)


def build_projector(vision_hidden: int, llm_hidden: int, downsample_ratio: float) -> nn.Sequential:
    """The module ``mlp1`` (keys 0, 1, 3): ``(..., vision_hidden / ratio**2) -> (..., llm_hidden)``."""
    merged = vision_hidden * merge_factor(downsample_ratio) ** 2
    return nn.Sequential(
        nn.LayerNorm(merged),
        nn.Linear(merged, llm_hidden),
        nn.GELU(),
        nn.Linear(llm_hidden, llm_hidden),
    )


def project(mlp1: nn.Module, patches: Tensor, scale: float, ps_version: str) -> Tensor:
    """Patch features ``(N, H*W, C)`` of square tiles as ``(N, H*W*scale**2, llm_hidden)``."""
    batch, count, channels = patches.shape
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(f"{count} patches per tile do not form a square")
    merged = pixel_shuffle(patches.reshape(batch, side, side, channels), scale, ps_version)
    projected: Tensor = mlp1(merged.reshape(batch, -1, merged.shape[-1]))
    return projected
