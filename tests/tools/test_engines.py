"""Exports for serving engines: what vLLM, LMDeploy and SGLang read of a folder is there; what is not is found.

None of them runs here. Their facts are data (tools/engines.json), read from their wheels; the references of these
tests are transformers and peft, and names written out by hand.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from internvl_chat.cli import main
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.adapter import Origin
from internvl_chat.model.build import load_model
from internvl_chat.model.fingerprint import fingerprint
from internvl_chat.model.lora import LoraOptions, save_adapter
from internvl_chat.model.merge import load_merged
from internvl_chat.model.tune import Tuning, apply_tuning
from internvl_chat.tools.adapter_export import export_adapter, why_not
from internvl_chat.tools.engine_weights import engine_name, engine_parameters
from internvl_chat.tools.engines import ENGINES, command_line, facts_of, problems
from internvl_chat.tools.proof import logits_of, probe_logits
from internvl_chat.tools.tiny import make_tiny

LLMS = ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2")
DOCS = Path(__file__).parents[2] / "docs" / "deploy.md"
SMALL = {"vision_hidden": 32, "llm_hidden": 32, "vocab_size": 300}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than such small matrices do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {llm: make_tiny(root / llm, llm, seed=5, max_dynamic_patch=4, **SMALL) for llm in LLMS}


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory) -> dict[str, Path]:
    """HF-native exports, which no test changes."""
    root = tmp_path_factory.mktemp("exported")
    for llm, folder in models.items():
        assert main(["export", str(folder), str(root / llm), "--for", "vllm"]) == 0
    return {llm: root / llm for llm in LLMS}


@pytest.fixture()
def copy(exported, tmp_path) -> Path:
    """One of them, to be damaged."""
    return shutil.copytree(exported["qwen2"], tmp_path / "copy")


def raw_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def change(path: Path, key: str, value: object = None) -> None:
    """Set a dotted key of a JSON file; None removes it."""
    values = json.loads(path.read_text())
    *way, last = key.split(".")
    part = values
    for word in way:
        part = part[word]
    if value is None:
        del part[last]
    else:
        part[last] = value
    path.write_text(json.dumps(values))


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("llm", LLMS)
def test_the_export_fits_vllm_and_lmdeploy(exported, llm):
    folder = exported[llm]
    assert [problems(folder, engine) for engine in ("vllm", "lmdeploy")] == [[], []]
    words = shlex.split(command_line("lmdeploy", folder))
    assert words[:4] == ["lmdeploy", "serve", "api_server", str(folder)]
    assert (words[-2:] == ["--backend", "pytorch"]) == (llm == "phi3")  # TurboMind has no Phi-3


def test_what_is_printed(models, tmp_path, capsys):
    assert main(["export", str(models["llama"]), str(tmp_path / "out"), "--for", "vllm"]) == 0
    *_, start, command = capsys.readouterr().out.strip().splitlines()
    assert "vllm takes it" in start
    assert shlex.split(command)[:3] == ["vllm", "serve", str(tmp_path / "out")]
    assert command in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("llm", ["qwen2", "qwen3_moe", "internlm2"])
def test_sglang_takes_the_original_layout_with_tiles_of_448(tmp_path, llm, capsys):
    folder = make_tiny(tmp_path / "tiny", llm, image_size=448, **SMALL)
    out = tmp_path / "out"
    assert main(["export", str(folder), str(out), "--for", "sglang"]) == 0
    assert raw_of(out)["model_type"] == "internvl_chat" and problems(out, "sglang") == []
    # By the folder's name alone SGLang would ask with a template of its own.
    assert f"--chat-template {out}/chat_template.jinja" in capsys.readouterr().out
    change(out / "config.json", "llm_config.tie_word_embeddings", True)
    assert any("tie_word_embeddings" in one for one in problems(out, "sglang"))


@pytest.mark.parametrize("llm", ["qwen2", "phi3"])
def test_sglang_runs_other_models_through_transformers(models, tmp_path, llm):
    assert main(["export", str(models[llm]), str(tmp_path / "out"), "--for", "sglang"]) == 0
    assert raw_of(tmp_path / "out")["model_type"] == "internvl"


def test_sglang_has_no_way_to_run_small_tiles_and_experts(models, tmp_path):
    with pytest.raises(ConfigError, match=r"force_image_size 56.*Qwen3MoeForCausalLM"):
        from internvl_chat.tools.engine_fit import layout_from_config

        layout_from_config(models["qwen3_moe"], "sglang")
    assert main(["export", str(models["qwen3_moe"]), str(tmp_path / "out"), "--for", "sglang"]) != 0
    assert not (tmp_path / "out").exists()


def test_the_original_layout_needs_the_code_of_the_release(models, tmp_path, capsys):
    source = shutil.copytree(models["qwen2"], tmp_path / "source")
    arguments = ["export", str(source), "--format", "original", "--for", "vllm"]
    assert main([*arguments[:2], str(tmp_path / "a"), *arguments[2:]]) != 0
    assert "has no *.py files; start from a folder that has them" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    (source / "configuration_internvl_chat.py").write_text("# the release's\n")
    code = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    change(source / "config.json", "auto_map", code)
    assert main([*arguments[:2], str(tmp_path / "b"), *arguments[2:]]) == 0
    assert "--trust-remote-code" in capsys.readouterr().out and raw_of(tmp_path / "b")["auto_map"] == code
    assert problems(tmp_path / "b", "lmdeploy") == []


def test_layers_behind_the_chosen_one_are_cut_off(tmp_path):
    """Engines ignore select_layer, or count in their own way."""
    folder = make_tiny(tmp_path / "tiny", "qwen2", vision_layers=3, **SMALL)
    change(folder / "config.json", "select_layer", -2)
    assert main(["export", str(folder), str(tmp_path / "whole")]) == 0
    assert any("vision_feature_layer -2" in one for one in problems(tmp_path / "whole", "vllm"))
    assert main(["export", str(folder), str(tmp_path / "cut"), "--for", "vllm"]) == 0
    assert raw_of(tmp_path / "cut")["vision_config"]["num_hidden_layers"] == 2
    assert problems(tmp_path / "cut", "vllm") == []
    expected, found = (logits_of(load_model(path, torch.float32)) for path in (folder, tmp_path / "cut"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_one_tile_stays_one_tile(tmp_path):
    """transformers' processor cuts by default, in all engines, so a "no" must be written as a limit of one."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    folder = make_tiny(tmp_path / "tiny", "qwen2", **SMALL)
    wide = Image.fromarray(np.zeros((60, 180, 3), np.uint8))
    for cuts, tiles in ((True, 4), (False, 1)):
        change(folder / "config.json", "dynamic_image_size", cuts)
        assert main(["export", str(folder), str(tmp_path / str(cuts))]) == 0
        processor = GotOcr2ImageProcessorPil.from_pretrained(tmp_path / str(cuts))
        assert len(processor(wide, crop_to_patches=True, return_tensors="pt")["pixel_values"]) == tiles


