"""How far two float32 computations of the same thing may be apart.

Kernels differ with the CPU (SSE, AVX2, AVX-512) and with the number of threads: what agrees within 1e-5 on one machine
is 2e-5 apart on the next. Leaks and lost weights show at 1e-3 and above.
"""

from __future__ import annotations

from typing import Any

import torch

LOGITS = 1e-4
GRADIENT = 1e-5


def assert_same_numbers(found: Any, expected: Any) -> None:
    """Logits and features, as tensors."""
    torch.testing.assert_close(found, expected, atol=LOGITS, rtol=LOGITS)
