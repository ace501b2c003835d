"""The arithmetic of memory against tensors that are really alive, counted call by call, and against hand-made sums."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from internvl_chat.model.activations import CPU, CUDA, Load, Numbers, Setting, activations
from internvl_chat.model.cards import card
from internvl_chat.model.flops import Trains, trains_of
from internvl_chat.model.memory import GIB, PHASES, ROWS, Keeping, Parameter, Sharding, memory, sharding_of
from internvl_chat.tools.estimate_run import part_of
from internvl_chat.tools.tensor_memory import LiveTensors
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench() -> Any:
    """bench/memory.py, which stands ready for a GPU."""
    spec = importlib.util.spec_from_file_location("bench_memory", ROOT / "bench" / "memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_memory"] = module
    spec.loader.exec_module(module)
    return module


# -- the counter ------------------------------------------------------------------------------------------------------


def test_the_counter_counts_storages_once_and_forgets_them() -> None:
    held = torch.zeros(100)
    live = LiveTensors()
    live.hold([held, held[:10]])
    assert live.bytes == live.peak == 400
    with live:
        other = torch.ones(50) + 1  # two of 200 bytes, one of which goes at once
        assert live.peak == 800
        view = other.view(5, 10)
        del other
        assert live.bytes == 600
        del view
        live.restart()
        assert live.bytes == live.peak == 400


# -- real shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("InternVL2_5-1B", kind) for kind in ("full", "frozen vision", "projector", "LoRA")),
        ("InternVL2-4B", "full"),  # Phi-3: fused matrices
        ("InternVL3_5-4B", "full"),  # Qwen3: normalised queries and keys
        ("InternVL2_5-26B", "full"),  # the vision tower of 6B
    ],
)
def test_a_step_at_real_shapes_takes_what_is_counted(bench: Any, name: str, kind: str, recompute: bool) -> None:
    load = Load(4096, 2048, 4, 1500)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = bench.build(bench.config_for(name, 3), bench.TUNINGS[kind], recompute, torch.device("cpu"), "packed")
        found = bench.measured(model, load, torch.device("cpu"))
        guess = bench.predicted(model, load, bench.TUNINGS[kind], recompute, False)
    peak = max(sum(v for row, v in rows.items() if row != "optimizer") for rows in guess.phases.values())
    weights = sum(p.numel() for p in model.parameters()) * 2
    assert guess.rows["weights"] == weights
    assert peak == pytest.approx(found, rel=0.05)
    assert peak - weights == pytest.approx(found - weights, rel=0.08)


# -- other ways to run, real tensors ----------------------------------------------------------------------------------

WAYS = {
    "float32": {},
    "bfloat16": {"half": True},
    "autocast": {"autocast": True},
    "padded": {"rows": 3},
    "eager": {"attn": "eager"},
}


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_run_take_what_is_counted(
    way: str, recompute: bool, tiny_model: Any, make_sample: Any, pack: Any
) -> None:
    how: dict[str, Any] = WAYS[way]
    model = tiny_model("qwen2", how.get("attn", "auto")).train()
    if how.get("half"):
        model = model.bfloat16()
    model.set_activation_checkpointing(vision=recompute, llm=recompute)
    samples = [make_sample(model, 300, 6, seed) for seed in range(3)]
    row, rows = pack(samples), how.get("rows", 1)
    if rows > 1:
        row = {key: torch.stack([one[key] for one in samples]) for key in ("input_ids", "labels")}
        row["attention_mask"] = torch.ones(3, 300, dtype=torch.bool)
        row["attention_mask"][0, -5:] = False
        row["pixel_values"] = torch.cat([one["pixel_values"] for one in samples])
    live = LiveTensors()
    live.hold([*model.parameters(), *model.buffers()])
    before = live.bytes
    with live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(how.get("autocast"))):
            loss = model(**row).loss
        loss.backward()
    numbers = Numbers(2, 2, 2) if how.get("half") else Numbers(2, 4, 4) if how.get("autocast") else Numbers(4, 4, 4)
    kernels = replace(CPU, whole_rows=rows > 1 or way == "eager")
    setting = Setting(trains_of(model, recompute, recompute), numbers, kernels, eager=way == "eager")
    count = int((row["labels"] != -100).sum())
    load = Load(900, 900 if way == "eager" else 300, 18, count, mask=rows > 1)
    parameters = [Parameter(part_of(name), p.numel(), p.requires_grad) for name, p in model.named_parameters()]
    half = bool(how.get("half") or how.get("autocast"))
    keep = Keeping(half, False, False, not recompute, cuda=False)
    guess = memory(parameters, activations(model.config, setting, load), Sharding(0 if how.get("half") else None), keep)
    peak = max(
        sum(v for name, v in rows_.items() if name not in ("optimizer", "weights", "batch"))
        for rows_ in guess.phases.values()
    )
    assert peak == pytest.approx(live.peak - before, rel=0.12 if way == "eager" else 0.08)


# -- states, by hand --------------------------------------------------------------------------------------------------

BILLION = 10**9
NOTHING = Setting(Trains(vision_layers=frozenset()), Numbers(), CUDA)


def states(config: dict[str, Any] | None, world: int, **keep: Any) -> dict[str, float]:
    """GB of the rows that are not activations: a billion trained and half a billion frozen parameters."""
    from internvl_chat.model.activations import Activations, Tower

    none = Activations(Tower(), 0.0, Tower(), 0.0, 0.0, 0.0)
    parameters = [Parameter("language", BILLION // 10, True)] * 10 + [Parameter("vision", BILLION // 10, False)] * 5
    found = memory(parameters, none, sharding_of(config, 1000, world), Keeping(cuda=False, **keep))
    return {row: value / 1e9 for row, value in found.phases["step"].items() if value}


def stage(number: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": number, "reduce_bucket_size": 10**8, "overlap_comm": True, **more}}


def test_stage_1_divides_the_optimizer_alone() -> None:
    # 2 bytes of each weight, 2 of each gradient, 12 / 8 of the optimizer, two buckets.
    expected = {"weights": 3.0, "gradients": 2.0, "optimizer": 1.5, "buckets": 0.4}
    assert states(stage(1), 8) == pytest.approx(expected)


def test_stage_2_divides_gradients_too() -> None:
    # Beside the optimizer's 1.5 the partition's gradients once more flat, and in float32: (2 + 4) / 8.
    expected = {"weights": 3.0, "gradients": 0.25, "optimizer": 2.25, "buckets": 0.4}
    assert states(stage(2), 8) == pytest.approx(expected)


def test_stage_3_divides_all_and_holds_gathered_weights() -> None:
    auto = {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
    found = states(stage(3, **auto), 8)
    expected = {"weights": 3.0 / 8, "gradients": 2.0 / 8, "optimizer": 12.0 / 8 + 4.0 / 8, "buckets": 0.2}
    # The largest tensor, and 0.9 of the width squared fetched ahead, 2 bytes each.
    expected["gathered weights"] = 2 * (0.1 + 0.9e-3)
    assert found == pytest.approx(expected)


def test_offload_moves_states_to_the_host() -> None:
    config = stage(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"})
    found = states(config, 8)
    assert "optimizer" not in found and "weights" not in found and "gradients" not in found
    shard = sharding_of(config, 1000, 8)
    assert shard.offload_optimizer and shard.offload_weights


def test_without_deepspeed_all_is_float32_and_ddp_copies_the_gradients() -> None:
    found = states(None, 8, half=False)
    assert found == pytest.approx({"weights": 6.0, "gradients": 4.0, "optimizer": 8.0, "buckets": 4.0})
    assert "buckets" not in states(None, 1, half=False)


def test_frozen_weights_beside_lora_are_small_without_deepspeed() -> None:
    assert states(None, 1, small_frozen=True)["weights"] == pytest.approx(4.0 + 1.0)
    assert states(None, 1, small_frozen=False)["weights"] == pytest.approx(4.0 + 2.0)


def test_other_optimizers_keep_less() -> None:
    assert states(stage(1), 1, optimizer="adamw_bnb_8bit")["optimizer"] < states(stage(1), 1)["optimizer"]


def test_a_shipped_configuration_is_read() -> None:
    from internvl_chat.config.zero import resolve_zero
    from internvl_chat.train.zero_check import read_zero

    shard = sharding_of(read_zero(resolve_zero("zero3")), 8192, 32)
    assert shard.stage == 3 and shard.bucket == 8192**2 and shard.threshold == 81920 and not shard.offload_weights
    shard = sharding_of(read_zero(resolve_zero("zero1")), 8192, 32)
    assert (shard.stage, shard.bucket, shard.buckets) == (1, 2 * 10**8, 2)


def test_every_phase_has_every_row() -> None:
    acts = activations_of_a_release()
    found = memory([Parameter("language", 1000, True)], acts, Sharding(3, 2), Keeping())
    assert tuple(found.phases) == PHASES and all(tuple(rows) == ROWS for rows in found.phases.values())
    assert found.peak == max(sum(rows.values()) for rows in found.phases.values())
    assert found.largest in ROWS


def activations_of_a_release() -> Any:
    from internvl_chat.model.catalogue import config_of, release

    return activations(config_of(release("InternVL2_5-1B")), NOTHING, Load(8192, 2048, 12, 4000))


def test_a_frozen_tower_keeps_nothing_and_packs_no_pairs() -> None:
    from internvl_chat.model.catalogue import config_of, release

    config = config_of(release("InternVL2_5-8B"))
    trains = Trains(vision_embedding=False, vision_layers=frozenset(), mlp=False, llm_recompute=True)
    short = activations(config, replace(NOTHING, trains=trains), Load(8192, 1024, 12, 4000))
    long = activations(config, replace(NOTHING, trains=trains), Load(8192, 8192, 12, 4000))
    assert short.vision.kept == short.projector == 0
    assert short.llm == long.llm
    masked = activations(config, replace(NOTHING, trains=trains), Load(8192, 8192, 12, 4000, mask=True))
    assert masked.llm.layer - long.llm.layer >= 2 * 8192 * 8192  # the mask, in bfloat16


def test_cards_are_found_by_the_name_of_the_device() -> None:
    for name, size in (("NVIDIA H100 80GB HBM3", 80), ("NVIDIA A100-SXM4-40GB", 40), ("a100", 80), ("H200", 141)):
        found = card(name)
        assert found is not None and found.memory == size
    assert card("NVIDIA A100-SXM4-80GB").memory == 80  # type: ignore[union-attr]
    assert card("a card of tomorrow") is None
    assert card("H100").usable / GIB == pytest.approx(79.1, rel=0.01)  # type: ignore[union-attr]