def test_experts_are_counted_under_the_old_name_too(models, exported):
    """transformers writes num_local_experts since 5; LMDeploy runs with 4.x too, which would count 128."""
    assert raw_of(exported["qwen3_moe"])["text_config"]["num_experts"] == 4
    again = load_model(exported["qwen3_moe"], torch.float32)  # both names in one file do no harm
    torch.testing.assert_close(logits_of(again), logits_of(load_model(models["qwen3_moe"], torch.float32)))


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_every_key_and_file_is_missed(exported, tmp_path, engine):
    rules = facts_of(engine)["layouts"]["hf"]
    for number, key in enumerate(rules["keys"]):
        folder = shutil.copytree(exported["qwen2"], tmp_path / f"key{number}")
        change(folder / "config.json", key)
        assert any(key.rpartition(".")[2] in one for one in problems(folder, engine)), key
    for number, file in enumerate(rules["files"]):
        folder = shutil.copytree(exported["qwen2"], tmp_path / f"file{number}")
        (folder / file).unlink()
        assert any(file in one for one in problems(folder, engine)), file
        for key in rules["files"][file]:
            shutil.copy(exported["qwen2"] / file, folder / file)
            change(folder / file, key)
            assert any(file in one and key in one for one in problems(folder, engine)), key


def test_no_chat_template(copy):
    (copy / "chat_template.jinja").unlink()
    assert all(any("chat_template" in one for one in problems(copy, engine)) for engine in ENGINES)
    change(copy / "tokenizer_config.json", "chat_template", "{{ messages }}")
    assert problems(copy, "vllm") == []


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_renamed_or_gone(copy, engine):
    tensors = load_file(copy / "model.safetensors")
    odd = {name.replace("mlp.fc1", "mlp.dense1"): tensor for name, tensor in tensors.items()}
    save_file(odd, copy / "model.safetensors", metadata={"format": "pt"})
    unknown, missing = problems(copy, engine)
    assert unknown.startswith("4 tensors") and "mlp.dense1" in unknown
    assert missing.startswith("4 parameters") and "mlp.fc1" in missing
    few = {name: tensor for name, tensor in tensors.items() if ".layers.1.self_attn.k_proj." not in name}
    save_file(few, copy / "model.safetensors", metadata={"format": "pt"})
    (missing,) = problems(copy, engine)
    assert missing.startswith("2 parameters")  # weight and bias


