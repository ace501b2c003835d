"""Weight files -> a hash that tells them apart, from a few megabytes of them: whichever tensor was trained."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from internvl_chat.errors import CheckpointError, first_line
from internvl_chat.model.layout import weight_files

# Of each tensor; one that is trained changes nearly everywhere.
_SAMPLE_BYTES = 2**12
# New tokens have the last rows of an embedding, and may be all that trains of it.
_VOCABULARY, _LAST_ROWS = 2**15, 64
_HEADER_LIMIT = 100_000_000  # bytes, that of the safetensors library
# Of a file in a format that does not say where its tensors lie.
_SAMPLES, _BLOCK_BYTES = 64, 2**14


def fingerprint(path: Path) -> str:
    """16 hex digits that tell weights apart: of a folder's weight files, or of one file.

    Of safetensors names, types, shapes and three samples of each tensor; of other files what torch's archive says of
    each tensor, or samples of the file. Copies have the same, wherever and whenever they were made. Raises
    CheckpointError if files are missing or damaged.
    """
    files = [path] if path.is_file() else [path / name for name in sorted(weight_files(path))]
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.stat().st_size};".encode())
        parts = _of_safetensors(file) if file.suffix == ".safetensors" else _of_pickle(file)
        for part in parts:
            found.update(part)
    return found.hexdigest()[:16]


def _of_safetensors(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if length > _HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
            places = {name: tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"}
            tensors = sorted((first, end, name) for name, (first, end) in places.items())  # the disk reads forward
            room = size - 8 - length
            if not all(type(n) is int for first, end, _ in tensors for n in (first, end)):
                raise ValueError("places that are no numbers")
            if not all(0 <= first <= end <= room for first, end, _ in tensors):
                raise ValueError(f"its tensors need more than the {size} bytes that it has")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is damaged ({first_line(error)}); copy or download it again") from error
        for first, end, name in tensors:
            yield json.dumps([name, header[name].get("dtype"), header[name].get("shape")]).encode()
            yield from _samples(stream, 8 + length + first, 8 + length + end, 3, _SAMPLE_BYTES)
            rows = (header[name].get("shape") or [0])[0]
            if rows >= _VOCABULARY:
                stream.seek(8 + length + end - (end - first) // rows * _LAST_ROWS)
                yield stream.read((end - first) // rows * _LAST_ROWS)


def _of_pickle(file: Path) -> Iterator[bytes]:
    """torch.save's archive holds a checksum of each tensor; files of before torch 1.6 are no archives."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                yield json.dumps([member.filename, member.file_size, member.CRC]).encode()
    except zipfile.BadZipFile:
        with file.open("rb") as stream:
            yield from _samples(stream, 0, file.stat().st_size, _SAMPLES, _BLOCK_BYTES)


def _samples(stream: BinaryIO, first: int, end: int, count: int, size: int) -> Iterator[bytes]:
    """``count`` pieces of at most ``size`` bytes between two places, the ends among them."""
    last = max(first, end - size)
    for place in sorted({first + (last - first) * number // (count - 1) for number in range(count)}):
        stream.seek(place)
        yield stream.read(min(size, end - place))
