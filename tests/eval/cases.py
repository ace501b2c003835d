"""Scoring cases: inputs with what the original's scorers gave for them, or what the definition gives (``_meta``)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).with_name("cases.json")


@cache
def all_cases() -> dict[str, list[dict[str, Any]]]:
    cases: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: found for name, found in cases.items() if name != "_meta"}


def cases(name: str) -> list[Any]:
    """Parameters for pytest: ``@pytest.mark.parametrize("case", cases("anls"))``."""
    return [pytest.param(case, id=case["id"]) for case in all_cases()[name]]


def expected(case: dict[str, Any]) -> Any:
    """What our scorer has to give: "ours" where the original fails or is wrong by the definition, else its value."""
    return case["ours"] if "ours" in case else case["expected"]
