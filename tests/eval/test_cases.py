"""No scoring case is forgotten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.eval.cases import all_cases

SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.rglob("test_*.py")))


@pytest.mark.parametrize("name", sorted(set(all_cases()) - {"_formats"}))
def test_every_list_of_cases_is_run(name: str) -> None:
    assert re.search(rf'cases\("{name}"\)|\["{name}"\]', SOURCES), f"no test runs the cases of {name}"


def test_every_output_file_of_the_original_is_compared() -> None:
    assert "format_cases(" in SOURCES
    assert [case["dataset"] for case in all_cases()["_formats"] if f'"{case["dataset"]}"' not in SOURCES] == []
