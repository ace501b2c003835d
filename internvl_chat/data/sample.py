"""One line -> its Footprint (no pixel touched) or its Sample (ids, labels, tiles). The two agree or a Fault says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image

from internvl_chat.constants import IGNORE_INDEX, IMAGE_PLACEHOLDER
from internvl_chat.data.address import Address, rng_for
from internvl_chat.data.chat_template import template_of
from internvl_chat.data.faults import Cut, Fault, FaultCode
from internvl_chat.data.fit import Fitted, Footprint, Limits, Material, fit
from internvl_chat.data.frames import clip_range, draw_count, pick_frames
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.media import read_image, read_image_size
from internvl_chat.data.record import Record, Video, parse_record, resolve_boxes
from internvl_chat.data.storage import Medium, locate_medium
from internvl_chat.data.tiles import TileSettings, cut_tiles
from internvl_chat.data.tokens import Encoder
from internvl_chat.data.video import VideoInfo, read_frames, read_video_info
from internvl_chat.errors import InternVLError, first_line

Made = TypeVar("Made", bound=Callable[..., Any])

# Where a frame's index is only counted, which one it is does not matter.
_FIRST: Callable[[int, int], int] = lambda start, stop: start  # noqa: E731


@dataclass(frozen=True, slots=True)
class Sample:
    """``input_ids`` and ``labels`` int64 (T,); ``tiles`` uint8 (N, 3, S, S) of each picture and frame in order."""

    address: Address
    input_ids: np.ndarray
    labels: np.ndarray
    tiles: torch.Tensor
    tiles_per_image: tuple[int, ...]

    @property
    def footprint(self) -> Footprint:
        return Footprint(len(self.input_ids), len(self.tiles), int((self.labels != IGNORE_INDEX).sum()))


def _contained(make: Made) -> Made:
    """``make``, in which an error that nobody thought of is the line's fault: one line must not end a run.

    The ledger has it, with the error's name. What is the machine's fault goes on.
    """

    @wraps(make)
    def contained(*args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except (Fault, InternVLError, MemoryError):
            raise
        except Exception as error:  # handed on as a Fault that names it
            what = f"an error that was not foreseen: {type(error).__name__}: {first_line(error)}"
            raise Fault(FaultCode.UNEXPECTED, what, "change the line, and please report it") from error

    return cast("Made", contained)


@dataclass(frozen=True)
class VideoSettings:
    """Which frames of a video are seen: ``method`` is rand, middle or fpsX; their number is drawn between the two."""

    method: str = "rand"
    min_frames: int = 8
    max_frames: int = 32


@dataclass(frozen=True)
class SampleMaker:
    """Makes samples of any data set of a manifest. Picklable, so that workers and index builders can share it.

    ``encoders``: those of data sets with a template or a system message of their own, by (conv_style, system_message).
    ``remote``: whether media may be fetched from other machines.
    """

    encoder: Encoder
    tiles: TileSettings
    limits: Limits
    seed: int = 0
    videos: VideoSettings = VideoSettings()
    encoders: Mapping[tuple[str | None, str | None], Encoder] = field(default_factory=dict)
    remote: bool = False

    def encoder_of(self, spec: DatasetSpec) -> Encoder:
        """The encoder of a data set."""
        return self.encoders.get((spec.conv_style, spec.system_message), self.encoder)

    def fingerprint(self, spec: DatasetSpec) -> str:
        """What a footprint in the index depends on besides the line itself."""
        tiles = {k: v for k, v in asdict(self._tiles(spec)).items() if k not in ("backend", "pad2square", "mean")}
        root = spec.root if "://" in spec.root else str(Path(spec.root).resolve())
        said = [spec.format, spec.columns, asdict(spec.image_limits), self.remote, asdict(self.videos_of(spec))]
        limits = asdict(self.limits) if self.limits.cuts else None
        return json.dumps([self.encoder_of(spec).fingerprint(), tiles, root, said, limits], sort_keys=True)

    def measure(self, line: bytes, spec: DatasetSpec, trust_sizes: bool = False) -> tuple[Footprint, Cut | None]:
        """Footprint of a line, and what was done to make it fit; see ``arrange``."""
        fitted = self.arrange(line, spec, trust_sizes)
        return fitted.footprint, fitted.cut

    @_contained
    def arrange(self, line: bytes, spec: DatasetSpec, trust_sizes: bool = False) -> Fitted:
        """Tokens and tiles of a line, from its text and the headers of its media. Raises Fault.

        ``trust_sizes``: picture sizes are taken from the line where it gives them; the files must only be there.
        Larger than the limits it may be, unless these say that samples are made to fit.
        """
        record = parse_record(line, spec.format, spec.columns)
        media = [self._locate(spec, name) for name in record.images]
        if trust_sizes and record.sizes is not None:
            sizes = list(record.sizes)
            for medium in media:
                if not medium.is_remote and not _is_file(medium.local):
                    read_image_size(medium)  # says what is wrong
        else:
            sizes = [read_image_size(medium) for medium in media]
        films = [(video, self._locate(spec, video.name)) for video in record.videos]
        frames = [self._count_frames(v, self._look_into(medium, spec), line, spec) for v, medium in films]
        return self._fit(record, sizes, frames, spec)

    @_contained
    def load(self, line: bytes, spec: DatasetSpec, address: Address, expected: Footprint | None = None) -> Sample:
        """The whole sample. Raises Fault, also when it is not the size that the index promised (``expected``)."""
        record = parse_record(line, spec.format, spec.columns)
        pictures = [read_image(self._locate(spec, name)) for name in record.images]
        films = [_Film(video, m := self._locate(spec, video.name), read_video_info(m)) for video in record.videos]
        frames = [self._count_frames(film.video, film.info, line, spec) for film in films]
        fitted = self._fit(record, [picture.size for picture in pictures], frames, spec)
        rng = rng_for(self.seed, address)
        seen = [self._read_film(film, n, spec, rng) for film, n in zip(films, fitted.frames, strict=False)]
        augment = rng if spec.data_augment else None
        cut = list(_cut_in_order(record.media(), pictures, fitted, seen, self._tiles(spec), augment))
        empty = torch.zeros((0, 3, self.tiles.size, self.tiles.size), dtype=torch.uint8)
        tiles = torch.cat(cut) if cut else empty
        sample = Sample(address, fitted.input_ids, fitted.labels, tiles, fitted.tiles)
        if expected is not None and sample.footprint != expected:
            raise Fault(
                FaultCode.STALE,
                f"sample is {sample.footprint}, the index says {expected}",
                "a picture is not of the size that its line gives, or was replaced after the index was built: mend "
                "width and height, or run again with --rebuild_index True",
            )
        return sample

    def contradicted_size(self, line: bytes, spec: DatasetSpec) -> str | None:
        """Where the line gives a picture another size than it has: what it says and what is, else None."""
        try:
            record = parse_record(line, spec.format, spec.columns)
            for name, said in zip(record.images, record.sizes or (), strict=False):
                size = read_image_size(self._locate(spec, name))
                if size != said:
                    return f"picture {name!r} is {size[0]} x {size[1]}, width and height say {said[0]} x {said[1]}"
        except Fault:
            pass  # measuring the line will say it
        return None

    def _fit(
        self, record: Record, sizes: Sequence[tuple[int, int]], frames: Sequence[int], spec: DatasetSpec
    ) -> Fitted:
        for name, size in zip(record.images, sizes, strict=True):
            spec.image_limits.check(name, *size)
        material = Material(resolve_boxes(record, sizes), sizes, frames)
        return fit(material, self._tiles(spec), self.encoder_of(spec), self.limits)

    def _locate(self, spec: DatasetSpec, name: str) -> Medium:
        return locate_medium(spec.root, name, self.remote)

    def _tiles(self, spec: DatasetSpec) -> TileSettings:
        return self.tiles if spec.max_dynamic_patch is None else replace(self.tiles, max_tiles=spec.max_dynamic_patch)

    def videos_of(self, spec: DatasetSpec) -> VideoSettings:
        """How the frames of a data set's videos are chosen."""
        own = {"method": spec.sampling_method, "min_frames": spec.min_num_frame, "max_frames": spec.max_num_frame}
        return replace(self.videos, **{key: value for key, value in own.items() if value is not None})  # type: ignore[arg-type]

    def _look_into(self, medium: Medium, spec: DatasetSpec) -> VideoInfo | None:
        """What a video is; None for one on another machine that would be fetched only to be counted."""
        if medium.is_remote and not self.videos_of(spec).method.startswith("fps"):
            return None
        return read_video_info(medium)

    def _count_frames(self, video: Video, info: VideoInfo | None, line: bytes, spec: DatasetSpec) -> int:
        """How many frames of a video are seen: known from the line alone, but for fpsX. Raises Fault (clip)."""
        settings = self.videos_of(spec)
        first, stop = (0, 0) if info is None else _part_of(video, info)
        if info is None or not settings.method.startswith("fps"):
            return draw_count(line, settings.min_frames, settings.max_frames)
        chosen = pick_frames(settings.max_frames, stop - first, settings.method, info.fps, _FIRST)
        return min(len(chosen), settings.max_frames)

    def _read_film(self, film: _Film, count: int, spec: DatasetSpec, rng: np.random.Generator) -> list[Image.Image]:
        """``count`` frames of the part that the line names."""
        first, stop = _part_of(film.video, film.info)

        def choose(low: int, high: int) -> int:
            return int(rng.integers(low, high))

        chosen = pick_frames(count, stop - first, self.videos_of(spec).method, film.info.fps, choose)
        if len(chosen) != count:  # fpsX of a long video: as many as are allowed, spread over all of it
            chosen = pick_frames(count, stop - first, "middle", film.info.fps, choose)
        return read_frames(film.medium, [first + index for index in chosen])


