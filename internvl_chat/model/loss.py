"""The training loss: a weight per supervised token, and cross-entropy from hidden states without full logits.

Shapes: ``T`` tokens of a row, ``M`` supervised tokens, ``H`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.errors import ConfigError, nearest

REDUCTIONS = ("token", "sample", "square")
# Logits held at once: 2**27 fp32 numbers are 512 MiB.
MAX_LOGITS = 2**27


def token_weights(labels: Tensor, cu_seqlens: Tensor | None = None, reduction: str = "token") -> Tensor:
    """Weight of every label ``(B, T)`` in the loss, float32 of the same shape; 0 where the label is ignored.

    With n supervised tokens in a sample each weighs 1 (``token``), 1/n (``sample``) or 1/sqrt(n) (``square``). Samples
    are the rows, or the segments of the one packed row that ``cu_seqlens`` (S+1,) gives. The first token of a sample
    has nothing before it to be predicted from, so it never counts. Raises ConfigError for an unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(
            f"loss_reduction {reduction!r}: use one of {', '.join(REDUCTIONS)}" + nearest(reduction, REDUCTIONS)
        )
    supervised = labels != IGNORE_INDEX
    supervised = supervised & ~_starts(labels, cu_seqlens)
    if reduction == "token":
        return supervised.float()
    if cu_seqlens is None:
        count = supervised.sum(-1, keepdim=True)
    else:
        segment = _starts(labels, cu_seqlens)[0].long().cumsum(0) - 1
        per_segment = torch.zeros(labels.shape[1], dtype=torch.long, device=labels.device)
        per_segment.scatter_add_(0, segment, supervised[0].long())
        count = per_segment[segment].unsqueeze(0)
    count = count.clamp(min=1).float()
    weights = 1.0 / count if reduction == "sample" else count.rsqrt()
    return weights * supervised


def _starts(labels: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Bool ``(B, T)``: true at the first token of every sample."""
    rows, length = labels.shape
    # One column more than tokens: the border of an empty last sample falls into it.
    first = torch.zeros(rows, length + 1, dtype=torch.bool, device=labels.device)
    if cu_seqlens is None:
        first[:, 0] = True
    elif rows == 1:
        first[0, cu_seqlens[:-1].to(device=labels.device, dtype=torch.long)] = True
    else:
        raise ValueError(f"cu_seqlens describes one packed row, the labels have shape {tuple(labels.shape)}")
    return first[:, :length]


def next_token_targets(
    labels: Tensor, weights: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What to predict, from where, and how much it weighs: ``(index (M,), target (M,), weight (M,) float32)``.

    ``labels`` (B, T): position t of the flattened batch is trained on the label of t + 1 with the weight at t + 1.
    ``weights`` None means 1 each. Labels at the start of a sample are never targets. How many there are depends on the
    labels: on an accelerator this waits for the device.
    """
    wanted = (labels != IGNORE_INDEX) & ~_starts(labels, cu_seqlens)
    place = wanted.flatten().nonzero().squeeze(1)
    target = labels.flatten()[place]
    weight = torch.ones_like(target, dtype=torch.float32) if weights is None else weights.flatten()[place].float()
    return place - 1, target, weight


def divide_loss(total: Tensor, denominator: Tensor | float | int) -> Tensor:
    """``total / denominator`` element by element, and no NaN for a batch in which nothing is supervised."""
    bottom = torch.as_tensor(denominator, dtype=total.dtype, device=total.device)
    return total / torch.where(bottom > 0, bottom, torch.ones_like(bottom))


class ChunkedLMHead(nn.Linear):
    """Output layer of the language model that can also give the loss, so that logits never exist all at once.

    It is one module call either way: under ZeRO-3 every rank gathers the weight exactly once per micro-batch, also a
    rank that has nothing to supervise.
    """

    @classmethod
    def adopt(cls, linear: nn.Linear) -> ChunkedLMHead:
        """The same layer with the same Parameter objects (tied, partitioned or on meta: nothing is touched).

        Raises ConfigError for a layer that is more than a plain Linear (a LoRA wrapper): it would lose what it adds.
        """
        if type(linear) is not nn.Linear:
            raise ConfigError(f"the output layer is a {type(linear).__name__}; it must be a plain Linear")
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head.in_features, head.out_features = linear.in_features, linear.out_features
        head.weight = linear.weight
        head.register_parameter("bias", linear.bias)
        head.train(linear.training)
        return head

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        chunk: int | None = None,
        each: bool = False,
    ) -> Any:
        """``(..., H)`` -> logits ``(..., V)``; with targets, ``hidden (M, H)`` -> scalar ``sum_i weight_i * CE_i``.

        The sum is float32 (float64 for float64 input). ``chunk`` rows of logits are held at a time. With ``each`` the
        unweighted cross-entropies ``(M,)`` come too, without gradients.
        """
        if targets is None:
            return F.linear(hidden, self.weight, self.bias)
        if weights is None:
            weights = torch.ones_like(targets, dtype=torch.float32)
        if each:
            return chunked_cross_entropy(hidden, self.weight, self.bias, targets, weights, chunk, each=True)
        return chunked_cross_entropy(hidden, self.weight, self.bias, targets, weights, chunk)


