"""The numbers of ``internvl estimate`` as plain values; ``tools/estimate.py`` says which."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from internvl_chat.tools.estimate import PER_NODE

if TYPE_CHECKING:
    from internvl_chat.tools.estimate import Estimate
    from internvl_chat.tools.estimate_run import Subject


def parts_of(subject: Subject) -> dict[str, dict[str, int]]:
    """Parameters by part, and how many train."""
    from internvl_chat.model.memory import PARTS

    found = {
        part: {
            "parameters": sum(one.size for one in subject.parameters if one.part == part),
            "trainable": sum(one.size for one in subject.parameters if one.part == part and one.trains),
        }
        for part in PARTS
    }
    found["all"] = {key: sum(one[key] for one in found.values()) for key in ("parameters", "trainable")}
    return found


def dtype_of(subject: Subject) -> str:
    """Of the weights that train."""
    if subject.zero is None or not subject.keeping.half:
        return "float32"
    return "bfloat16" if subject.train.bf16 else "float16"


def to_json(found: Estimate) -> dict[str, Any]:
    """All of it."""
    memory, subject = found.memory, found.subject
    return {
        "model": subject.name,
        "notes": list(subject.notes),
        "gpus": found.gpus,
        "gpu": found.gpu,
        "usable": found.usable,
        "parameters": parts_of(subject),
        "trainable_dtype": dtype_of(subject),
        "load": {**asdict(subject.load), "measured": subject.measured},
        "memory": {
            "peak": memory.peak,
            "phase": memory.highest,
            "largest": memory.largest,
            "fits": None if found.usable is None else memory.peak <= found.usable,
            "rows": dict(memory.rows),
            "phases": {name: sum(rows.values()) for name, rows in memory.phases.items()},
            "host_per_node": sum(memory.host.values()) * min(PER_NODE, found.gpus),
        },
        "fits": [asdict(one) for one in found.fits],
        "batches": [asdict(one) for one in found.batches],
        "advice": found.advice,
        "run": asdict(found.run),
    }
