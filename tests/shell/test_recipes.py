"""Every script asks for what the original's script of that name asks for, flag by flag, but for a written list."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.config.parse import parse_arguments
from internvl_chat.config.renamed import CHANGES
from internvl_chat.data.manifest import KEYS, REQUIRED_KEYS
from internvl_chat.data.manifest import _read_object as read_manifest
from tests.conftest import ROOT
from tests.shell.helpers import SCRIPTS, SHELL, figures, flags_of, training_words

FIGURES = figures()
BY_PATH = {script["path"]: script for script in FIGURES["scripts"]}
PATHS = sorted(BY_PATH)
PATH_FLAGS = ("meta_path", "model_name_or_path", "vision_path", "llm_path", "mlp_path", "output_dir")


@dataclasses.dataclass(frozen=True)
class Deviation:
    """``scripts`` (a pattern over their paths) have another value on purpose. ``listed``: in docs/deviations.md."""

    listed: str
    scripts: str
    field: str
    original: str
    ours: str


V1_2 = r"internvl1.2/hermes2_yi34b/.*_finetune"
V1_5 = "work_dirs/internvl_chat_v1_5"
DELIBERATE = (
    Deviation("running a script again", ".*", "overwrite_output_dir", "True", "False"),
    Deviation("pixel shuffle of V1-2", V1_2, "ps_version", "None", "v1"),
    Deviation("tiling of V1-2", V1_2, "dynamic_image_size", "None", "False"),
    Deviation("tiling of V1-2", V1_2, "use_thumbnail", "None", "False"),
    *(
        Deviation(
            "what fine-tuning of 1.5 starts from", rf"internvl1.5/{llm}/.*_finetune", "model_name_or_path",
            f"work_dirs/internvl_chat_v1_5_{llm}_dynamic_res_{stage}",
            f"{V1_5}/internvl_chat_v1_5_{llm}_dynamic_res_pretrain",
        )
        for llm, stage in (
            ("hermes2_yi34b", "pretrain"), ("internlm2_1_8b", "pretrain"), ("internlm2_20b", "pretrain"),
            ("phi3_3_8b", "finetune"),
        )
    ),
    Deviation(
        "folder of the 2.5 26B full script", "internvl2.5/2nd_finetune/internvl2_5_26b.*_full", "output_dir",
        "work_dirs/internvl_chat_v2_5/internvl2_5_26b_dynamic_res_2nd_finetune_lora",
        "work_dirs/internvl_chat_v2_5/internvl2_5_26b_dynamic_res_2nd_finetune_full",
    ),
    Deviation("epochs beside steps", "mini_internvl/.*/internvl2_[12]b.*", "num_train_epochs", "2.0", "3.0"),
    Deviation("epochs beside steps", "mini_internvl/.*/internvl2_4b.*", "num_train_epochs", "1.0", "3.0"),
    *(
        Deviation("data that nobody else has", rf"internvl{scripts}", "meta_path", f"path/to/{data}.json", "")
        for scripts, data in (
            ("1.5/[^2].*_pretrain", "pretrain/data"), ("1.5/[^2].*_finetune", "finetune/data"),
            ("2.5/stage1/.*", "pretrain/data/mixture"), ("2.5/stage1.5/.*", "pretrain/data/mixture"),
            ("2.5/stage2/internvl2_5_[12]b.*", "finetune/data/mixture_4x"),
            ("2.5/stage2/internvl2_5_4b.*", "finetune/data/mixture_2x"),
            ("2.5/stage2/internvl2_5_(8|26|38|78)b.*", "finetune/data/mixture"),
        )
    ),
)  # fmt: skip
# Refused by the program, so these two scripts leave it out.
LIGER = {
    f"shell/internvl2.5/stage2/internvl2_5_{size}_dynamic_res_stage2.sh"
    for size in ("38b_qwen2_5_32b", "78b_qwen2_5_72b")
}


def original_flags(path: str) -> dict[str, str]:
    """The flags of the original's script, its variables filled in."""
    script = BY_PATH[path]
    flags = {**FIGURES["base"], **FIGURES["families"][script["family"]], **script["flags"]}
    env = {name: int(value) for name, value in script["env"].items()}
    if "BATCH_SIZE" in env:
        accumulation = env["BATCH_SIZE"] // env["PER_DEVICE_BATCH_SIZE"] // env["GPUS"]
        filled = {"${PER_DEVICE_BATCH_SIZE}": str(env["PER_DEVICE_BATCH_SIZE"]), "${GRADIENT_ACC}": str(accumulation)}
        flags = {name: filled.get(value, value) for name, value in flags.items()}
    return {**flags, "output_dir": script["output_dir"]}


@cache
def printed(path: str) -> list[str]:
    """The command that a script would run, as words; run from another folder, with nothing set."""
    done = subprocess.run(
        ["sh", str(ROOT / path)], env={"PATH": "/usr/bin:/bin", "LAUNCHER": "print", "PYTHON": "no-python"}, cwd="/",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.replace(" \\\n", " "))


def our_flags(path: str) -> dict[str, str]:
    return flags_of(training_words(printed(path)))


def plain_path(value: str) -> str:
    """From the project's root, without its decorations; a released model by its folder or its name on the hub."""
    value = value.replace(f"{ROOT}/", "").removeprefix("./").rstrip("/")
    return re.sub("^(pretrained|OpenGVLab)/", "", value)