@dataclass(frozen=True, slots=True)
class _Film:
    """A video of a line, where it lies, what it is."""

    video: Video
    medium: Medium
    info: VideoInfo


def _is_file(path: Path | None) -> bool:
    try:
        return path is not None and path.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _part_of(video: Video, info: VideoInfo) -> tuple[int, int]:
    """First frame, and the one behind the last, of what the line asks for."""
    if video.clip is None:
        return 0, info.frames
    try:
        return clip_range(video.clip, info.fps, info.frames)
    except Fault as fault:
        raise Fault(fault.code, f"video {video.name!r}: {fault.reason}", fault.mend) from fault


def _cut_in_order(
    media: Sequence[str],
    pictures: Sequence[Image.Image],
    fitted: Fitted,
    films: Sequence[Sequence[Image.Image]],
    settings: TileSettings,
    augment: np.random.Generator | None,
) -> Iterable[torch.Tensor]:
    """Tiles of every picture and frame in reading order; what a cut has left away at the end is not read."""
    cut_pictures, cut_films = iter(zip(pictures, fitted.images, strict=False)), iter(films)
    one_tile = replace(settings, max_tiles=1)
    for tag in media[: len(fitted.images) + len(films)]:
        if tag == IMAGE_PLACEHOLDER:
            picture, shared = next(cut_pictures)
            yield cut_tiles(picture, shared, augment)
        else:
            for frame in next(cut_films):
                yield cut_tiles(frame, one_tile, augment)


def own_encoders(specs: Iterable[DatasetSpec], default: Any, tokenizer: Any) -> dict[Any, Encoder]:
    """Encoders of the data sets with a template or a system message of their own; see ``SampleMaker.encoders``.

    ``default``: the checkpoint's config. Raises ConfigError for a template that its tokenizer does not fit.
    """
    encoders: dict[Any, Encoder] = {}
    for spec in specs:
        key = (spec.conv_style, spec.system_message)
        if key == (None, None) or key in encoders:
            continue
        config = _Said(
            spec.conv_style or default.template,
            default.system_message if spec.system_message is None else spec.system_message,
        )
        encoders[key] = Encoder(tokenizer, template_of(config, tokenizer), default.num_image_token)
    return encoders


@dataclass(frozen=True)
class _Said:
    """What ``template_of`` asks of a config."""

    template: str | None
    system_message: str | None
