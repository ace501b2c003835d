"""Bytes of all tensors that are alive, counted call by call: ``torch.cuda.max_memory_allocated`` without a GPU.

Tensors made outside of the block count from when they are first used or told (``hold``). What a kernel needs inside of
itself is not seen. Works for fake tensors too, so that a model of any size can be measured where it does not fit.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Context manager; ``bytes`` now, ``peak`` since the block or ``restart`` began."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, Any] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count these, too. A storage counts once, whatever views there are of it."""
        for tensor in tensors:
            self._note(tensor)
        self.peak = max(self.peak, self.bytes)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        self.peak = max(self.peak, self.bytes)
        return result

    def _note(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            old = self._known[key][1]
            if old != size:  # resized in place, as FSDP and DeepSpeed do
                self.bytes += size - old
                self._known[key] = (self._known[key][0], size)
            return
        self._known[key] = (weakref.ref(storage, lambda _: self._forget(key)), size)
        self.bytes += size

    def _forget(self, key: int) -> None:
        self.bytes -= self._known.pop(key)[1]
