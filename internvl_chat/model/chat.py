"""InternVLChatModel: tiles and tokens in, loss or logits out.

Shapes: ``B`` rows (1 for a packed row), ``T`` tokens, ``N`` tiles, ``S`` samples in a packed row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from internvl_chat.constants import IMAGE_STATISTICS
from internvl_chat.errors import ConfigError
from internvl_chat.model.attention import PACKED, pack_kwargs, register_packed_attention, restarts
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.llm import build_llm
from internvl_chat.model.loss import ChunkedLMHead, compute_dtype, divide_loss, next_token_targets
from internvl_chat.model.projector import build_projector, project
from internvl_chat.model.vit import InternVisionModel


@dataclass
class ChatOutput(CausalLMOutputWithPast):
    """Beside the library's fields: ``token_loss`` (M,), the cross-entropy of each target, without gradients."""

    token_loss: Tensor | None = None


class InternVLChatModel(PreTrainedModel):
    """InternViT (``vision_model``), MLP (``mlp1``) and a causal language model (``language_model``)."""

    config_class = InternVLChatConfig
    config: InternVLChatConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    # The loss takes num_items_in_batch, so the Trainer must neither divide by accumulation steps nor average.
    accepts_loss_kwargs = True
    _no_split_modules = ["VisionLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: InternVLChatConfig) -> None:
        register_packed_attention()
        super().__init__(config)
        vision, llm = config.vision_config, config.llm_config
        self.vision_model = InternVisionModel(vision)
        self.language_model = build_llm(llm)
        self.mlp1 = build_projector(vision.hidden_size, llm.hidden_size, config.downsample_ratio)
        self.set_output_embeddings(self.language_model.get_output_embeddings())
        self.post_init()

    # -- embeddings ---------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        head = new_embeddings if isinstance(new_embeddings, ChunkedLMHead) else ChunkedLMHead.adopt(new_embeddings)
        self.language_model.set_output_embeddings(head)

    def set_activation_checkpointing(self, vision: bool, llm: bool) -> None:
        """Recompute activations in the backward pass, each tower by itself."""
        for tower, wanted in ((self.vision_model, vision), (self.language_model, llm)):
            if wanted:
                tower.activation_checkpointing_enable({"use_reentrant": False})
            else:
                tower.activation_checkpointing_disable()

    # -- pictures -----------------------------------------------------------------------------------------------------

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        """Tiles ``(N, 3, S, S)`` -> ``(N, num_image_token, hidden_size)`` embeddings of the language model.

        uint8 tiles are normalised here, on the device; float tiles are taken as normalised already.
        """
        dtype = self.vision_model.embeddings.patch_embedding.weight.dtype
        if pixel_values.dtype == torch.uint8:
            pixel_values = normalize_tiles(pixel_values, self.config.normalize_type)
        hidden = self.vision_model(pixel_values.to(dtype), select_layer=self.config.select_layer).last_hidden_state
        # The class token has no place in the grid.
        return project(self.mlp1, hidden[:, 1:], self.config.downsample_ratio, self.config.ps_version)

    def _features(self, pixel_values: Tensor | None, image_flags: Tensor | None) -> Tensor | None:
        """Features ``(N*num_image_token, hidden_size)`` of the tiles that count, None if there are none."""
        if pixel_values is not None and image_flags is not None:
            pixel_values = pixel_values[image_flags.flatten().to(pixel_values.device) == 1]
        if pixel_values is None or pixel_values.shape[0] == 0:
            return None
        return self.extract_feature(pixel_values).flatten(0, 1)

    def _blank(self, device: torch.device) -> Tensor:
        """Zero, by way of one blank tile through the tower and the MLP.

        Every rank must call the same modules in the same order, else the collectives of ZeRO and DDP do not pair up.
        """
        side = self.config.image_size
        tile = torch.zeros(1, self.vision_model.config.num_channels, side, side, device=device)
        return self.extract_feature(tile).sum() * 0.0

    def _embed(self, input_ids: Tensor, features: Tensor | None, places: Tensor | None = None) -> Tensor:
        """Token embeddings ``(B, T, hidden_size)`` with the features in place of the image placeholders.

        ``places`` (P,): where these are in the flattened ids, if that is known.
        Raises ValueError if placeholders and features differ in number, ConfigError if the placeholder is unknown.
        """
        token = self.config.img_context_token_id
        if token is None and features is not None:
            raise ConfigError(
                "config.img_context_token_id is not set, so pictures have no place in the text: load the model with "
                "load_model, or set it to the tokenizer's id of <IMG_CONTEXT>"
            )
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        if token is None:
            return embeds
        if places is None:
            places = (input_ids.flatten() == token).nonzero().squeeze(1)
        count = 0 if features is None else features.shape[0]
        if places.shape[0] != count:
            raise ValueError(
                f"{places.shape[0]} image placeholders in the text but {count} image features "
                f"({self.config.num_image_token} per tile): text and pictures of this batch do not belong together"
            )
        if features is None:
            return embeds
        flat = embeds.flatten(0, 1)
        # Not in place: with activation checkpointing the embeddings are a leaf that requires grad.
        return flat.index_copy(0, places, features.to(flat.dtype)).view_as(embeds)

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | tuple[int, ...] | None = None,
        loss_weight: Tensor | None = None,
        num_items_in_batch: Tensor | float | int | None = None,
        image_flags: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool = False,
        targets: tuple[Tensor, Tensor, Tensor] | None = None,
        image_places: Tensor | None = None,
        **kwargs: Any,
    ) -> ChatOutput:
        """Loss (with ``labels`` or ``targets``) or logits of a packed row or a padded batch.

        Packed: input_ids, labels, position_ids (1, T), cu_seqlens (S+1,) int32, no attention_mask.
        Padded: input_ids, labels, attention_mask (B, T). pixel_values (N, 3, S, S) uint8, or normalised floats.
        loss = sum_i loss_weight_i * CE_i / num_items_in_batch; loss_weight (B, T) float32, None = 1 each;
        num_items_in_batch None = the sum of the weights. ``targets``: ``next_token_targets`` of labels and weights, in
        their stead; with it and ``image_places`` (``_embed``) nothing waits for the device. Raises ValueError on inputs
        that contradict each other.
        """
        supervised = labels is not None or targets is not None
        if inputs_embeds is None and input_ids is not None:
            features = self._features(pixel_values, image_flags)
            blank = self._blank(input_ids.device) if features is None and supervised else None
            inputs_embeds = self._embed(input_ids, features, image_places)
            if blank is not None:
                inputs_embeds = inputs_embeds + blank.to(inputs_embeds.dtype)
        elif inputs_embeds is None or input_ids is not None or pixel_values is not None:
            raise ValueError("give input_ids or inputs_embeds, one of them; pixel_values need input_ids")
        cu_seqlens, row = self._packing(inputs_embeds, position_ids, attention_mask, cu_seqlens, past_key_values)
        hidden = self.language_model.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=self._ready_mask(inputs_embeds) if row else attention_mask,
            past_key_values=past_key_values,
            # Said explicitly: left at its default, the cache switches off the packing detection of transformers.
            use_cache=bool(use_cache) and not supervised and cu_seqlens is None,
            **{"position_ids": position_ids, **row},
            **kwargs,
        )
        if targets is None and labels is not None:
            targets = next_token_targets(labels, loss_weight, cu_seqlens)
        if targets is None:
            logits = self._head()(slice_logits_to_keep(hidden.last_hidden_state, logits_to_keep))
            return ChatOutput(logits=logits, past_key_values=hidden.past_key_values)
        return self._loss(hidden.last_hidden_state, targets, num_items_in_batch, return_logits)

    def _packing(
        self,
        embeds: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        cu_seqlens: Tensor | tuple[int, ...] | None,
        past_key_values: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Sample borders of a packed row, and the keyword arguments that take them to the attention layers."""
        batch, length = embeds.shape[:2]
        if isinstance(cu_seqlens, tuple):
            cu_seqlens = torch.tensor(cu_seqlens, dtype=torch.int32)
        if cu_seqlens is None:
            if position_ids is None or past_key_values is not None or length < 2:
                return None, {}
            breaks = restarts(position_ids)
            if attention_mask is not None:
                breaks = breaks & (attention_mask[:, 1:] != 0) & (attention_mask[:, :-1] != 0)
            starts = breaks.nonzero()[:, -1] + 1
            if starts.shape[0] == 0:
                return None, {}
            if attention_mask is None and batch == 1:
                cu_seqlens = F.pad(F.pad(starts, (1, 0)), (0, 1), value=length)
        if cu_seqlens is None or batch != 1:
            raise ValueError(f"only a single row without attention_mask can be packed; this batch has {batch} rows")
        if attention_mask is not None:
            raise ValueError("a packed row takes no attention_mask: with one, transformers lets its samples leak")
        row = pack_kwargs(cu_seqlens, torch.device("cpu"))
        borders = row["cu_seq_lens_q"]
        if embeds.is_cuda:
            borders = borders.pin_memory().to(embeds.device, non_blocking=True)  # else the copy waits for the queue
        row |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders}
        lengths = row["packed_lengths"]
        if sum(lengths) != length:
            raise ValueError(f"cu_seqlens ends at {sum(lengths)}, the row has {length} tokens")
        if position_ids is None:
            row["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None].to(embeds.device)
        elif self.config.llm_config._attn_implementation != PACKED and len(lengths) > 1:
            last = borders[1:-1].long() - 1
            if not bool(restarts(position_ids)[0, last].all()):
                # sdpa and eager find the samples by their positions alone.
                raise ValueError("position_ids run on across a border of cu_seqlens: they must restart per sample")
        return row["cu_seq_lens_q"], row

    def _ready_mask(self, embeds: Tensor) -> Tensor | None:
        """What transformers takes for a finished mask (four dimensions) where the packed attention wants none.

        Given None it would ask the device whether positions restart, and wait for the answer.
        """
        packed = self.config.llm_config._attn_implementation == PACKED
        return embeds.new_ones((1, 1, 1, 1), dtype=torch.bool) if packed else None

    def _head(self) -> nn.Linear:
        # peft keeps an output layer that trained in full inside a wrapper, which hands everything on.
        head = self.get_output_embeddings()
        if not isinstance(getattr(head, "original_module", head), ChunkedLMHead):
            # Replaced from outside, e.g. by a resize of the language model's vocabulary.
            self.set_output_embeddings(self.get_output_embeddings())
        return self.get_output_embeddings()

    def _loss(
        self,
        hidden: Tensor,
        targets: tuple[Tensor, Tensor, Tensor],
        num_items_in_batch: Tensor | float | int | None,
        return_logits: bool,
    ) -> ChatOutput:
        """Weighted loss, and the logits (B, T, V) if they are asked for; the head runs once either way."""
        place, target, weight = targets
        denominator = weight.sum() if num_items_in_batch is None else num_items_in_batch
        # Dividing the float32 weights keeps the factor exact; bf16 gradients would be scaled by a rounded one. fp16
        # gradients would vanish that way, so there the sum is divided, after the loss scale has entered.
        early = compute_dtype(hidden, next(self._head().parameters())) != torch.float16
        if early:
            weight = divide_loss(weight, denominator)
        logits = None
        if return_logits:
            logits = self._head()(hidden)
            losses = F.cross_entropy(logits.flatten(0, 1)[place].float(), target, reduction="none")
            total, losses = (losses * weight).sum(), losses.detach()
        else:
            chosen = hidden.flatten(0, 1).index_select(0, place)
            total, losses = self._head()(chosen, targets=target, weights=weight, each=True)
        return ChatOutput(
            loss=total if early else divide_loss(total, denominator), logits=logits, token_loss=losses.detach()
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """New token ids for prompts ``input_ids`` (B, T), pictures as tiles or as ready ``visual_features``.

        visual_features (N, num_image_token, hidden_size) as ``extract_feature`` gives them. Everything else goes to
        the language model's own ``generate``. Raises ValueError without input_ids or on a placeholder mismatch.
        """
        if input_ids is None:
            raise ValueError("generate needs input_ids")
        features = self._features(pixel_values, None)
        if visual_features is not None:
            features = visual_features.flatten(0, 1).to(input_ids.device)
        embeds = self._embed(input_ids, features)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.language_model.generate(
            inputs_embeds=embeds, attention_mask=attention_mask, generation_config=generation_config, **kwargs
        )


def normalize_tiles(pixel_values: Tensor, normalize_type: str) -> Tensor:
    """uint8 tiles ``(N, 3, S, S)`` -> float32, mean 0 and deviation 1 by the named statistics."""
    mean, std = IMAGE_STATISTICS[normalize_type]
    tiles = pixel_values.float().div_(255)
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        tiles[:, channel].sub_(m).div_(s)
    return tiles
