"""A model by its name on the hub, from the hub's own cache; nothing here touches a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl_chat.errors import CheckpointError
from internvl_chat.model.hub import find_folder


@pytest.fixture()
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model in it, as huggingface_hub lays it out."""
    snapshot = tmp_path / "models--OpenGVLab--InternVL9-1B" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--OpenGVLab--InternVL9-1B" / "refs").mkdir()
    (tmp_path / "models--OpenGVLab--InternVL9-1B" / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_folder_is_itself(tmp_path):
    assert find_folder(tmp_path) == tmp_path


def test_a_name_is_found_in_the_cache(cache):
    assert (find_folder("OpenGVLab/InternVL9-1B") / "config.json").read_text() == "{}"


def test_a_name_that_is_not_there_says_how_to_get_it(cache):
    with pytest.raises(CheckpointError) as error:
        find_folder("OpenGVLab/InternVL9-2B")
    assert str(error.value) == (
        "OpenGVLab/InternVL9-2B: no such folder, and not in the hub's cache; "
        "hf download OpenGVLab/InternVL9-2B --local-dir pretrained/InternVL9-2B"
    )


def test_what_the_hub_answers_is_told(monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("internvl_chat.model.hub.snapshot_download", full)
    with pytest.raises(CheckpointError, match=r"^a9/b: no such folder, .* from the hub: No space left on device$"):
        find_folder("a9/b")


@pytest.mark.parametrize("name", ["./pretrained/nothing", "/nowhere/at/all", "a/b/c", "nothing"])
def test_a_path_is_no_name(name):
    with pytest.raises(CheckpointError, match="no such folder; check the path"):
        find_folder(name)