@overload
def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    chunk: int | None = None,
    *,
    each: Literal[False] = False,
) -> Tensor: ...


@overload
def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    chunk: int | None = None,
    *,
    each: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    chunk: int | None = None,
    *,
    each: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``sum_i weights_i * cross_entropy(hidden_i @ weight.T + bias, targets_i)``, scalar, gradients made on the way.

    hidden (M, H), weight (V, H), bias (V,) or None, targets (M,) int64, weights (M,). M may be 0: the result is 0 and
    still carries (zero) gradients to hidden and weight. With ``each`` also the cross-entropies (M,) themselves,
    unweighted and without gradients. Raises ValueError on shapes that do not fit.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1] or weights.shape != targets.shape:
        raise ValueError(f"shapes do not fit: {tuple(hidden.shape)}, {tuple(targets.shape)}, {tuple(weights.shape)}")
    compute = compute_dtype(hidden, weight)
    rows = chunk or max(1, min(MAX_LOGITS // weight.shape[0], max(1, hidden.shape[0])))
    need_grad = torch.is_grad_enabled()
    total, losses = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, weights, rows, compute, need_grad)
    return (total, losses) if each else total


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the output layer multiplies in: autocast's dtype where that is on, else the wider of the two."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(hidden.dtype, weight.dtype)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk. Backward only scales what forward has stored (``H``- and weight-sized)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        rows: int,
        compute: torch.dtype,
        need_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        accumulate = torch.promote_types(compute, torch.float32)
        need_hidden, need_weight, need_bias = (need_grad and needed for needed in ctx.needs_input_grad[:3])
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # As large as the vocabulary: not filled with zeros where the first chunk is written over them.
        room = torch.empty if len(hidden) else torch.zeros
        grad_weight = room(weight.shape, dtype=accumulate, device=weight.device) if need_weight else None
        grad_bias = torch.zeros(weight.shape[0], dtype=accumulate, device=weight.device) if need_bias else None
        total = torch.zeros((), dtype=accumulate, device=hidden.device)
        losses = torch.empty(hidden.shape[0], dtype=accumulate, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(compute)
            offset = None if bias is None else bias.to(compute)
            for start in range(0, hidden.shape[0], rows):
                part = slice(start, start + rows)
                inputs, scale = hidden[part].to(compute), weights[part].to(accumulate)
                logits = F.linear(inputs, matrix, offset).to(accumulate)
                top = logits.logsumexp(-1, keepdim=True)
                at_target = logits.gather(1, targets[part, None])
                losses[part] = (top - at_target).squeeze(1)
                total += (losses[part] * scale).sum()
                if not (need_hidden or need_weight or need_bias):
                    continue
                grad = logits.sub_(top).exp_()  # now the softmax
                grad.scatter_add_(1, targets[part, None], -torch.ones_like(at_target)).mul_(scale[:, None])
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = grad.to(compute)
                if grad_hidden is not None:
                    grad_hidden[part] = (grad @ matrix).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, grad, inputs, first=not start)
                del logits, grad  # else they are alive while the next chunk is made
        stored_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        stored_bias = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
        ctx.save_for_backward(grad_hidden, stored_weight, stored_bias)
        ctx.mark_non_differentiable(losses)
        return total, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = (None if g is None else g * grad_total.to(g.dtype) for g in ctx.saved_tensors)
        return (*grads, None, None, None, None, None)


def _add_product(into: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """``into += left.T @ right``, in one go where the dtypes agree; ``first``: nothing is in it yet."""
    if into.dtype == left.dtype:
        into.addmm_(left.t(), right, beta=0 if first else 1)
    elif first:
        into.copy_(left.t() @ right)
    else:
        into += left.t() @ right
