"""Names of samples, and the one source of randomness of the data layer."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Address:
    """Names a sample for ever.

    ``line`` counts from 0 in the annotation file; ``epoch`` counts the visits to that line (a line that is repeated
    within an epoch gets a number of its own each time). Messages count lines from 1, as editors do.
    """

    dataset: str
    line: int
    epoch: int = 0


def rng_for(seed: int, address: Address) -> np.random.Generator:
    """Generator that depends on the run's seed and the sample's address, never on worker, rank or clock."""
    import numpy as np  # not with the module: commands that only name lines start without it

    return np.random.default_rng([seed, zlib.crc32(address.dataset.encode()), address.line, address.epoch])