def test_tokens(copy):
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["content"] != "<img>"]
    path.write_text(json.dumps(tokenizer))
    assert any("<img>" in one for one in problems(copy, "lmdeploy"))


def test_a_video_token_beyond_the_embedding(copy):
    """312 tokens; vLLM pads 312 rows to 320, so that number 312 is there, and 256 rows to 256."""
    change(copy / "config.json", "text_config.vocab_size", 256)
    assert any("<video> becomes number 312" in one for one in problems(copy, "vllm"))


def test_other_damage(copy, exported, tmp_path):
    change(copy / "config.json", "text_config.architectures", ["GemmaForCausalLM"])
    assert any("GemmaForCausalLM" in one for one in problems(copy, "vllm"))
    named = shutil.copytree(exported["qwen2"], tmp_path / "Vicuna-mine")
    assert problems(named, "vllm") == [] and any("vicuna" in one for one in problems(named, "lmdeploy"))
    with pytest.raises(ConfigError, match=r"--for vlm: no such engine.*vllm"):
        problems(copy, "vlm")
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        problems(copy, "vllm")


# -- names ------------------------------------------------------------------------------------------------------------


def through_vllm(name: str) -> str:
    """The HF-native names as vLLM's own mapper, written down here once more, sends them on; q, k, v share one."""
    prefixes = {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    for old, new in prefixes.items():
        if name.startswith(old):
            name = name.replace(old, new, 1)
    if name.startswith("language_model."):
        for part in "qkv":
            name = name.replace(f".{part}_proj.", f".qkv_proj[{part}].")
        for number, part in enumerate(("gate", "up")):
            name = name.replace(f".mlp.{part}_proj.", f".mlp.gate_up_proj[{number}].")
    return name


@pytest.mark.parametrize("llm", [llm for llm in LLMS if llm != "qwen3_moe"])
def test_renaming_is_that_of_vllm(exported, llm):
    rules = facts_of("vllm")["layouts"]["hf"]
    names = list(load_file(exported[llm] / "model.safetensors"))
    today = list(AutoModelForImageTextToText.from_pretrained(exported[llm]).state_dict())
    assert any(name.startswith("model.vision_tower.") for name in today)  # the names that transformers has in memory
    for name in (*names, *today):
        assert engine_name(name, rules) == through_vllm(name)
    raw = raw_of(exported[llm])
    wanted = engine_parameters(raw, raw["text_config"], rules)
    assert {engine_name(name, rules) for name in today} == {engine_name(name, rules) for name in names} == wanted


def test_parameters_by_hand(exported):
    """qwen2 with two layers: bias on q, k, v only."""
    raw = raw_of(exported["qwen2"])
    found = engine_parameters(raw, raw["text_config"], facts_of("vllm")["layouts"]["hf"])
    language = {name for name in found if name.startswith("language_model.")}
    expected = {f"language_model.{name}.weight" for name in ("model.embed_tokens", "model.norm", "lm_head")}
    for layer in (f"language_model.model.layers.{number}" for number in range(2)):
        expected |= {f"{layer}.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")}
        expected |= {f"{layer}.self_attn.qkv_proj[{p}].{kind}" for p in "qkv" for kind in ("weight", "bias")}
        expected |= {f"{layer}.self_attn.o_proj.weight", f"{layer}.mlp.down_proj.weight"}
        expected |= {f"{layer}.mlp.gate_up_proj[{number}].weight" for number in range(2)}
    assert language == expected
    assert len(found - language) == 6 + 4 + 2 * (6 + 2 + 4 + 4 + 2)


