"""What is worked out on the host: the same loss as from labels, and a forward pass that never asks the device."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.data.address import Address
from internvl_chat.data.batch import Batch, pack_batch, pad_batch
from internvl_chat.data.sample import Sample
from internvl_chat.model.build import load_model
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.loss import REDUCTIONS, token_weights
from internvl_chat.train.inputs import PER_DATASET, MicroBatch, make_micro_batch

# Operations whose result, or its size, the host must wait for.
SYNCS = {"nonzero", "_local_scalar_dense", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal", "item"}
DATASETS = ("cats", "dogs", "unused")


class Syncs(TorchDispatchMode):
    """Counts them; indexing with a mask counts as well, for it looks for what is true."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in SYNCS or any(i is not None and i.dtype == torch.bool for i in indices):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(tiny: Path) -> InternVLChatModel:
    return load_model(tiny, torch.float32).train()


def sample(model: InternVLChatModel, dataset: str, length: int, tiles: int, supervised: int) -> Sample:
    rng = np.random.default_rng(length)
    ids = rng.integers(1, 200, length)
    side = model.config.image_size
    ids[1 : 1 + tiles * model.config.num_image_token] = model.config.img_context_token_id
    labels = ids.copy()
    labels[: length - supervised] = IGNORE_INDEX
    pixels = torch.from_numpy(rng.integers(0, 256, (tiles, 3, side, side), np.uint8))
    return Sample(Address(dataset, length), ids, labels, pixels, (1,) * tiles)


def samples(model: InternVLChatModel) -> list[Sample]:
    return [sample(model, *row) for row in (("dogs", 30, 2, 5), ("cats", 20, 1, 11), ("dogs", 9, 0, 3))]


def micro_batch(model: InternVLChatModel, batch: Batch, reduction: str) -> MicroBatch:
    return make_micro_batch(batch, reduction, DATASETS, model.config.img_context_token_id, model.config.num_image_token)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("packed", [True, False])
def test_loss_is_that_of_labels_and_splits_by_data_set(model: InternVLChatModel, packed: bool, reduction: str) -> None:
    batch = pack_batch(samples(model)) if packed else pad_batch(samples(model), 0)
    micro = micro_batch(model, batch, reduction)
    inputs, groups = micro.inputs(torch.device("cpu"))
    found = model(**inputs, num_items_in_batch=micro.weight)
    weights = token_weights(batch.labels, batch.cu_seqlens, reduction)
    usual = model(**batch.tensors(), loss_weight=weights, num_items_in_batch=float(weights.double().sum()))
    assert found.loss.item() == usual.loss.item()
    assert torch.equal(found.token_loss, usual.token_loss) and not found.token_loss.requires_grad
    shares = found.token_loss * inputs["targets"][2] / micro.weight
    by_set = torch.zeros(3).index_add_(0, groups, shares)
    assert by_set.sum().item() == pytest.approx(found.loss.item(), rel=1e-6)
    # Each data set alone, weighed as in the whole.
    for number, name in enumerate(DATASETS[:2]):
        alone = [one for one in samples(model) if one.address.dataset == name]
        part = micro_batch(model, pack_batch(alone) if packed else pad_batch(alone, 0), reduction)
        with torch.no_grad():
            loss = model(**part.inputs(torch.device("cpu"))[0], num_items_in_batch=micro.weight).loss
        assert by_set[number].item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_table_counts_each_data_set(model: InternVLChatModel, packed: bool) -> None:
    batch = pack_batch(samples(model)) if packed else pad_batch(samples(model), 0)
    micro = micro_batch(model, batch, "token")
    assert PER_DATASET == ("weight", "tokens", "samples", "tiles")
    assert micro.table.tolist() == [[11, 20, 1, 1], [8, 39, 2, 2], [0, 0, 0, 0]]
    assert micro.squares == 30**2 + 20**2 + 9**2


@pytest.mark.parametrize("packed", [True, False])
def test_batch_of_which_nothing_could_be_loaded_counts_nothing(model: InternVLChatModel, packed: bool) -> None:
    micro = micro_batch(model, pack_batch([]) if packed else pad_batch([], 0), "square")
    assert micro.table.sum() == 0 and micro.squares == 0 and micro.weight == 0
    inputs, groups = micro.inputs(torch.device("cpu"))
    found = model(**inputs, num_items_in_batch=torch.tensor(7.0))
    assert found.loss.item() == 0 and len(found.token_loss) == len(groups) == 0
    found.loss.backward()


def test_packed_forward_pass_waits_for_nothing(model: InternVLChatModel) -> None:
    inputs, _ = micro_batch(model, pack_batch(samples(model)), "square").inputs(torch.device("cpu"))
    with Syncs() as counted:
        loss = model(**inputs, num_items_in_batch=torch.tensor(7.0)).loss
    assert not counted.found
    with Syncs() as counted:
        loss.backward()
    assert not counted.found
    # From labels it does: the counter sees.
    batch = pack_batch(samples(model))
    with Syncs() as counted:
        model(**batch.tensors())
    assert counted.found["nonzero"] == 2


def test_recomputed_activations_wait_for_nothing_either(tiny: Path) -> None:
    model = load_model(tiny, torch.float32).train()
    model.set_activation_checkpointing(vision=True, llm=True)
    inputs, _ = micro_batch(model, pack_batch(samples(model)), "square").inputs(torch.device("cpu"))
    with Syncs() as counted:
        model(**inputs, num_items_in_batch=torch.tensor(7.0)).loss.backward()
    assert not counted.found
