"""Attention over packed rows: one function for transformers' attention interface, and the choice of implementations.

A packed row is ``(1, T)`` tokens of several samples; ``lengths`` are the samples' lengths in order, as Python numbers,
so that no layer has to ask the device for them. The same function serves plain and padded batches and generation by
handing them to transformers' sdpa.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from internvl_chat.errors import ConfigError, nearest
from internvl_chat.log import get_logger

PACKED = "packed"
CHOICES = ("auto", PACKED, "sdpa", "eager", "flash_attention_2")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    packed_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside each sample of a packed row: ``(1, heads, T, D)`` -> ``(1, T, heads, D)``.

    Without ``packed_lengths`` the call is an ordinary one and goes to sdpa. Raises ValueError if positions restart but
    no lengths were given: the samples would see each other, and nothing would show it.
    """
    if packed_lengths is None:
        if attention_mask is None and query.shape[2] > 1 and getattr(module, "layer_idx", 0) == 0:
            _refuse_restart(kwargs.get("position_ids"))
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs
        )
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embedding leaves query and key in float32, which the fast kernels do not take.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if query.shape[0] != 1 or query.shape[2] != sum(packed_lengths):
        raise ValueError(f"packed lengths sum to {sum(packed_lengths)}, the row has shape {tuple(query.shape)}")
    # A window no sample reaches changes nothing.
    window = sliding_window if causal and sliding_window and sliding_window < max(packed_lengths) else None
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    if cu_seqlens is not None and dropout == 0.0 and _has_varlen_kernel(query):
        return _varlen(query, key, value, cu_seqlens, max(packed_lengths), scaling, causal, window), None
    return _per_sample(query, key, value, packed_lengths, scaling, dropout, causal, window), None


def packed_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """Mask for ``packed_attention``: none for a packed row (it would be T x T), else the one sdpa gets.

    transformers clears ``allow_is_causal_skip`` for rows whose positions restart; whether lengths came with them is
    checked by the attention function.
    """
    plain = attention_mask is None and q_length == kv_length and not use_vmap
    if plain and not allow_is_causal_skip and kwargs.get("q_offset", 0) == 0:
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        **kwargs,
    )


def register_packed_attention() -> None:
    """Make ``attn_implementation="packed"`` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, packed_mask)


def pack_kwargs(cu_seqlens: Tensor, device: torch.device) -> dict[str, Any]:
    """Keyword arguments that carry the sample borders of one packed row to every attention layer.

    ``cu_seqlens`` (S+1,) starts at 0; empty samples are dropped. One copy to the host if it lies on an accelerator.
    """
    borders = [int(b) for b in cu_seqlens.tolist()]
    if not borders or borders[0] != 0 or any(b < a for a, b in itertools.pairwise(borders)):
        raise ValueError(f"cu_seqlens must start at 0 and never fall, got {borders[:8]}")
    lengths = tuple(b - a for a, b in itertools.pairwise(borders) if b > a)
    cumulative = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    return {
        "packed_lengths": lengths,
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": max(lengths, default=0),
        "max_length_k": max(lengths, default=0),
    }


def restarts(position_ids: Tensor) -> Tensor:
    """Where a position does not follow its left neighbour: bool ``(B, T-1)``; true at t-1 if a sample starts at t."""
    return position_ids[:, 1:] - position_ids[:, :-1] != 1


def resolve_attention(name: str, device: str | torch.device | None = None) -> dict[str, str]:
    """``auto|packed|sdpa|eager|flash_attention_2`` -> transformers' implementation per part of the model.

    Raises ConfigError for an unknown name, and for flash-attn where it cannot run, saying what to use instead.
    """
    if name not in CHOICES:
        raise ConfigError(f"attn_implementation {name!r}: use one of {', '.join(CHOICES)}" + nearest(name, CHOICES))
    if name == "flash_attention_2":
        on_gpu = torch.device(device).type == "cuda" if device is not None else torch.cuda.is_available()
        if not on_gpu or importlib.util.find_spec("flash_attn") is None:
            missing = "the flash-attn package is not installed" if on_gpu else "there is no CUDA device"
            raise ConfigError(
                f"attn_implementation flash_attention_2: {missing}. Use --attn_implementation auto (torch's own "
                "variable-length kernel, no package needed) or `pip install flash-attn --no-build-isolation`"
            )
    # The vision tower has fixed lengths and no mask: sdpa reaches the fast kernel on every device.
    vision = name if name in ("eager", "flash_attention_2") else "sdpa"
    return {"": vision, "vision_config": vision, "llm_config": PACKED if name == "auto" else name}


def _refuse_restart(position_ids: Tensor | None) -> None:
    if position_ids is not None and position_ids.dim() == 2 and bool(restarts(position_ids).any()):
        raise ValueError(
            "position_ids restart inside a row but no sample lengths were given: the samples would attend to each "
            "other. Call InternVLChatModel.forward with cu_seqlens, or pass packed_lengths"
        )


def _per_sample(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    scaling: float | None,
    dropout: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    """sdpa sample by sample: any device and precision, memory and time linear in the number of samples."""
    parts = []
    shared: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True):
        length = q.shape[2]
        if window is not None and length > window:
            near = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - window)
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=near, **shared))
        else:
            parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal, **shared))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _has_varlen_kernel(query: Tensor) -> bool:
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    if _flash_attn() is None and _torch_varlen() is None:
        return False
    head_dim, generation = query.shape[-1], torch.cuda.get_device_capability(query.device)[0]
    return head_dim <= 256 and head_dim % 8 == 0 and generation >= 8  # the flash kernels start with Ampere


@functools.lru_cache(maxsize=1)
def _flash_attn() -> Any:
    """flash-attn's variable-length function if the package is there, else None; looked up once, at first use."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:  # built for another torch
        get_logger(__name__).warning("flash-attn is installed but cannot be loaded (%s): using torch's kernel", error)
        return None
    return flash_attn_varlen_func


@functools.lru_cache(maxsize=1)
def _torch_varlen() -> Any:
    """torch's variable-length function if this torch has it with today's arguments, else None."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    wanted = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if wanted <= set(inspect.signature(varlen_attn).parameters) else None


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    """One kernel call for the whole row, half precision on a GPU."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, D)
    if flash := _flash_attn():
        sides = (window - 1, 0) if window is not None else (-1, -1)
        out = flash(
            q, k, v, cu_seqlens, cu_seqlens, longest, longest, softmax_scale=scaling, causal=causal, window_size=sides
        )
        return out.unsqueeze(0)
    sides = (window - 1 if window is not None else -1, 0) if causal else (-1, -1)
    grouped = query.shape[1] != key.shape[1]
    lengths = (cu_seqlens, cu_seqlens, longest, longest)
    result: Any = _torch_varlen()(q, k, v, *lengths, scale=scaling, window_size=sides, enable_gqa=grouped)
    return result.unsqueeze(0)
