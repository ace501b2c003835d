"""docs/evaluation.md against the registry."""

from __future__ import annotations

import re

from internvl_chat.eval.registry import GROUPS, keys, tasks
from tests.conftest import ROOT

TEXT = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")


def test_every_task_has_its_row() -> None:
    table = TEXT.partition("## The tasks")[2]
    rows = {name: names for names, name in re.findall(r"^\| (.*?) \| `(\S+)` \|", table, re.M)}
    assert set(rows) == set(tasks())
    for key, names in keys().items():
        assert all(f"`{key}`" in rows[name] for name in names), key


def test_the_rows_say_what_the_tasks_do() -> None:
    for task in tasks().values():
        (row,) = (line for line in TEXT.splitlines() if re.match(rf"\| .* \| `{re.escape(task.name)}` \|", line))
        cells = [cell.strip() for cell in row.split(" | ")]
        assert cells[2:4] == [str(task.count or ""), str(task.max_tiles)], task.name
        for layout in task.layouts:
            assert layout.source in row, (task.name, layout.name)
            assert all(f"`{file}`" in row for file in layout.files), (task.name, layout.name)


def test_every_group_is_named() -> None:
    assert all(f"`{group}`" in TEXT for group in GROUPS)
