"""docs/evaluation.md against the registry."""

from __future__ import annotations

from internvl_chat.eval.registry import GROUPS, keys, tasks
from tests.conftest import ROOT

TEXT = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
# One line of the list for all tables of VLMEvalKit, each of which has an address of its own.
LMU = "https://opencompass.openxlab.space/utils/VLMEval/"


def rows() -> list[str]:
    """The table of the tasks: keys, name, items, tiles, layouts with their files."""
    named = {name: [f"`{key}`" for key, names in keys().items() if name in names] for name in tasks()}
    lines = ["| keys | task | items | tiles | layouts |", "| --- | --- | --- | --- | --- |"]
    for task in tasks().values():
        layouts = "; ".join(f"{x.name}: {', '.join(f'`{file}`' for file in x.files)}" for x in task.layouts)
        cells = [
            ", ".join(sorted(named[task.name])),
            f"`{task.name}`",
            str(task.count or ""),
            str(task.max_tiles),
            layouts,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def addresses() -> list[str]:
    """The list of addresses: folder below the data root, who publishes it, and for which layouts."""
    found: dict[str, dict[str, list[str]]] = {}
    for layout in (layout for task in tasks().values() for layout in task.layouts if layout.source):
        folder = layout.files[0].split("/")[0]
        source = f"{LMU}NAME.tsv" if layout.source.startswith(LMU) else layout.source
        if source.startswith(LMU):
            folder = "LMUData"
        layouts = found.setdefault(folder, {}).setdefault(source, [])
        layouts += [] if layout.name in layouts or folder == "LMUData" else [layout.name]
    lines = []
    for folder, sources in found.items():
        told = "; ".join(f"{source} ({', '.join(names)})" if names else source for source, names in sources.items())
        lines.append(f"- `{folder}/`: {told}")
    return lines


def test_the_table_is_what_the_tasks_do() -> None:
    section = TEXT.partition("## The tasks")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| ")] == rows()


def test_the_list_has_every_address() -> None:
    section = TEXT.partition("## Where the data are published")[2]
    assert [line for line in section.splitlines() if line.startswith("- ")] == addresses()


def test_every_group_is_named() -> None:
    assert all(f"`{group}`" in TEXT for group in GROUPS)
