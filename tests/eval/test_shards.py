"""Shares of processes: the original's are contiguous, ours every n-th item; the file has the data's order in both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.infer.answers_file import AnswersFile
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("shard_indices"))
def test_order_of_the_file(tmp_path: Path, case: dict[str, Any]) -> None:
    total, world = case["prediction"]["total"], case["prediction"]["world_size"]
    joined = [number for start, stop in expected(case) for number in range(start, stop)]
    items = {str(number): "digest" for number in range(total)}
    sizes = []
    for rank in reversed(range(world)):  # whoever ends last puts the file together
        with AnswersFile(tmp_path / "a.jsonl", items, {}, rank=rank, world_size=world, run="one") as file:
            sizes.append(len(file.todo))
            for key in file.todo:
                file.add(key, {"answer": ""})
            file.finish()
    assert sorted(sizes) == sorted(stop - start for start, stop in expected(case))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [int(json.loads(line)["id"]) for line in lines] == joined
