"""A LoRA adapter of ours as vLLM loads it: peft's folder with the names of transformers' own InternVL.

peft over ``InternVLForConditionalGeneration`` reads the same folder, and proves it here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.tools.card import CARD, write_card
from internvl_chat.tools.engines import MAX_LORA_RANKS, command_line, facts_of, problems, shortened

if TYPE_CHECKING:
    from internvl_chat.model.adapter import Origin

_OURS = "base_model.model."
_LANGUAGE = f"{_OURS}language_model.model."
_FUSED = ("wqkv", "wo", "w1", "w2", "w3")
_PARTS = (".lora_A.weight", ".lora_B.weight")


def export_adapter(source: Path, out: Path, engine: str, base: str | None, dtype: str) -> None:
    """Write the adapter in ``source`` to ``out``, and its base to ``out/base`` unless ``base`` names its export.

    Raises ConfigError for what the engine cannot serve as an adapter, with the reason; CheckpointError if the adapter
    does not fit, or if what is written computes something else than the merged model.
    """
    from safetensors.torch import load_file, save_file

    from internvl_chat.model.adapter import WEIGHTS, read_origin
    from internvl_chat.model.layout import ADAPTER_FILE
    from internvl_chat.model.merge import load_merged

    settings, names = _read_adapter(source)
    if reasons := why_not(settings, names, engine):
        raise ConfigError(
            f"--for {engine}: {source} cannot be served as an adapter: {'; '.join(reasons)}. Merge it instead: "
            f"internvl merge-lora {source} MERGED --format hf"
        )
    origin = read_origin(source)
    folder = _base_folder(origin, out, engine, base, dtype)
    tensors = {_engine_name(name, engine): tensor for name, tensor in load_file(source / WEIGHTS).items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    settings |= {
        "base_model_name_or_path": str(folder.resolve()),
        "target_modules": sorted({name.removeprefix(_OURS).rsplit(".lora_", 1)[0] for name in tensors}),
        "rank_pattern": {},
        "alpha_pattern": {},
        "exclude_modules": None,
        "modules_to_save": None,
    }
    (out / ADAPTER_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / WEIGHTS).chmod((out / ADAPTER_FILE).stat().st_mode)
    merged, _ = load_merged(source, None, dtype)
    difference = _prove(merged, folder, out)
    command = command_line(engine, folder, out, int(settings["r"]))
    write_card(
        out / CARD,
        f"{source.name}, LoRA adapter for {engine}",
        {"adapter": str(source), "base": str(origin.base)},
        {"largest difference of logits to the merged model, through transformers and peft": f"{difference:.3g}"},
        command,
    )
    print(
        f"wrote {out}; through transformers and peft its logits differ from the merged ones by at most {difference:.3g}"
    )
    print(f"{engine} takes it (checked by its source, not run); start it with:\n{command}")


def _read_adapter(source: Path) -> tuple[dict[str, Any], list[str]]:
    from internvl_chat.model.adapter import WEIGHTS
    from internvl_chat.model.layout import ADAPTER_FILE, head_of

    try:
        settings = json.loads((source / ADAPTER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source / ADAPTER_FILE} cannot be read ({error})") from error
    if not (source / WEIGHTS).is_file():
        raise CheckpointError(f"{source}: no {WEIGHTS}; this is no adapter folder, or its copy is incomplete")
    return settings, sorted(head_of(source / WEIGHTS))


def why_not(settings: dict[str, Any], names: Iterable[str], engine: str) -> list[str]:
    """What keeps the engine from taking an adapter; empty if nothing does."""
    facts = facts_of(engine).get("lora")
    if facts is None:
        return [f"how {engine} takes adapters of this model was not established; vllm is"]
    reasons = [f"{key} is set, which {engine} does not know" for key in facts["unsupported"] if settings.get(key)]
    if settings.get("peft_type") != "LORA":
        reasons.append(f"it is of type {settings.get('peft_type')!r}, not LORA")
    if settings.get("bias", "none") != "none":
        reasons.append(f"bias {settings['bias']!r}: {engine} takes 'none' only")
    if int(settings.get("r") or 0) > MAX_LORA_RANKS[-1]:
        reasons.append(f"rank {settings['r']} is beyond {MAX_LORA_RANKS[-1]}, the largest that {engine} takes")
    lora = [name for name in names if name.endswith(_PARTS)]
    full = sorted(set(names) - set(lora))
    if full:
        reasons.append(
            f"it holds weights that trained in full ({shortened(full)}); a run with --freeze_mlp True and without "
            "--unfreeze_lm_head makes an adapter that fits"
        )
    vision = [name for name in lora if name.startswith(f"{_OURS}vision_model.")]
    if vision:
        reasons.append(
            f"it has LoRA in the vision tower ({len(vision)} matrices), which {engine}'s class of the HF-native layout "
            "does not take"
        )
    beside = [name for name in lora if name not in vision]
    if beside and all(name.startswith(facts["prefix"]) for name in beside):
        return [*reasons, f"its names are those of transformers' class already: {engine} takes it as it is"]
    strange = [name for name in beside if not name.startswith(_LANGUAGE) or _module(name) not in facts["modules"]]
    if strange:
        fused = any(_module(name) in _FUSED for name in strange)
        why = ": names of the release's own InternLM2 code, whose wqkv this layout holds as three matrices"
        reasons.append(f"the HF-native layout has no such modules: {shortened(strange)}{why if fused else ''}")
    return reasons


def _module(name: str) -> str:
    """``...self_attn.q_proj.lora_A.weight`` -> ``q_proj``."""
    return name.rpartition(".lora_")[0].rpartition(".")[2]


def _engine_name(name: str, engine: str) -> str:
    prefix: str = facts_of(engine)["lora"]["prefix"]
    return prefix + name.removeprefix(_LANGUAGE)


def _base_folder(origin: Origin, out: Path, engine: str, base: str | None, dtype: str) -> Path:
    """The HF-native base: the one that is named, or a new one with the settings of the run."""
    from internvl_chat.folder import write_folder
    from internvl_chat.model.build import load_model
    from internvl_chat.model.tokenizer import load_tokenizer
    from internvl_chat.tools.engine_fit import fit_tower

    if base is not None:
        folder = Path(base).expanduser()
        _check_base(folder, origin, engine)
        return folder
    folder = out / "base"
    model = load_model(origin.base, dtype, config_overrides=origin.overrides)
    fit_tower(model)
    write_folder(model, load_tokenizer(origin.base), folder, layout="hf", source=origin.base)
    if found := problems(folder, engine):
        raise CheckpointError(f"{folder} is written, but {engine} would not serve it: {'; '.join(found)}")
    return folder


def _check_base(folder: Path, origin: Origin, engine: str) -> None:
    """Raise ConfigError unless the folder is served, and set up as the run of the adapter was."""
    from internvl_chat.model.build import load_config
    from internvl_chat.tools.engines import layout_of

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--base {folder}: no readable config.json ({error})") from error
    mend = "leave --base out, and it is written to OUT/base"
    if layout_of(raw) != "hf":
        raise ConfigError(f"--base {folder} is not in the HF-native layout; {mend}")
    if found := problems(folder, engine):
        raise ConfigError(f"--base {folder}: {engine} would not serve it: {'; '.join(found)}; {mend}")
    wanted, have = load_config(origin.base, origin.overrides), load_config(folder)
    keys = ("template", "system_message", "min_dynamic_patch", "max_dynamic_patch", "dynamic_image_size", "image_size")
    other = [key for key in keys if getattr(wanted, key) != getattr(have, key)]
    if other:
        words = ", ".join(f"{key} {getattr(have, key)!r} for {getattr(wanted, key)!r}" for key in other)
        raise ConfigError(f"--base {folder} is not set up as the adapter was trained ({words}); {mend}")


def _prove(merged: Any, base: Path, adapter: Path) -> float:
    """Largest difference of logits between the merged model and transformers' own with peft's adapter.

    Raises CheckpointError if it is more than rounding.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from internvl_chat.tools.proof import logits_of, probe_logits

    expected, config, kind = logits_of(merged), merged.config, merged.dtype
    native = AutoModelForImageTextToText.from_pretrained(base, dtype=kind, local_files_only=True)
    model = PeftModel.from_pretrained(native, str(adapter), autocast_adapter_dtype=False).eval()
    sizes = (config.num_image_token, config.image_size, config.llm_config.vocab_size)
    found = probe_logits(model, native.config.image_token_id, *sizes)
    difference = float((found - expected).abs().max())
    allowed = float(expected.std()) * (1e-4 if kind == torch.float32 else 0.1)
    if not difference <= allowed:
        raise CheckpointError(
            f"{adapter}: with the base {base} it computes other logits than the merged model (largest difference "
            f"{difference:.3g}, {allowed:.3g} allowed): it belongs to another base, or report this"
        )
    return difference
