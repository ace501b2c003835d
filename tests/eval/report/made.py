"""Finished evaluations in miniature, as ``internvl eval`` leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLUS = "InternVL-Chat-V1-2-Plus"


def line(name: str, answer: str = "no", gold: Any = "yes", mark: float | None = 0.0, **more: Any) -> dict[str, Any]:
    """An item with its answer and its mark."""
    return {"id": name, "question": f"<image>\nQuestion {name}?", "answer": answer, "gold": gold, "mark": mark, **more}


def made_run(
    out: Path,
    model: str,
    task: str,
    figures: Mapping[str, float] | None,
    lines: Sequence[dict[str, Any]] = (),
    *,
    label: str | None = None,
    **changes: Any,
) -> Path:
    """Write a run; ``changes`` of its manifest. The first figure is the main one."""
    folder = out / model / (label or task)
    folder.mkdir(parents=True)
    manifest = {
        "task": task, "title": task, "model": model, "checkpoint": {"name": model}, "complete": True,
        "items": len(lines), "there": len(lines), "answered": len(lines), "failed": 0, "limit": None, "count": None,
        "data": {"root": str(out), "layout": "guide", "sha256": "0"}, "settings": {"max_tiles": 6}, "judge": None,
        "changed": {"set": "by hand"} if label else {}, "versions": {"torch": "2"},
        "started": "2025-01-01T00:00:00", "seconds": 1.5,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(manifest | changes))
    if figures is not None:
        metrics = {"task": task, "model": model, "main": next(iter(figures)), "figures": figures, "notes": {"odd": 2}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    marks = [json.dumps({"id": one["id"], "mark": one["mark"]}) for one in lines]
    records = [json.dumps({name: value for name, value in one.items() if name != "mark"}) for one in lines]
    (folder / "scored.jsonl").write_text("".join(f"{text}\n" for text in marks))
    (folder / "predictions.jsonl").write_text("".join(f"{text}\n" for text in records))
    return folder