def fields_of(flags: dict[str, str], stand_in: Path) -> dict[str, str]:
    """Every field of the three groups after parsing, paths as they were given."""
    paths = {name: plain_path(flags.get(name, "")) for name in PATH_FLAGS}
    there = {name: str(stand_in) for name in PATH_FLAGS} | {"output_dir": str(stand_in.parent)}
    given = {name: there.get(name, value) for name, value in flags.items()}
    given = {"meta_path": str(stand_in), **{name: value for name, value in given.items() if name != "use_liger"}}
    *groups, _ = parse_arguments([word for name, value in given.items() for word in (f"--{name}", value)])
    fields = {f.name: str(getattr(group, f.name)) for group in groups for f in dataclasses.fields(group)}
    return {**fields, **paths}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipes") / "meta.json"
    file.write_text("{}")
    return file


def test_there_is_a_script_for_each_that_trains_and_no_other() -> None:
    assert sorted(str(path.relative_to(ROOT)) for path in SCRIPTS) == PATHS
    assert len(PATHS) == 82


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_script_asks_for_what_the_original_asks_for(path: str, stand_in: Path) -> None:
    original, ours = (fields_of(flags, stand_in) for flags in (original_flags(path), our_flags(path)))
    assert set(original) == set(ours)
    found = {name: (original[name], ours[name]) for name in original if original[name] != ours[name]}
    name = path.removeprefix("shell/").removesuffix(".sh")
    expected = {d.field: (d.original, d.ours) for d in DELIBERATE if re.fullmatch(d.scripts, name)}
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_machines_and_batch_are_the_original_s(path: str) -> None:
    words, figure = printed(path), BY_PATH[path]
    env = {name: int(value) for name, value in figure["env"].items()}
    flags = flags_of(words)
    if figure["launcher"] == "srun":
        nodes = max(1, env["GPUS"] // env["GPUS_PER_NODE"])
        expected = [
            "srun", "--job-name", Path(path).stem, f"--gres=gpu:{env['GPUS_PER_NODE']}", f"--nodes={nodes}",
            f"--ntasks={env['GPUS']}", f"--ntasks-per-node={env['GPUS_PER_NODE']}",
            f"--cpus-per-task={env['CPUS_PER_TASK']}", "--kill-on-bad-exit=1", "no-python", "-u", "-m",
            "internvl_chat.train",
        ]  # fmt: skip
        start = words.index("srun")
        assert words[start : start + len(expected)] == expected
    else:
        assert words[words.index("no-python") :][:3] == ["no-python", "-m", "internvl_chat.train.torchrun"]
        assert flags["nproc_per_node"] == str(env["GPUS"])
    per_device, accumulated = (
        int(flags[name]) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    assert per_device == env.get("PER_DEVICE_BATCH_SIZE", 1)
    assert env["GPUS"] * per_device * accumulated == figure["batch"]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_no_flag_is_old_needless_or_said_twice(path: str) -> None:
    words = training_words(printed(path))
    names = [word.removeprefix("--") for word in words if word.startswith("--")]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice
    assert not set(names) & set(CHANGES)


def test_liger_is_what_two_scripts_leave_out() -> None:
    assert {path for path in PATHS if original_flags(path).get("use_liger") == "True"} == LIGER


def test_every_deviation_is_met_and_is_in_the_docs() -> None:
    names = [path.removeprefix("shell/").removesuffix(".sh") for path in PATHS]
    section = (ROOT / "docs/deviations.md").read_text().split("## Scripts\n")[1].split("\n## ")[0]
    for deviation in DELIBERATE:
        assert any(re.fullmatch(deviation.scripts, name) for name in names), deviation
        assert f"| {deviation.listed} |" in section, deviation.listed
    told = {line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")}
    of_the_launcher = {
        "what",
        "---",
        "`use_liger`",
        "resources",
        "batch",
        "`MASTER_PORT`",
        "exit status",
        "output folders",
    }
    assert told == {deviation.listed for deviation in DELIBERATE} | of_the_launcher


def test_no_two_scripts_share_a_folder() -> None:
    folders = [our_flags(path)["output_dir"] for path in PATHS]
    assert len(set(folders)) == len(folders)


def test_recipes_are_all_used_and_hold_a_flag_and_a_value_a_line() -> None:
    recipes = {path.name: path.read_text().splitlines() for path in (SHELL / "recipes").iterdir()}
    named = {
        match[1] + ".args" for path in SCRIPTS if (match := re.search(r"^launch \w+ (\S+)", path.read_text(), re.M))
    }
    for lines in recipes.values():
        named |= {line.split()[1] for line in lines if line.startswith("include ")}
        assert [line for line in lines if not re.fullmatch(r"#.*|include \S+\.args|--[a-z0-9_]+ \S+", line)] == []
    assert named == set(recipes)


@pytest.mark.parametrize("path", sorted((SHELL / "data").iterdir()), ids=lambda path: path.name)
def test_manifests_have_legal_keys_and_paths_of_the_project(path: Path) -> None:
    for name, entry in read_manifest(path).items():
        assert set(REQUIRED_KEYS) <= set(entry) <= set(KEYS), name
        assert entry["annotation"] == f"../../playground/opensource/{name}.jsonl"
        assert entry["root"].startswith("../../playground/data")


def test_data_of_v1_2_are_of_the_known_sizes() -> None:
    entries: dict[str, Any] = read_manifest(SHELL / "data/internvl_1_2_finetune.json")
    sizes = [102025, 157712, 665058, 200000, 18317, 12413, 10211, 72318, 29765]
    assert [entry["length"] for entry in entries.values()] == sizes
    (captions,) = read_manifest(SHELL / "data/coco_caption.json").values()
    assert captions["length"] == 566747
