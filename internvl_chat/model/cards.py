"""What cards can do and hold, from the makers' data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Of the memory on the data sheet: what is there after firmware and error correction (an H100 of 80 shows 79.1 GiB).
USABLE = 0.985


@dataclass(frozen=True)
class Card:
    """``tflops``: dense bfloat16 without sparsity (V100 knows none: float16). ``memory``: GiB on the data sheet."""

    name: str
    tflops: float
    memory: float

    @property
    def usable(self) -> float:
        """Bytes that a process finds free."""
        return self.memory * USABLE * 2**30


# The first name that is part of the device's name decides. A GDDR card keeps a sixteenth for error correction.
CARDS: tuple[Card, ...] = (
    Card("A100 40GB", 312.0, 40),
    Card("A100-PCIE-40GB", 312.0, 40),
    Card("A100-SXM4-40GB", 312.0, 40),
    Card("A100", 312.0, 80),
    Card("A800", 312.0, 80),
    Card("H100 PCIe", 756.0, 80),
    Card("H100 NVL", 835.0, 94),
    Card("H100", 989.0, 80),
    Card("H800", 989.0, 80),
    Card("H200", 989.0, 141),
    Card("H20", 148.0, 96),
    Card("B200", 2250.0, 180),
    Card("L40S", 362.0, 45),
    Card("L20", 119.5, 45),
    Card("RTX 4090", 165.0, 24),
    Card("RTX 3090", 71.0, 24),
    Card("V100", 125.0, 32),
    Card("MI300X", 1307.0, 192),
)


def card(device_name: str) -> Card | None:
    """The card of that name, or whose name is part of it, however it is spaced; None if it is not known."""
    name = _plain(device_name)
    return next((one for one in CARDS if _plain(one.name) in name), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
