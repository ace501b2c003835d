"""One run over every format and container at once: the samples are those of the same data in InternVL JSONL."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from internvl_chat.data.chat_template import write_chat_template
from internvl_chat.data.template import get_template
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import load
from tests.data.helpers import line, write_lines, write_noise
from tests.train.runs import flags, losses, run_all

BOX = {"ref": ["it"], "bbox": [[9, 9, 45, 27]]}


def write_pictures(folder: Path) -> None:
    for number in range(4):
        write_noise(folder / f"{number}.png", 90, 45, seed=number)
    (folder / "film").mkdir()
    for number in range(12):
        write_noise(folder / "film" / f"{number}.jpg", 30, 30, seed=number)
    with zipfile.ZipFile(folder / "pics.zip", "w") as archive:
        archive.write(folder / "0.png", "in/0.png")


def theirs(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest of eight data sets, each in another format, container or place."""
    import pyarrow
    import pyarrow.parquet

    picture = (folder / "1.png").read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    said = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    openai = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "One."}]}
    swift = {"query": "Find <ref-object>", "response": "<bbox>", "images": ["2.png"], "objects": json.dumps(BOX)}
    sharegpt = {"dialog": [{"role": "user", "content": "<image>\nWho?"}, {"role": "assistant", "content": "She."}]}
    table = [{"instruction": "Add.", "input": "1 2", "output": "3", "images": [{"bytes": picture, "path": None}]}]
    (folder / "openai.json").write_text(json.dumps([openai], indent=1))
    (folder / "swift.jsonl.gz").write_bytes(gzip.compress(json.dumps(swift).encode()))
    write_lines(folder / "sharegpt.jsonl", [{**sharegpt, "images": ["3.png"]}])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "alpaca.parquet")
    write_lines(folder / "film.jsonl", [line("<video>\nWhat happens?", "Noise.", video="film/")])
    write_lines(folder / "zip.jsonl", [line("<image>\nWhat?", "Nought.", image="in/0.png")])
    files = {name.split(".")[0]: {"root": str(folder), "annotation": str(folder / name)} for name in (
        "openai.json", "swift.jsonl.gz", "sharegpt.jsonl", "alpaca.parquet", "film.jsonl", "zip.jsonl",
    )}  # fmt: skip
    files["sharegpt"] |= {"format": "sharegpt", "columns": {"messages": "dialog"}}
    files["film"] |= {"sampling_method": "middle", "min_num_frame": 4, "max_num_frame": 4}
    files["zip"] |= {"root": str(folder / "pics.zip")}
    return files


def ours(folder: Path) -> dict[str, dict[str, Any]]:
    """The same samples under the same names, as InternVL JSONL with files."""
    grounded = "<box>[[100, 200, 500, 600]]</box>"
    frames = [f"film/{number}.jpg" for number in (1, 4, 7, 10)]  # the middles of 12 / 4
    labels = "".join(f"Frame-{number}: <image>\n" for number in range(1, 5))
    items = {
        "openai": line("<image>\nWhat?", "One.", image="1.png"),
        "swift": line("<image>\nFind <ref>it</ref>", grounded, image="2.png"),
        "sharegpt": line("<image>\nWho?", "She.", image="3.png"),
        "alpaca": line("<image>\nAdd.\n1 2", "3", image="1.png"),
        "film": line(f"{labels}What happens?", "Noise.", image=frames),
        "zip": line("<image>\nWhat?", "Nought.", image="0.png"),
    }
    manifest = {}
    for name, item in items.items():
        annotation = write_lines(folder / f"ours-{name}.jsonl", [item])
        manifest[name] = {"root": str(folder), "annotation": str(annotation)}
    return manifest


@pytest.mark.slow
def test_a_run_is_the_same_in_any_format(tiny: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(theirs(tmp_path), sort_keys=False))
    (tmp_path / "ours.json").write_text(json.dumps(ours(tmp_path)))
    settings = {"max_steps": 3, "use_packed_ds": True, "max_packed_tokens": 1024, "max_seq_length": 512}
    settings |= {"max_dynamic_patch": 4, "logging_steps": 1}
    jobs = [flags(tiny, tmp_path / "theirs.yaml", tmp_path / "theirs", **settings)]
    jobs.append(flags(tiny, tmp_path / "ours.json", tmp_path / "ours", **settings))
    # The same model whose tokenizer says itself what the named template says.
    twin = shutil.copytree(tiny, tmp_path / "twin")
    (twin / "chat_template.jinja").write_text(write_chat_template(get_template("internvl2_5"), "<image>\n"))
    jobs.append(flags(twin, tmp_path / "ours.json", tmp_path / "own", **settings, conv_style="chat_template"))
    run_all(jobs, timeout=120)
    assert losses(tmp_path / "theirs") == losses(tmp_path / "ours") == losses(tmp_path / "own")
    assert len(losses(tmp_path / "theirs")) == 3
    faults = tmp_path / "theirs" / "faults.jsonl"
    assert not faults.exists() or not faults.read_text()
    check_own_template(tmp_path / "own", tmp_path / "ours", tmp_path / "1.png")


def check_own_template(own: Path, named: Path, picture: Path) -> None:
    """A model trained with its own chat template is asked, saved and rendered as its twin with the named one."""
    assert json.loads((own / "config.json").read_text())["template"] == "chat_template"
    models = [load(folder) for folder in (own, named)]
    answers = [Chat(model).ask("What?", [picture], max_new_tokens=4) for model in models]
    assert answers[0] == answers[1]
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    texts = [m.tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False) for m in models]
    assert texts[0] == texts[1]