def test_names_of_the_original_layout(models):
    """The loaders of the original layout: every tensor of a published folder lands on a parameter of theirs."""
    for llm, folder in models.items():
        raw, names = raw_of(folder), list(load_file(folder / "model.safetensors"))
        for engine in ENGINES:
            rules = facts_of(engine)["layouts"]["original"]
            if raw["llm_config"]["architectures"][0] in rules["llms"]:
                loaded = [engine_name(name, rules) for name in names]
                assert len(set(loaded)) == len(loaded)
                assert set(loaded) == engine_parameters(raw, raw["llm_config"], rules), (llm, engine)


def commands_of(text: str) -> list[list[str]]:
    """The engines' commands in the code blocks of a page, continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith((*ENGINES, "python -m sglang"))]


def test_flags_exist():
    """Those that are printed, and those of docs/deploy.md, are flags of the engine."""
    seen = dict.fromkeys(ENGINES, 0)
    for words in commands_of(DOCS.read_text()):
        engine = next(name for name in ENGINES if name in " ".join(words[:3]))
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert set(flags) <= set(facts_of(engine)["flags"]), words
        seen[engine] += 1
    assert min(seen.values()) >= 2, seen
    for engine in ENGINES:
        facts = facts_of(engine)
        lists = [facts["serve"], facts.get("adapter", []), facts.get("quantise", [])]
        for rules in facts["layouts"].values():
            lists += [rules.get("options", []), *rules.get("options_by_llm", {}).values()]
        assert {word for words in lists for word in words if word.startswith("--")} <= set(facts["flags"])
        assert facts["version"] in DOCS.read_text()


# -- adapters ---------------------------------------------------------------------------------------------------------


def trained(base: Path, folder: Path, tuning: Tuning, **overrides: object) -> Path:
    """An adapter folder whose weights are far from their start."""
    model = apply_tuning(load_model(base, torch.float32), tuning)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save_adapter(model, folder, Origin(base, overrides=overrides, fingerprint=fingerprint(base)))
    return folder


def lora(**options: object) -> Tuning:
    return Tuning(freeze_mlp=True, freeze_backbone=True, lora=LoraOptions(llm_rank=4, dropout=0.0, **options))


@pytest.mark.parametrize("llm", LLMS)
def test_an_adapter_computes_what_the_merged_model_does(models, tmp_path, llm, capsys):
    """Through transformers' own class and peft alone, and every matrix has its place in vLLM."""
    source = trained(models[llm], tmp_path / "adapter", lora(rslora=llm == "llama"))
    out = tmp_path / "out"
    assert main(["export", str(source), str(out), "--for", "vllm"]) == 0
    merged, _ = load_merged(source, None, "float32")
    native = AutoModelForImageTextToText.from_pretrained(out / "base", dtype=torch.float32)
    sizes = (merged.config.num_image_token, merged.config.image_size, merged.config.llm_config.vocab_size)
    plain = probe_logits(native, native.config.image_token_id, *sizes)
    with_adapter = PeftModel.from_pretrained(native, str(out)).eval()
    found, expected = probe_logits(with_adapter, native.config.image_token_id, *sizes), logits_of(merged)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float((plain - expected).abs().max()) > 0.01

    rules, raw = facts_of("vllm")["layouts"]["hf"], raw_of(out / "base")
    parameters = engine_parameters(raw, raw["text_config"], rules)
    settings = json.loads((out / "adapter_config.json").read_text())
    names = list(load_file(out / "adapter_model.safetensors"))
    for name in names:
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        assert part in ("A.weight", "B.weight") and module in settings["target_modules"]
        assert engine_name(f"{module}.weight", rules) in parameters
    assert settings["base_model_name_or_path"] == str(out / "base")
    printed = capsys.readouterr().out
    assert f"--enable-lora --max-lora-rank 8 --lora-modules out={out}" in printed


