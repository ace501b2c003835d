"""One line -> its Footprint (no pixel touched) or its Sample (ids, labels, tiles). The two agree or a Fault says so."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.data.address import Address, rng_for
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.media import read_image, read_image_size
from internvl_chat.data.record import parse_record
from internvl_chat.data.storage import resolve_media
from internvl_chat.data.tiles import TileSettings, count_tiles, cut_tiles
from internvl_chat.data.tokens import Encoder


@dataclass(frozen=True, slots=True)
class Footprint:
    """Size of a sample: all tokens, tiles (thumbnails included), supervised tokens."""

    tokens: int
    tiles: int
    supervised: int


@dataclass(frozen=True, slots=True)
class Sample:
    """``input_ids`` and ``labels`` int64 (T,), ``tiles`` uint8 (N, 3, S, S), tiles of each picture in order."""

    address: Address
    input_ids: np.ndarray
    labels: np.ndarray
    tiles: torch.Tensor
    tiles_per_image: tuple[int, ...]

    @property
    def footprint(self) -> Footprint:
        return Footprint(len(self.input_ids), len(self.tiles), int((self.labels != IGNORE_INDEX).sum()))


@dataclass(frozen=True)
class Limits:
    """What one sample may be at most: tokens, tiles."""

    max_tokens: int
    max_tiles: int


@dataclass(frozen=True)
class SampleMaker:
    """Makes samples of any data set of a manifest. Picklable, so that workers and index builders can share it."""

    encoder: Encoder
    tiles: TileSettings
    limits: Limits
    seed: int = 0

    def fingerprint(self, spec: DatasetSpec) -> str:
        """What a footprint in the index depends on besides the line itself."""
        settings = {k: v for k, v in asdict(self._settings(spec)).items() if k not in ("backend", "pad2square", "mean")}
        root = spec.root if "://" in spec.root else str(Path(spec.root).resolve())
        return json.dumps([self.encoder.fingerprint(), settings, root], sort_keys=True)

    def measure(self, line: bytes, spec: DatasetSpec) -> Footprint:
        """Footprint from the text and the pictures' headers, whatever the limits. Raises Fault."""
        record = parse_record(line)
        settings = self._settings(spec).shared_among(len(record.images))
        sizes = [read_image_size(resolve_media(spec.root, name)) for name in record.images]
        counts = [count_tiles(*size, settings) for size in sizes]
        ids, labels = self.encoder.encode(record.turns, counts)
        return Footprint(len(ids), sum(counts), int((labels != IGNORE_INDEX).sum()))

    def load(self, line: bytes, spec: DatasetSpec, address: Address, expected: Footprint | None = None) -> Sample:
        """The whole sample. Raises Fault, also when it is not the size that the index promised (``expected``)."""
        record = parse_record(line)
        settings = self._settings(spec).shared_among(len(record.images))
        rng = rng_for(self.seed, address) if spec.data_augment else None
        cut = [cut_tiles(read_image(resolve_media(spec.root, name)), settings, rng) for name in record.images]
        counts = [len(tiles) for tiles in cut]
        ids, labels = self.encoder.encode(record.turns, counts)
        empty = torch.zeros((0, 3, settings.size, settings.size), dtype=torch.uint8)
        sample = Sample(address, ids, labels, torch.cat(cut) if cut else empty, tuple(counts))
        if expected is not None and sample.footprint != expected:
            raise Fault(
                FaultCode.STALE,
                f"sample is {sample.footprint}, the index says {expected}",
                "a picture was replaced after the index was built: run again with --rebuild_index True",
            )
        return sample

    def _settings(self, spec: DatasetSpec) -> TileSettings:
        return self.tiles if spec.max_dynamic_patch is None else replace(self.tiles, max_tiles=spec.max_dynamic_patch)

    def check_limits(self, footprint: Footprint) -> None:
        """Raise Fault for a sample that is larger than this run allows."""
        if footprint.tokens > self.limits.max_tokens:
            raise Fault(
                FaultCode.TOO_LONG,
                f"{footprint.tokens} tokens ({footprint.tiles} tiles), "
                f"more than max_seq_length {self.limits.max_tokens}",
                "raise --max_seq_length, lower max_dynamic_patch, or shorten the conversation",
            )
        if footprint.tiles > self.limits.max_tiles:
            raise Fault(
                FaultCode.TOO_MANY_TILES,
                f"{footprint.tiles} tiles, more than num_images_expected {self.limits.max_tiles}",
                "raise --num_images_expected or lower max_dynamic_patch",
            )
