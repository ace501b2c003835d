"""Miniature MMBench and CCBench: a question in two rotations, and one alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.eval.mini.blobs import base64_png, table

# Name of a task -> its table; with labels or without.
FILES = {
    "mmbench_dev_20230712": ("mmbench/mmbench_dev_20230712.tsv", True),
    "mmbench_dev_en_20231003": ("mmbench/mmbench_dev_en_20231003.tsv", True),
    "mmbench_dev_cn_20231003": ("mmbench/mmbench_dev_cn_20231003.tsv", True),
    "mmbench_test_en_20231003": ("mmbench/mmbench_test_en_20231003.tsv", False),
    "mmbench_test_cn_20231003": ("mmbench/mmbench_test_cn_20231003.tsv", False),
    "MMBench_DEV_EN_V11": ("mmbench/MMBench_DEV_EN_V11.tsv", True),
    "MMBench_DEV_CN_V11": ("mmbench/MMBench_DEV_CN_V11.tsv", True),
    "MMBench_TEST_EN_V11": ("mmbench/MMBench_TEST_EN_V11.tsv", True),
    "MMBench_TEST_CN_V11": ("mmbench/MMBench_TEST_CN_V11.tsv", True),
    "ccbench_dev_cn": ("mmbench/CCBench_legacy.tsv", True),
}


def rows(labelled: bool) -> list[dict[str, Any]]:
    found = []
    for index, options, answer, category in (
        (1, ("None", "NA", "two"), "A", "counting"),
        (2, ("red", "blue", None), "B", "colour"),
        (1000001, ("NA", "two", "None"), "C", "counting"),
    ):
        row = {
            "index": index,
            "question": "How many?" if index % 1000000 == 1 else "What colour?",
            "hint": "Look closely." if index == 2 else None,
            **dict(zip("ABCD", (*options, None), strict=True)),
            "answer": answer,
            "category": category,
            # Rotations refer to the row that has the picture.
            "image": base64_png(index) if index < 1000000 else "1",
            "source": "s",
            "l2-category": "perception",
            "comment": None,
            "split": "dev",
        }
        if not labelled:
            del row["answer"]
        found.append(row)
    return found


def _writer(path: str, labelled: bool):  # type: ignore[no-untyped-def]
    return lambda root: table(Path(root) / path, rows(labelled))


WRITERS = {name: _writer(path, labelled) for name, (path, labelled) in FILES.items()}
