"""Batches: one packed row or padded rows; what belongs to whom can be read back from either."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.data.address import Address
from internvl_chat.data.batch import Batch, pack_batch, pad_batch
from internvl_chat.data.faults import FaultRecord
from internvl_chat.data.sample import Sample
from tests.data.helpers import properties

PAD = 7
FAULT = FaultRecord("notes", "notes.jsonl", 4, 0, "load", "BROKEN_IMAGE", "picture cannot be read", "replace the file")


@st.composite
def sample_lists(draw: st.DrawFn, min_size: int = 0) -> list[Sample]:
    """Samples of 1..9 tokens and 0..3 tiles of 2 x 2 pixels; ids and pixels tell whose they are. Padding ids occur."""
    made = []
    for number in range(draw(st.integers(min_size, 5))):
        length = draw(st.integers(1, 9))
        ids = np.array(draw(st.lists(st.integers(0, 50), min_size=length, max_size=length)), np.int64)
        on = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        tiles = torch.full((draw(st.integers(0, 3)), 3, 2, 2), number, dtype=torch.uint8)
        labels = np.where(on, ids, IGNORE_INDEX)
        made.append(Sample(Address("notes", number), ids, labels, tiles, (len(tiles),) if len(tiles) else ()))
    return made


def check_common(batch: Batch, samples: list[Sample]) -> None:
    assert batch.addresses == tuple(sample.address for sample in samples)
    assert batch.num_tokens == sum(len(sample.input_ids) for sample in samples)
    assert batch.input_ids.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape
    owners = [number for number, sample in enumerate(samples) for _ in range(len(sample.tiles))]
    if owners:
        assert batch.pixel_values is not None
        assert batch.pixel_values.dtype is torch.uint8
        assert batch.pixel_values[:, 0, 0, 0].tolist() == owners
    else:
        assert batch.pixel_values is None


@properties(150)
@given(sample_lists(min_size=1))
def test_a_packed_row_holds_the_samples_one_after_the_other(samples: list[Sample]) -> None:
    batch = pack_batch(samples, [FAULT])
    check_common(batch, samples)
    assert batch.faults == (FAULT,)
    assert batch.attention_mask is None
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.dtype is torch.int32
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == batch.input_ids.shape[1]
    assert batch.input_ids.shape[0] == 1
    for sample, start, end in zip(samples, bounds, bounds[1:], strict=False):
        assert batch.input_ids[0, start:end].tolist() == sample.input_ids.tolist()
        assert batch.labels[0, start:end].tolist() == sample.labels.tolist()
        assert batch.position_ids[0, start:end].tolist() == list(range(end - start))


@properties(150)
@given(sample_lists(min_size=1))
def test_padded_rows_are_masked_by_length_never_by_id(samples: list[Sample]) -> None:
    """A real token may have the padding's id: the original masked every "!" of Qwen so."""
    batch = pad_batch(samples, PAD, [FAULT])
    check_common(batch, samples)
    assert batch.faults == (FAULT,)
    assert batch.cu_seqlens is None
    assert batch.attention_mask is not None
    assert batch.attention_mask.dtype is torch.bool
    assert batch.input_ids.shape == (len(samples), max(len(sample.input_ids) for sample in samples))
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        assert batch.attention_mask[row].tolist() == [place < length for place in range(batch.input_ids.shape[1])]
        assert batch.input_ids[row, :length].tolist() == sample.input_ids.tolist()
        assert batch.labels[row, :length].tolist() == sample.labels.tolist()
        assert (batch.input_ids[row, length:] == PAD).all()
        assert (batch.labels[row, length:] == IGNORE_INDEX).all()
        assert batch.position_ids[row].tolist() == list(range(batch.input_ids.shape[1]))


def test_a_batch_whose_samples_all_failed_still_has_a_token_to_run_on() -> None:
    """Every rank calls every module in every micro-batch; the one token is ignored by the loss and not counted."""
    for batch in (pack_batch([], [FAULT]), pad_batch([], PAD, [FAULT])):
        assert batch.input_ids.shape == (1, 1)
        assert batch.labels.tolist() == [[IGNORE_INDEX]]
        assert batch.num_tokens == 0
        assert batch.addresses == ()
        assert batch.faults == (FAULT,)
        assert batch.pixel_values is None
    assert pack_batch([]).cu_seqlens.tolist() == [0, 1]  # type: ignore[union-attr]
    assert pad_batch([], PAD).attention_mask.tolist() == [[True]]  # type: ignore[union-attr]


def test_the_device_gets_all_tensors_and_the_host_keeps_its_own() -> None:
    sample = Sample(Address("a", 0), np.array([1]), np.array([1]), torch.zeros(1, 3, 2, 2, dtype=torch.uint8), (1,))
    batch = pack_batch([sample])
    moved = batch.to("meta")
    assert {moved.input_ids.device.type, moved.labels.device.type, moved.position_ids.device.type} == {"meta"}
    assert moved.pixel_values is not None
    assert moved.pixel_values.device.type == "meta"
    # The attention function reads the bounds on the host: no transfer, no wait in each layer.
    assert moved.cu_seqlens is not None
    assert moved.cu_seqlens.device.type == "cpu"
