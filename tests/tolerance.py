"""How far two float32 computations of the same thing may be apart.

For what is added up in another order: kernels differ with the CPU. Run as SSE, AVX2 and AVX-512, logits of tiny models
were up to 1.8e-5 apart, gradients 1.6e-6. Leaks and lost weights show at 1e-3 and above.
"""

from __future__ import annotations

from typing import Any

import torch

LOGITS = 5e-5
GRADIENT = 5e-6


def assert_same_numbers(found: Any, expected: Any) -> None:
    """Logits, as tensors."""
    torch.testing.assert_close(found, expected, atol=LOGITS, rtol=1e-5)
