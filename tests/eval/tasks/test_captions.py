"""COCO, Flickr30k and nocaps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.registry import keys, tasks
from internvl_chat.eval.score import captions as scorer
from tests.eval.harness import ask
from tests.eval.mini.captions import CAPTIONS, WRITERS
from tests.eval.mini.common import json_file, picture
from tests.eval.tasks.layouts import read_both_ways

PROMPT = "Provide a one-sentence caption for the provided image."


@pytest.mark.parametrize("name", WRITERS)
def test_score_and_files(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    answers = ["A cat sits on a couch.", "Zebra"]
    asked = ask(f"caption-{name}", tmp_path, answers)
    assert asked.prompts == [PROMPT, PROMPT]
    assert asked.result is not None
    assert asked.result.main == "CIDEr"
    assert list(asked.result.figures) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert asked.result.figures == scorer.score_captions(answers, list(CAPTIONS.values()))
    assert asked.result.figures["ROUGE_L"] == 0.5
    assert asked.result.lines[0] == "Average caption length: 3.5"
    assert json.loads(asked.files[f"{name}.json"].content) == [
        {"image_id": 42, "caption": "A cat sits on a couch."},
        {"image_id": 73, "caption": "Zebra"},
    ]


def test_generation_as_in_the_original() -> None:
    assert keys()["caption"] == tuple(WRITERS)
    for name in WRITERS:
        assert (tasks()[name].min_new_tokens, tasks()[name].max_new_tokens) == (8, 30)


def test_all_metrics_are_refused_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["coco"](tmp_path)
    monkeypatch.setattr(scorer.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"metrics=all needs Java .*; metrics=plain gives BLEU"):
        ask("caption-coco", tmp_path, ["a", "b"], metrics="all")


def test_all_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["coco"](tmp_path)
    monkeypatch.setattr("internvl_chat.eval.tasks.captions.check_java_metrics", lambda metrics: None)
    found = {"METEOR": 0.3, "SPICE": 0.2}
    monkeypatch.setattr("internvl_chat.eval.tasks.captions.java_metrics", lambda captions, references, metrics: found)
    asked = ask("caption-coco", tmp_path, ["a", "b"], metrics="all")
    assert asked.result is not None
    assert list(asked.result.figures)[4:] == ["METEOR", "ROUGE_L", "CIDEr", "SPICE"]


def test_karpathys_coco(tmp_path: Path) -> None:
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{name:012d}.jpg",
            "cocoid": name,
            "imgid": 1,
            "split": split,
            "sentences": [{"raw": text} for text in texts],
        }
        for (name, texts), split in zip(CAPTIONS.items(), ("test", "restval"), strict=True)
    ]
    picture(tmp_path / "coco/val2014/COCO_val2014_000000000042.jpg")
    json_file(tmp_path / "coco/dataset_coco.json", {"images": images, "dataset": "coco"})
    (item,) = read_both_ways("caption-coco", tmp_path, "Karpathy")
    assert (item["id"], item["gold"]) == ("42", CAPTIONS[42])


@pytest.mark.parametrize("folder", ["flickr30k-images", "Images"])
def test_karpathys_flickr(tmp_path: Path, folder: str) -> None:
    images = [
        {"filename": f"{name}.jpg", "imgid": name, "split": "test", "sentences": [{"raw": text} for text in texts]}
        for name, texts in CAPTIONS.items()
    ]
    for name in CAPTIONS:
        picture(tmp_path / f"flickr30k/{folder}/{name}.jpg", name)
    json_file(tmp_path / "flickr30k/dataset_flickr30k.json", {"images": images})
    items = read_both_ways("caption-flickr30k", tmp_path, "Karpathy")
    assert [item["gold"] for item in items] == list(CAPTIONS.values())


def test_bad_data(tmp_path: Path) -> None:
    WRITERS["nocaps"](tmp_path)
    path = tmp_path / "nocaps/nocaps_val_4500_captions.json"
    document = json.loads(path.read_text())
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] == 42]
    json_file(path, document)
    with pytest.raises(DataError, match="record 2: picture 73 has no reference caption"):
        ask("caption-nocaps", tmp_path, ["a", "b"])
    WRITERS["coco"](tmp_path)
    json_file(tmp_path / "coco/annotations/coco_karpathy_test.json", [{"image": "val2014/cat.jpg"}])
    with pytest.raises(DataError, match="has no number at its end"):
        ask("caption-coco", tmp_path, ["a", "b"])
