"""The table of language models: model type of ``llm_config`` -> what this code must know about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from internvl_chat.errors import ConfigError, nearest
from internvl_chat.model.internlm2 import register_internlm2


@dataclass(frozen=True)
class LLMSpec:
    """One language-model family.

    ``architecture`` is the class name in published ``llm_config.architectures``; ``rope_type_on_disk`` maps today's
    rope names to the ones that the code shipped with older checkpoints understands; ``hf_type`` is the model type of
    the same network in transformers itself, if it is another one.
    """

    model_type: str
    architecture: str
    rope_type_on_disk: tuple[tuple[str, str], ...] = ()
    hf_type: str | None = None


# The classes themselves come from transformers' auto classes; InternLM2 registers there first.
LLMS: dict[str, LLMSpec] = {
    spec.model_type: spec
    for spec in (
        LLMSpec("qwen2", "Qwen2ForCausalLM"),
        LLMSpec("qwen3", "Qwen3ForCausalLM"),
        LLMSpec("llama", "LlamaForCausalLM"),
        LLMSpec("phi3", "Phi3ForCausalLM", rope_type_on_disk=(("longrope", "su"),)),
        LLMSpec("internlm2", "InternLM2ForCausalLM", hf_type="llama"),
        LLMSpec("qwen3_moe", "Qwen3MoeForCausalLM"),
    )
}


def register_language_models() -> None:
    """Make the families that are not in transformers itself known to it; calling it again changes nothing."""
    register_internlm2()


def llm_spec(model_type: str) -> LLMSpec:
    """Entry of the table for ``model_type``. Raises ConfigError that names the supported types."""
    if model_type not in LLMS:
        raise ConfigError(
            f"language model type {model_type!r} is not supported: use one of {', '.join(sorted(LLMS))}"
            + nearest(model_type, LLMS)
        )
    return LLMS[model_type]


def build_llm(config: PreTrainedConfig) -> Any:
    """A language model with fresh weights, by its class's constructor. Raises ConfigError for an unsupported type.

    ``AutoModelForCausalLM.from_config`` would cut it into ZeRO-3 pieces whenever a run uses them, also where only names
    and shapes are wanted; within ``from_pretrained`` the constructor is cut like the rest.
    """
    llm_spec(config.model_type)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return kind(config)


def hf_llm_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config under which transformers alone builds the same language model: a copy, of another class if need be."""
    hf_type = llm_spec(config.model_type).hf_type
    values = config.to_dict()
    values.pop("auto_map", None)
    if hf_type is None:
        return type(config).from_dict(values)
    values.pop("bias", None)
    values["architectures"] = [llm_spec(hf_type).architecture]
    return AutoConfig.for_model(hf_type, **{k: v for k, v in values.items() if k != "model_type"})


def model_type_of(llm_config: dict[str, Any]) -> str:
    """Model type of a raw ``llm_config``: ``model_type``, else by ``architectures[0]``. Raises ConfigError."""
    if model_type := llm_config.get("model_type"):
        return llm_spec(model_type).model_type
    architectures = llm_config.get("architectures") or []
    for spec in LLMS.values():
        if architectures and spec.architecture == architectures[0]:
            return spec.model_type
    raise ConfigError(
        f"llm_config has no model_type and its architectures {architectures} are not known: set llm_config.model_type "
        f"to one of {', '.join(sorted(LLMS))}"
    )
