"""``internvl eval --list``: tasks, keys, groups, and whose data are there."""

from __future__ import annotations

from pathlib import Path

from internvl_chat.eval.items import missing_files
from internvl_chat.eval.registry import GROUPS, keys, tasks
from internvl_chat.eval.task import Task

_JUDGED = {"no": "", "optional": "judge if there is one", "needed": "needs a judge"}


def list_tasks(root: Path) -> str:
    """A text for people. ``root``: the data folder."""
    found = tasks()
    lines = [f"{'key':24} {'task':28} {'items':>6} tiles tokens {'data':11} what"]
    for key, names in sorted(keys().items()):
        for place, name in enumerate(names):
            lines.append(_row(key if place == 0 else "", found[name], root))
    keyed = {name for names in keys().values() for name in names}
    lines += [_row("-", task, root) for name, task in found.items() if name not in keyed]
    lines += ["", "groups:"]
    lines += [f"  {name}: {', '.join(members)}" for name, members in GROUPS.items()]
    lines += ["", "options (--option NAME=VALUE; the first is the default):"]
    for name, legal in sorted({(name, legal) for task in found.values() for name, legal in task.options.items()}):
        users = [task.name for task in found.values() if task.options.get(name) == legal]
        lines.append(f"  {name}={'|'.join(value or 'any' for value in legal)}: {', '.join(users)}")
    return "\n".join(lines)


def _row(key: str, task: Task, root: Path) -> str:
    there = next((layout.name for layout in task.layouts if not missing_files(layout, root)), "-")
    notes = [task.title, _JUDGED[task.judged], "no score here" if task.score is None else ""]
    text = "; ".join(note for note in notes if note)
    count = "?" if task.count is None else str(task.count)
    return f"{key:24} {task.name:28} {count:>6} {task.max_tiles:>5} {task.max_new_tokens:>6} {there:11} {text}"