def test_the_base_has_the_settings_of_the_run(models, exported, tmp_path):
    source = trained(models["qwen2"], tmp_path / "adapter", lora(), max_dynamic_patch=2)
    export_adapter(source, tmp_path / "out", "vllm", None, "auto")
    assert json.loads((tmp_path / "out/base/preprocessor_config.json").read_text())["max_patches"] == 2
    with pytest.raises(ConfigError, match=r"max_dynamic_patch 4 for 2.*leave --base out"):
        export_adapter(source, tmp_path / "b", "vllm", str(exported["qwen2"]), "auto")
    with pytest.raises(ConfigError, match="not in the HF-native layout"):
        export_adapter(source, tmp_path / "b", "vllm", str(models["qwen2"]), "auto")
    again = trained(models["qwen2"], tmp_path / "again", lora())
    export_adapter(again, tmp_path / "c", "vllm", str(exported["qwen2"]), "auto")
    assert not (tmp_path / "c" / "base").exists()
    with pytest.raises(CheckpointError, match="belongs to another base"):
        export_adapter(again, tmp_path / "d", "vllm", str(other_weights(models["qwen2"], tmp_path)), "auto")


def other_weights(folder: Path, tmp_path: Path) -> Path:
    """An export of the same shapes and settings, other weights."""
    other = make_tiny(tmp_path / "other", "qwen2", seed=6, max_dynamic_patch=4, **SMALL)
    assert main(["export", str(other), str(tmp_path / "other-hf")]) == 0
    return tmp_path / "other-hf"


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        (Tuning(freeze_mlp=True, lora=LoraOptions(llm_rank=4, vision_rank=2)), "LoRA in the vision tower"),
        (Tuning(freeze_backbone=True, lora=LoraOptions(llm_rank=4)), "trained in full .*mlp1"),
        (lora(dora=True), "use_dora is set"),
        (Tuning(freeze_mlp=True, freeze_backbone=True, lora=LoraOptions(llm_rank=4), new_token_ids=(3,)), "in full"),
    ],
    ids=["vision", "mlp", "dora", "token rows"],
)
def test_adapters_that_vllm_cannot_take(models, tmp_path, tuning, reason):
    source = trained(models["qwen2"], tmp_path / "adapter", tuning)
    with pytest.raises(ConfigError, match=f"{reason}.*Merge it instead: internvl merge-lora"):
        export_adapter(source, tmp_path / "out", "vllm", None, "auto")
    assert not (tmp_path / "out").exists()


def test_other_reasons():
    settings = {"peft_type": "LORA", "r": 8}
    name = "base_model.model.language_model.model.layers.0.attention.wqkv.lora_A.weight"
    assert any("wqkv this layout holds as three" in one for one in why_not(settings, [name], "vllm"))
    fine = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert why_not(settings, [fine], "vllm") == []
    theirs = fine.replace("language_model.model.", "model.language_model.")
    assert any("takes it as it is" in one for one in why_not(settings, [theirs], "vllm"))
    assert any("rank 600" in one for one in why_not({**settings, "r": 600}, [fine], "vllm"))
    assert any("bias 'all'" in one for one in why_not({**settings, "bias": "all"}, [fine], "vllm"))
    assert any("type 'LOHA'" in one for one in why_not({**settings, "peft_type": "LOHA"}, [fine], "vllm"))
    assert any("not established" in one for one in why_not(settings, [fine], "lmdeploy"))


def test_flags_that_do_not_go_together(models, tmp_path, capsys):
    assert main(["export", str(models["qwen2"]), str(tmp_path / "a"), "--base", "x"]) != 0
    source = trained(models["qwen2"], tmp_path / "adapter", lora())
    assert main(["export", str(source), str(tmp_path / "a"), "--for", "vllm", "--format", "original"]) != 0
    assert main(["export", str(source), str(tmp_path / "a")]) != 0
    errors = capsys.readouterr().err
    assert "--base goes with an adapter" in errors and "HF-native layout only" in errors and "merge-lora" in errors
