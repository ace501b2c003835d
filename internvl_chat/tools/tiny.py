"""``internvl tiny``: a small random model folder in the published layout, with a tokenizer trained on the spot."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.constants import IMG_CONTEXT, SPECIAL_TOKENS
from internvl_chat.errors import ConfigError, nearest

if TYPE_CHECKING:
    from internvl_chat.model.chat import InternVLChatModel


@dataclass(frozen=True)
class TinyKind:
    """What differs between the tiny models: chat template, and special tokens in front of the nine of InternVL."""

    template: str
    markers: tuple[str, ...]
    eos: str
    pad: str
    bos: str | None
    stop: str


KINDS: dict[str, TinyKind] = {
    **{
        llm: TinyKind(
            template="internvl2_5",
            markers=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
            eos="<|im_end|>",
            pad="<|endoftext|>",
            bos=None,
            stop="<|im_end|>",
        )
        for llm in ("qwen2", "qwen3", "qwen3_moe")
    },
    **{
        llm: TinyKind(
            template="internlm2-chat",
            markers=("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"),
            eos="</s>",
            pad="</s>",
            bos="<s>",
            stop="<|im_end|>",
        )
        for llm in ("llama", "internlm2")
    },
    "phi3": TinyKind(
        template="phi3-chat",
        markers=("<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        bos="<s>",
        stop="<|end|>",
    ),
}

# Enough words for merges that make prompts short; any other text falls back to bytes.
CORPUS = (
    "system\nYou are a helpful assistant.\nuser\nassistant\nhuman\ngpt\n",
    "What number is written? The number is written in the picture. Which number is larger, the first or the second?",
    "What is the sum of the two numbers? Please describe the image shortly. Answer with a single word or phrase.",
    "Image-1: Image-2: Frame1: Frame2: There are no digits in this image. What do you see? I see a small picture.",
    "yes no one two three four five six seven eight nine zero left right larger smaller equal first second digits",
    "The quick brown fox jumps over the lazy dog. How many letters are there? What colour is it? red green blue black",
    "0 1 2 3 4 5 6 7 8 9 10 12 25 37 48 59 64 71 83 96 100 123 456 789",
)


# In a folder that was written here, so that it may be written over.
MARK = "made_by_internvl_tiny"


def make_tiny(
    out: str | Path,
    llm: str = "qwen2",
    *,
    image_size: int = 56,
    vision_hidden: int = 64,
    vision_layers: int = 2,
    llm_hidden: int = 64,
    llm_layers: int = 2,
    vocab_size: int = 600,
    template: str | None = None,
    seed: int = 0,
    vision_norm: str = "layer_norm",
    ps_version: str = "v2",
    max_dynamic_patch: int = 6,
    extra_texts: Iterable[str] | None = None,
) -> Path:
    """Write a model folder that loads, trains and chats; the same arguments give the same bytes.

    ``vocab_size`` bounds the byte-pair vocabulary (at least the 256 bytes), special tokens come on top.
    ``extra_texts`` teach the tokenizer more words. Returns the folder. Raises ConfigError for an unknown ``llm``.
    """
    import torch

    from internvl_chat.model.chat import InternVLChatModel
    from internvl_chat.model.save import save_model_folder

    if llm not in KINDS:
        raise ConfigError(f"--llm {llm!r}: use one of {', '.join(KINDS)}" + nearest(llm, KINDS))
    kind = KINDS[llm]
    tokenizer = train_tokenizer(kind, vocab_size, extra_texts or ())
    config = tiny_config(
        llm,
        tokenizer,
        image_size=image_size,
        vision=_vision(image_size, vision_hidden, vision_layers, vision_norm),
        language=_language(llm, tokenizer, llm_hidden, llm_layers),
        template=template or kind.template,
        ps_version=ps_version,
        max_dynamic_patch=max_dynamic_patch,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: InternVLChatModel = InternVLChatModel(config)
    stops = sorted({tokenizer.convert_tokens_to_ids(token) for token in (kind.stop, kind.eos)})
    folder = Path(out)
    save_model_folder(model.float(), tokenizer, folder, stop_token_ids=stops)
    (folder / MARK).touch()
    return folder


def train_tokenizer(kind: TinyKind, vocab_size: int, extra_texts: Iterable[str]) -> Any:
    """Byte-level BPE tokenizer over ``CORPUS`` and ``extra_texts``, digits one by one, special tokens at the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(256, vocab_size),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([*CORPUS, *extra_texts], trainer)
    core.add_special_tokens([*kind.markers, *SPECIAL_TOKENS])
    if kind.bos is not None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A",
            pair=f"{kind.bos} $A {kind.bos} $B",
            special_tokens=[(kind.bos, core.token_to_id(kind.bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=kind.bos,
        eos_token=kind.eos,
        pad_token=kind.pad,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(
    llm: str,
    tokenizer: Any,
    *,
    image_size: int,
    vision: dict[str, Any],
    language: dict[str, Any],
    template: str,
    ps_version: str,
    max_dynamic_patch: int,
) -> Any:
    """Chat config of a tiny model: dynamic tiling with thumbnail, as in the releases since 1.5."""
    from internvl_chat.model.config import InternVLChatConfig

    return InternVLChatConfig(
        vision_config=vision,
        llm_config={"model_type": llm, **language},
        template=template,
        force_image_size=image_size,
        downsample_ratio=0.5,
        dynamic_image_size=True,
        use_thumbnail=True,
        ps_version=ps_version,
        min_dynamic_patch=1,
        max_dynamic_patch=max_dynamic_patch,
        img_context_token_id=tokenizer.get_vocab()[IMG_CONTEXT],
    )


def _vision(image_size: int, hidden: int, layers: int, norm: str) -> dict[str, Any]:
    """Vision config of either kind in small: LayerNorm with qkv bias, or RMSNorm with normalised queries and keys."""
    plain = norm == "layer_norm"
    return {
        "image_size": image_size,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // 16),
        "norm_type": norm,
        "qkv_bias": plain,
        "qk_normalization": not plain,
        "initializer_factor": 1.0,
        # The usual 0.02 suits widths in the thousands; at this width a model starts learning several times later.
        "initializer_range": hidden**-0.5,
    }


def _language(llm: str, tokenizer: Any, hidden: int, layers: int) -> dict[str, Any]:
    """llm_config in small; grouped queries wherever the number of heads allows it."""
    heads = max(1, hidden // 16)
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "max_position_embeddings": 8192,
        "initializer_range": hidden**-0.5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if llm in ("qwen3", "qwen3_moe"):
        values["head_dim"] = 16
    if llm == "qwen3_moe":
        values |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 2 * hidden}
    if llm == "internlm2":
        values["bias"] = False
    return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl tiny``."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--llm", choices=sorted(KINDS), default="qwen2", help="kind of language model")
    parser.add_argument("--image_size", type=int, default=56, help="side of a tile in pixels, a multiple of 28")
    parser.add_argument("--vision_hidden", type=int, default=64, help="width of the vision tower, a multiple of 16")
    parser.add_argument("--vision_layers", type=int, default=2, help="layers of the vision tower")
    parser.add_argument("--llm_hidden", type=int, default=64, help="width of the language model, a multiple of 16")
    parser.add_argument("--llm_layers", type=int, default=2, help="layers of the language model")
    parser.add_argument("--vocab_size", type=int, default=600, help="size of the byte-pair vocabulary")
    parser.add_argument("--template", default=None, help="chat template; None: that of the language model")
    parser.add_argument(
        "--vision_norm", choices=("layer_norm", "rms_norm"), default="layer_norm", help="as InternViT-300M, or as 6B"
    )
    parser.add_argument("--ps_version", choices=("v1", "v2"), default="v2", help="pixel shuffle")
    parser.add_argument("--max_dynamic_patch", type=int, default=6, help="largest number of tiles per picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")


def run(args: argparse.Namespace) -> int:
    """Write the folder that the arguments describe and say where it is. Returns the exit status."""
    folder = Path(args.out)
    if (folder / "config.json").exists() and not (folder / MARK).exists():
        raise ConfigError(f"{folder} already holds a model that `internvl tiny` did not write; choose another folder")
    options = {key: getattr(args, key) for key in ("image_size", "vision_hidden", "vision_layers", "llm_hidden")}
    options |= {key: getattr(args, key) for key in ("llm_layers", "vocab_size", "template", "vision_norm")}
    options |= {key: getattr(args, key) for key in ("ps_version", "max_dynamic_patch", "seed")}
    folder = make_tiny(args.out, args.llm, **options)
    print(f"wrote a tiny {args.llm} chat model to {folder}")
    return 0
