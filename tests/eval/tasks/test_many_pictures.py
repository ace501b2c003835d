"""MMMU, MMMU-Pro, MVBench, Mantis-Eval, MIRB and MMIU: pictures and frames, prompts, files, scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.tiles import TileSettings
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.prepare import verify
from internvl_chat.eval.registry import resolve, tasks
from internvl_chat.eval.task import Answered, Item
from internvl_chat.infer.pictures import Joined, Video, cut_shown, read_video
from tests.eval.harness import Asked, ask, format_cases
from tests.eval.mini import mmmu, mmmu_pro, mvbench, several
from tests.eval.mini.blobs import arrow, parquet, png
from tests.eval.mini.common import json_file
from tests.eval.tasks.test_yes_no import asked_of, items_of

TILES = TileSettings(size=28, min_tiles=1, max_tiles=6, thumbnail=True)


# -- MMMU -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", format_cases("MMMU_validation"), ids=lambda case: case["evaluate_sh_key"])
def test_mmmu_as_the_original_writes_it(tmp_path: Path, case: dict) -> None:
    for record in case["input_record"]:
        row = {name: png(k) if value == "<image>" else value for k, (name, value) in enumerate(record.items())}
        subject = record["id"].split("_")[1]
        parquet(tmp_path / f"MMMU/{subject}/validation-00000-of-00001.parquet", [row])
    asked = ask("mmmu-val", tmp_path, case["model_answers"])
    assert asked.prompts == case["prompts_seen"]
    for name, content in case["files"].items():
        assert asked.files[Path(name).name.replace("_{yymmddHHMMSS}", "")].content.decode() == content
    assert asked.result is not None
    # The golds of its own list are others.
    assert asked.result.lines == [case["stdout"][-2].replace("0.0", "1.0")]


def test_mmmu_pictures(tmp_path: Path) -> None:
    mmmu.WRITERS["MMMU_validation"](tmp_path)
    asked = ask("mmmu-val", tmp_path, ["B", "7"])
    art, math = asked.questions
    assert [(one.max_tiles, one.enlarge) for one in art.shown] == [(6, 2)]
    assert art.turns[0].text.startswith("<image>\nLook at <image 1>. Which?\nA. cat\nB. dog's\n")
    (block,) = math.shown  # all tiles are of one picture
    assert isinstance(block.source, Joined)
    assert [(one.max_tiles, one.enlarge) for one in block.source.parts] == [(6, 2), (1, 1)]
    assert math.turns[0].text.count("<image>") == 1
    assert asked.result is not None
    assert asked.result.figures["Overall"] == 1.0
    assert len(asked.result.missing) == 28 and "Music" in asked.result.missing


def test_mmmu_without_tiles(tmp_path: Path) -> None:
    mmmu.WRITERS["MMMU_dev"](tmp_path)
    asked = ask("mmmu-dev", tmp_path, ["", "It is\nseven"], dynamic=False)
    assert [[(one.max_tiles, one.enlarge) for one in item.shown] for item in asked.items] == [[(1, 1)], [(1, 1)]]
    assert asked.result is not None
    assert asked.result.marks == [0, 1]
    assert asked.result.notes == {
        "answers without a letter": 1,
        "questions of which only the first picture was seen": 1,
    }


def test_mmmu_test_is_scored_where_its_answers_are(tmp_path: Path) -> None:
    mmmu.WRITERS["MMMU_test"](tmp_path)
    asked = ask("mmmu-test", tmp_path, ["A", "7.0"])
    assert asked.result is not None
    assert asked.result.marks == [0, 1]
    (tmp_path / "MMMU/answer_dict_test.json").unlink()
    asked = ask("mmmu-test", tmp_path, ["A", "7.0"])
    assert asked.result is None
    assert '"test_Art_1": "A"' in asked.files["MMMU_test.json"].content.decode()


def test_mmmu_of_which_some_answers_are_lost(tmp_path: Path) -> None:
    """Before a model is asked: their questions would count as wrong."""
    mmmu.WRITERS["MMMU_test"](tmp_path)
    json_file(tmp_path / "MMMU/answer_dict_test.json", {"test_Art_1": {"ground_truth": "B"}})
    with pytest.raises(DataError, match=r"answer_dict_test\.json: 1 of 2 questions .* the first is 'test_Math_1'"):
        items_of("mmmu-test", tmp_path)
    mmmu.WRITERS["MMMU_dev"](tmp_path)
    parquet(tmp_path / "MMMU/Art/dev-00000-of-00001.parquet", [mmmu.rows("dev")["Art"][0] | {"answer": None}])
    with pytest.raises(DataError, match=r"dev-\*\.parquet: 1 of 2 questions .* the first is 'dev_Art_1'"):
        items_of("mmmu-dev", tmp_path)


@pytest.mark.parametrize(("key", "options"), [("mmmu-val", {"cot": "on"}), ("mmmu-val-cot", {})])
def test_mmmu_aloud(tmp_path: Path, key: str, options: dict[str, str]) -> None:
    mmmu.WRITERS["MMMU_validation"](tmp_path)
    asked = ask(key, tmp_path, ["A cat? No. Final answer: B", "7 or 8. Answer: 8"], **options)
    assert asked.prompts[0].endswith("Question:\n\nLook at <image 1>. Which?\nA. cat\nB. dog's")
    assert asked.result is not None
    assert asked.result.marks == [1, 0]


def test_mmmu_runs_nothing(tmp_path: Path) -> None:
    row = mmmu.rows("dev")["Art"][0] | {"options": "[print('x')]"}
    parquet(tmp_path / "MMMU/Art/dev-00000-of-00001.parquet", [row])
    with pytest.raises(DataError, match=r"dev_Art_1: the options .* are no list"):
        items_of("mmmu-dev", tmp_path)


def test_mmmu_in_the_cache_of_the_original(tmp_path: Path) -> None:
    mmmu.WRITERS["MMMU_validation"](tmp_path / "hub")
    for subject, rows in mmmu.rows("validation").items():
        arrow(tmp_path / f"cache/MMMU/MMMU___mmmu/{subject}/0.0.0/abc/mmmu-validation.arrow", rows)
    assert asked_of(items_of("mmmu-val", tmp_path / "cache")) == asked_of(items_of("mmmu-val", tmp_path / "hub"))
    (tmp_path / "cache/MMMU/MMMU___mmmu/Art/0.0.0/abc/mmmu-validation.arrow").write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"mmmu-validation\.arrow: the Arrow file cannot be read behind row 0"):
        items_of("mmmu-val", tmp_path / "cache")


# -- MMMU-Pro -------------------------------------------------------------------------------------------------------


def test_mmmu_pro(tmp_path: Path) -> None:
    mmmu_pro.standard(tmp_path)
    asked = ask("mmmu-pro-std10", tmp_path, ["Answer: B", "blue, as everything on this old picture"])
    assert asked.prompts == [
        "Compare <image> with <image>.\nA. red\nB. green\nC. blue\n"
        "Answer with the option letter from the given choices directly.",
        "What colour?\nA. red\nB. green\nC. blue\nAnswer with the option letter from the given choices directly.",
    ]
    first, second = (one.source for one in asked.items[0].shown)
    assert first != second
    assert len(asked.items[1].shown) == 1
    assert asked.result is not None
    assert asked.result.figures == {"accuracy": 100.0, "Art": 100.0, "History": 100.0}
    assert told(asked, "MMMU_Pro_std10.json")[0]["answer"] == "Answer: B"


def test_mmmu_pro_vision_aloud(tmp_path: Path) -> None:
    mmmu_pro.vision(tmp_path)
    asked = ask("mmmu-pro-vision", tmp_path, ["hm", "x\nAnswer: C"], cot="on")
    assert asked.prompts[0] == (
        "Write out the multiple-choice question in the image and then solve it. The last line of your response should "
        "be of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options. Think step by "
        "step before answering."
    )
    assert asked.result is not None
    assert asked.result.figures["accuracy"] == 50.0
    assert asked.result.notes == {"answers without a letter": 1}


def test_mmmu_pro_missing_picture(tmp_path: Path) -> None:
    row = dict(mmmu_pro.STANDARD[1]) | {"question": "See <image 2>"}
    parquet(tmp_path / "MMMU_Pro/standard (10 options)/test-0.parquet", [row])
    with pytest.raises(DataError, match="<image 2> in its text, but no such picture"):
        items_of("mmmu-pro-std10", tmp_path)


def test_mmmu_pro_without_an_answer(tmp_path: Path) -> None:
    parquet(tmp_path / "MMMU_Pro/standard (10 options)/test-0.parquet", [mmmu_pro.STANDARD[1] | {"answer": None}])
    with pytest.raises(DataError, match="test_Art_2: the answer None is none of the options"):
        items_of("mmmu-pro-std10", tmp_path)


# -- MVBench --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", format_cases("mvbench"), ids=lambda case: case["evaluate_sh_key"])
def test_mvbench_as_the_original_writes_it(tmp_path: Path, case: dict) -> None:
    record = case["input_record"]
    json_file(tmp_path / "MVBench/json/action_antonym.json", [record])
    video = mvbench.animation(tmp_path / "MVBench/video/ssv2_video/1.webp")
    video.rename(video.with_name(record["video"]))
    asked = ask("mvbench", tmp_path, case["model_answers"], num_segments="3")
    assert asked.prompts == case["prompts_seen"]
    for name, content in case["files"].items():
        assert asked.files[Path(name).name.replace("_{yymmddHHMMSS}", "")].content.decode() == content
    assert asked.result is not None
    assert asked.result.lines == [case["stdout"][1]]


def test_mvbench_frames(tmp_path: Path) -> None:
    mvbench.guide(tmp_path)
    asked = ask("mvbench", tmp_path, ["(B)", "", "(A) left"], num_segments="4")
    assert asked.result is not None
    # In the order of the published table.
    assert asked.result.figures == {
        "Action Sequence": 100.0, "Action Antonym": 0.0, "Episodic Reasoning": 0.0, "Avg": pytest.approx(100 / 3),
    }  # fmt: skip
    assert asked.result.notes["answers without a word, which the original counts as right"] == 1
    assert len(asked.result.missing) == 17 and "Action Prediction" in asked.result.missing
    sequence, antonym, episode = (item.shown[0].source for item in asked.items)
    assert isinstance(sequence, Video)
    # 0.5 s to 1.5 s at ten frames a second: 5 to 15.
    grey = [frame.getpixel((0, 0))[0] // 10 for frame in read_video(sequence)]  # type: ignore[index]
    assert grey == [6, 8, 11, 14]
    assert isinstance(antonym, Video)
    assert [frame.getpixel((0, 0))[0] // 10 for frame in read_video(antonym)] == [2, 7, 12, 16]  # type: ignore[index]
    assert isinstance(episode, Video)
    assert (episode.fps, episode.first, episode.bound) == (3, 1, (0.0, 2.0))
    assert len(cut_shown(asked.questions[2].shown, TILES).pixels) == 4  # one tile a frame


@pytest.mark.parametrize(("bound", "frames"), [((0.7, 0.7), [7, 7]), ((1.5, 9.0), [16, 18]), ((50.0, 60.0), [19, 19])])
def test_mvbench_segments_beyond_the_video(tmp_path: Path, bound: tuple[float, float], frames: list[int]) -> None:
    path = mvbench.animation(tmp_path / "a.webp")
    shown = read_video(Video(path, 2, bound, lenient=True))
    assert [frame.getpixel((0, 0))[0] // 10 for frame in shown] == frames  # type: ignore[index]


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5", ""])
def test_mvbench_number_of_frames(tmp_path: Path, number: str) -> None:
    mvbench.guide(tmp_path)
    with pytest.raises(ConfigError, match=f"num_segments='{number}'"):
        items_of("mvbench", tmp_path, num_segments=number)


def test_mvbench_gold_is_a_candidate(tmp_path: Path) -> None:
    mvbench.guide(tmp_path)
    record = {"video": "1.webp", "question": "What?", "candidates": ["left"], "answer": "up"}
    json_file(tmp_path / "MVBench/json/action_antonym.json", [record])
    with pytest.raises(DataError, match="the answer 'up' is none of its candidates"):
        items_of("mvbench", tmp_path)


# -- Mantis-Eval, MIRB, MMIU ----------------------------------------------------------------------------------------


def test_mantis(tmp_path: Path) -> None:
    several.mantis(tmp_path)
    asked = ask("mantis", tmp_path, ["(B)", "yes"])
    assert asked.prompts == [
        "Image-1: <image>\nImage-2: <image>\nWhich differs?\n(A) the first\n(B) the second\n"
        "Answer with the option's letter from the given choices directly.",
        "Image-1: <image>\nImage-2: <image>\nIs Image-1 larger than Image-2?\n"
        "Answer the question using a single word or phrase.",
    ]
    assert [one.max_tiles for one in asked.items[0].shown] == [3, 3]
    assert asked.result is not None
    assert list(asked.result.lines) == [
        "Multi-choice Accuracy: 1.0000", "Short-answer Accuracy: 1.0000", "Overall Accuracy: 1.0000",
    ]  # fmt: skip
    assert told(asked, "Mantis-Eval.json")[1] == {
        "question": asked.prompts[1], "answer": "yes", "gt_answers": "Yes", "id": "mantis_2",
    }  # fmt: skip


def told(asked: Asked, name: str) -> list[dict[str, Any]]:
    """The records of a file, which has one for each item."""
    found: list[dict[str, Any]] = json.loads(asked.files[name].content)
    assert [record["id"] for record in found] == [item.id for item in asked.items]
    return found


def test_mantis_with_one_picture(tmp_path: Path) -> None:
    row = several.MANTIS[1] | {"question": "Is <image> red?", "images": [png(1)]}
    parquet(tmp_path / "mantis_eval/mantis_eval/test-0.parquet", [row])
    (prompt,) = ask("mantis", tmp_path, ["yes"]).prompts
    assert prompt.startswith("<image>\nIs")


@pytest.mark.parametrize("answer", ["", " \n"])
def test_silence_is_wrong(tmp_path: Path, answer: str) -> None:
    several.mirb(tmp_path)  # "no" is the gold of the first
    parquet(tmp_path / "mantis_eval/mantis_eval/test-0.parquet", [several.MANTIS[1] | {"answer": answer}])
    for key in ("mirb", "mantis"):
        result = ask(key, tmp_path, lambda item: answer).result
        assert result is not None
        assert not any(result.marks)


def test_mantis_in_the_cache_of_the_original(tmp_path: Path) -> None:
    several.mantis(tmp_path / "hub")
    arrow(tmp_path / "cache/mantis_eval/TIGER-Lab___mantis-eval/x/0.0.0/abc/mantis-eval-test.arrow", several.MANTIS)
    assert asked_of(items_of("mantis", tmp_path / "cache")) == asked_of(items_of("mantis", tmp_path / "hub"))


def test_mirb(tmp_path: Path) -> None:
    several.mirb(tmp_path)
    asked = ask("mirb", tmp_path, lambda item: {"analogy/1": "no", "count/1": "There are 3"}.get(item.id, "?"))
    prompts = dict(zip([item.id for item in asked.items], asked.prompts, strict=True))
    assert prompts["count/1"] == "Image-1: <image>\nImage-2: <image>\nHow many cats?\nAnswer with a single number."
    assert asked.result is not None
    means = {"Mean": (1 / 4 + 1 / 3) / 4, "Knowledge": 0, "Reasoning": 1 / 4, "Perception": 1 / 3, "Multi-Hop": 0}
    tasks = dict.fromkeys((item.extra["task"] for item in asked.items), 0.0) | {"analogy": 1.0, "count": 1.0}
    assert asked.result.figures == pytest.approx(means | tasks)
    assert [line.split(" Acc: ")[0] for line in asked.result.lines] == [*list(means)[1:], "Mean"]
    assert {record["id"]: record["gt_answers"] for record in told(asked, "MIRB.json")}["count/1"] == "3"


def test_mirb_is_a_mean_of_all_tasks(tmp_path: Path) -> None:
    several.mirb(tmp_path)
    (tmp_path / "MIRB/food.json").unlink()
    with pytest.raises(DataError, match=r"not there: .*/MIRB/food\.json; docs"):
        items_of("mirb", tmp_path)
    (task,) = resolve(["mirb"])
    assert f"lacks {tmp_path}/MIRB/food.json, the rest is there" in verify(task, tmp_path).text()
    json_file(tmp_path / "MIRB/food.json", [])
    with pytest.raises(DataError, match=r"MIRB/food\.json.* is empty"):
        items_of("mirb", tmp_path)


def test_mirb_with_one_picture(tmp_path: Path) -> None:
    several.mirb(tmp_path)
    rows = [{"questions": "How many?", "answers": 3, "images": images} for images in (["images/a.png"], "images/a.png")]
    json_file(tmp_path / "MIRB/count.json", rows)
    texts = [item.text for item in items_of("mirb", tmp_path) if item.extra["task"] == "count"]
    assert texts == ["<image>\nHow many?\nAnswer with a single number."] * 2


def test_mmiu_is_the_mean_of_the_original_s_tasks() -> None:
    """The public data have others, too."""
    task = tasks()["mmiu"]
    rows = (
        ("jigsaw_puzzle_solving", "A"),
        ("jigsaw_puzzle_solving", "B"),
        ("Multiview_reasoning", "A"),
        ("other", "B"),
    )
    items = [
        Item(str(number), "?", (), gold, {"task": name, "options": {"A": "x", "B": "y"}})
        for number, (name, gold) in enumerate(rows)
    ]
    assert task.score is not None
    result = task.score(Answered(items, ["A"] * 4))
    assert result.figures["Overall"] == 0.75 and result.figures["mean of all tasks"] == 0.5
    assert len(result.missing) == 18


def test_mmiu(tmp_path: Path) -> None:
    several.mmiu(tmp_path / "guide")
    several.mmiu_pictures(tmp_path / "hub")
    parquet(tmp_path / "hub/mmiu/all.parquet", several.MMIU)
    assert asked_of(items_of("mmiu", tmp_path / "hub")) == asked_of(items_of("mmiu", tmp_path / "guide"))
    asked = ask("mmiu", tmp_path / "guide", ["two", "B"])
    assert asked.prompts[0] == (
        "Image-1: <image>\nImage-2: <image>\nWhich?\nSelect from:\nA: one\nB: two\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert asked.prompts[1].startswith("How many?\n")
    assert asked.result is not None
    assert asked.result.figures == {"Overall": 0.5, "ordering": 1.0, "counting": 0.0}
    assert list(asked.result.lines) == ["ordering accuracy: 1.0", "counting accuracy: 0.0", "Overall accuracy: 0.5"]
    assert [record["answer"] for record in told(asked, "mmiu.json")] == ["two", "B"]
    assert len(asked.result.missing) == 20 and asked.result.missing[0] == "point_tracking"
