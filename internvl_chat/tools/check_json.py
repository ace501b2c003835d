"""The report of ``internvl check`` as plain values; ``check`` says which."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internvl_chat.data.manifest import DatasetSpec
    from internvl_chat.data.survey_pass import Tally
    from internvl_chat.tools.check import Report


def to_json(report: Report) -> dict[str, Any]:
    """The report as one object."""
    epoch, surveys = report.epoch, list(report.surveys.values())
    keys = ("samples", "tokens", "tiles", "supervised", "steps")
    return {
        "manifest": str(report.manifest),
        "decoded": report.decoded,
        "would_train": not report.reasons,
        "reasons": list(report.reasons),
        "hints": list(report.hints),
        "problems": [asdict(problem) for problem in report.problems],
        "run": None if report.outlook is None else asdict(report.outlook),
        "epoch": None if epoch is None else {key: getattr(epoch, key) for key in keys},
        "totals": {
            "data_sets": len(report.specs),
            "lines": sum(one.lines for one in surveys),
            "usable": sum(one.usable for one in surveys),
            "left_out": sum(one.left_out for one in surveys),
            "warnings": sum(tally.count for one in surveys for tally in one.warnings.values()),
        },
        "data_sets": [_dataset_json(report, spec) for spec in report.specs],
    }


def _dataset_json(report: Report, spec: DatasetSpec) -> dict[str, Any]:
    from internvl_chat.data.lint import WARNINGS

    head = {"name": spec.name, "annotation": str(spec.annotation), "error": report.errors.get(spec.name)}
    if spec.name not in report.surveys:
        return head
    one = report.surveys[spec.name]
    faults = {
        group: {
            code: {
                "lines": tally.count,
                "first": [{k: getattr(r, k) for k in ("file", "line", "reason", "mend")} for r in tally.first],
            }
            for code, tally in getattr(one, group).items()
        }
        for group in ("faults", "load_faults")
    }
    warnings = {
        kind: {"what": WARNINGS[kind][0], "mend": WARNINGS[kind][1], **_tally_json(tally)}
        for kind, tally in one.warnings.items()
    }
    return {
        **head,
        **{key: getattr(one, key) for key in ("lines", "usable", "held_out", "longest", "most_tiles")},
        "samples": None if report.epoch is None else report.epoch.of[spec.name],
        "cut": {kind: _tally_json(tally) for kind, tally in one.cut.items()},
        "supervised": {"tokens": one.supervised, "share": one.supervised / max(1, one.tokens.sum)},
        "answers": {"count": one.answers, "repetitive": one.repetitive, "share": one.repetitive / max(1, one.answers)},
        "tokens": asdict(one.tokens),
        "tiles": asdict(one.tiles),
        **faults,
        "warnings": warnings,
    }


def _tally_json(tally: Tally) -> dict[str, Any]:
    return {
        "lines": tally.count,
        "first": [{"line": example.line, "detail": example.text} for example in tally.first],
    }
