"""The size that the index promises, from text and picture headers alone, is the size of the real sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.address import Address
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.fit import Limits, check_limits
from internvl_chat.data.index_build import measure_line
from tests.data.helpers import NO_LIMIT, line, make_maker, picture_bytes, properties, spec_of, write_noise

sides = st.one_of(st.integers(1, 2000), st.integers(1, 60))
modes = st.sampled_from(["RGB", "L", "1", "P", "LA", "RGBA", "I;16", "CMYK", "YCbCr"])
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(lambda text: f"a{text}")


@st.composite
def samples(draw: st.DrawFn) -> tuple[list[tuple[int, int, str]], list[str]]:
    """Sizes and modes of the pictures, and the texts: the tags are spread over the questions."""
    pictures = draw(st.lists(st.tuples(sides, sides, modes), max_size=4))
    rounds = draw(st.integers(1, 3))
    questions = [draw(words).replace("<image>", "") for _ in range(rounds)]
    for _ in pictures:
        at = draw(st.integers(0, rounds - 1))
        questions[at] = draw(st.sampled_from(["<image>\n" + questions[at], questions[at] + "<image>"]))
    return pictures, [text for question in questions for text in (question, draw(words))]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tiles": 6},
        {"max_tiles": 12, "min_tiles": 2, "thumbnail": False},
        {"dynamic": False, "pad2square": True},
        {"max_tiles": 3, "backend": "pillow"},
    ],
    ids=["tiled", "no-thumbnail", "square", "pillow"],
)
def test_footprint_is_the_size_of_the_sample(tmp_path: Path, settings: dict[str, object]) -> None:
    maker = make_maker(**settings)  # type: ignore[arg-type]

    @properties(25)
    @given(samples(), st.booleans(), st.sampled_from([None, 1, 5]))
    def check(case: tuple[list[tuple[int, int, str]], list[str]], augment: bool, most: int | None) -> None:
        pictures, texts = case
        for number, (width, height, mode) in enumerate(pictures):
            (tmp_path / f"{number}.png").write_bytes(picture_bytes(width, height, mode))
        spec = spec_of(tmp_path / "a.jsonl", tmp_path, data_augment=augment, max_dynamic_patch=most)
        text = json.dumps(line(*texts, image=[f"{number}.png" for number in range(len(pictures))])).encode()
        footprint = maker.measure(text, spec)[0]
        sample = maker.load(text, spec, Address("notes", 0), expected=footprint)
        assert sample.footprint == footprint
        assert sample.tiles.dtype is torch.uint8
        assert sample.tiles.shape == (footprint.tiles, 3, 28, 28)
        assert sum(sample.tiles_per_image) == footprint.tiles
        assert len(sample.tiles_per_image) == len(pictures)
        assert (sample.input_ids == maker.encoder.image_token_id).sum() == 4 * footprint.tiles

    check()


def test_limits_are_faults_that_name_the_numbers_and_the_flags(tmp_path: Path) -> None:
    write_noise(tmp_path / "wide.png", 300, 100)
    spec = spec_of(tmp_path / "a.jsonl", tmp_path)
    text = json.dumps(line("<image>\nWhat?", "A picture.", image="wide.png")).encode()
    whole = make_maker().measure(text, spec)[0]
    assert whole.tiles == 4
    with pytest.raises(Fault, match=rf"{whole.tokens} tokens \(4 tiles\), more than max_seq_length 20; raise"):
        check_limits(whole, Limits(20, NO_LIMIT))
    with pytest.raises(Fault, match=r"4 tiles, more than num_images_expected 3; raise --num_images_expected") as fault:
        check_limits(whole, Limits(NO_LIMIT, 3))
    assert fault.value.code is FaultCode.TOO_MANY_TILES
    check_limits(whole, Limits(whole.tokens, 4))


def test_a_picture_replaced_by_one_of_another_size_is_stale_on_loading(tmp_path: Path) -> None:
    maker, spec = make_maker(), spec_of(tmp_path / "a.jsonl", tmp_path)
    text = json.dumps(line("<image>\nWhat?", "A picture.", image="a.png")).encode()
    write_noise(tmp_path / "a.png", 300, 100)
    promised = maker.measure(text, spec)[0]
    write_noise(tmp_path / "a.png", 100, 100)
    with pytest.raises(Fault, match=r"the index says .*tiles=4.* --rebuild_index True") as fault:
        maker.load(text, spec, Address("notes", 0), expected=promised)
    assert fault.value.code is FaultCode.STALE


def test_a_picture_replaced_by_one_of_the_same_grid_is_just_read(tmp_path: Path) -> None:
    maker, spec = make_maker(), spec_of(tmp_path / "a.jsonl", tmp_path)
    text = json.dumps(line("<image>\nWhat?", "A picture.", image="a.png")).encode()
    write_noise(tmp_path / "a.png", 300, 100)
    promised = maker.measure(text, spec)[0]
    write_noise(tmp_path / "a.png", 600, 200)
    assert maker.load(text, spec, Address("notes", 0), expected=promised).footprint == promised


def test_augmentation_differs_by_visit_line_data_set_and_seed_and_by_nothing_else(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png", 80, 80)
    spec = spec_of(tmp_path / "a.jsonl", tmp_path, data_augment=True)
    text = json.dumps(line("<image>\nWhat?", "A picture.", image="a.png")).encode()

    def tiles(address: Address, seed: int = 0) -> bytes:
        return make_maker(seed=seed).load(text, spec, address).tiles.numpy().tobytes()

    first = tiles(Address("notes", 3, 0))
    assert first == tiles(Address("notes", 3, 0))
    others = [Address("notes", 3, 1), Address("notes", 4, 0), Address("other", 3, 0)]
    drawn = {first, tiles(Address("notes", 3, 0), seed=1), *map(tiles, others)}
    assert len(drawn) >= 4  # 26 qualities, 5 tiles each: two draws may be alike


def test_frames_differ_by_visit_and_seed_their_number_by_the_line_alone(tmp_path: Path) -> None:
    (tmp_path / "film").mkdir()
    for number in range(60):
        write_noise(tmp_path / "film" / f"{number}.png", 28, 28, seed=number)
    spec = spec_of(tmp_path / "a.jsonl", tmp_path, min_num_frame=2, max_num_frame=9)
    texts = [json.dumps(line(f"<video>\nWhat {n}?", "A film.", video="film/")).encode() for n in range(8)]

    def tiles(text: bytes, epoch: int = 0, seed: int = 0) -> torch.Tensor:
        return make_maker(seed=seed).load(text, spec, Address("notes", 3, epoch)).tiles

    assert torch.equal(tiles(texts[0]), tiles(texts[0]))
    for text in texts:
        seen = [tiles(text, *where) for where in ((0, 0), (1, 0), (0, 1))]
        assert len({len(one) for one in seen}) == 1
        assert 2 <= len(seen[0]) <= 9
        assert not torch.equal(seen[0], seen[1])
        assert not torch.equal(seen[0], seen[2])
    assert len({len(tiles(text)) for text in texts}) > 3


def test_loading_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    import random

    write_noise(tmp_path / "a.png", 80, 80)
    spec = spec_of(tmp_path / "a.jsonl", tmp_path, data_augment=True)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    make_maker().load(json.dumps(line("<image>", "x", image="a.png")).encode(), spec, Address("notes", 0))
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    assert before == after


@pytest.mark.parametrize(("template", "name"), [("internvl2_5", "tiny-qwen2"), ("phi3-chat", "tiny-phi3")])
def test_any_damage_to_a_line_is_a_fault_or_another_good_line(tmp_path: Path, template: str, name: str) -> None:
    """Never another exception: one line must not end the building of an index."""
    maker, spec = make_maker(template, name), spec_of(tmp_path / "a.jsonl", tmp_path)
    write_noise(tmp_path / "a.png", 50, 40)
    good = json.dumps(
        line("<image>\nWhere is <ref>it</ref>?", "<box>[[1, 2, 3, 4]]</box>", "And?", "\U0001f600 é.", image="a.png"),
        ensure_ascii=False,
    ).encode()
    pieces = [b'"', b"\\", b"\\ud83d", b"\\u0000", b"{", b"]", b",", b"\xff", b"null", b"<image>", b"gpt", b"\n", b""]

    @properties(150)
    @given(st.lists(st.tuples(st.integers(0, len(good)), st.integers(0, 6), st.sampled_from(pieces)), max_size=4))
    def check(changes: list[tuple[int, int, bytes]]) -> None:
        text = good
        for place, removed, put in changes:
            text = text[:place] + put + text[place + removed :]
        tokens, _, supervised, fault = measure_line(text, spec, maker)
        assert (tokens > 0) is (fault == 0) is (supervised > 0)
        if not fault:
            assert maker.load(text, spec, Address("notes", 0)).footprint.tokens == tokens

    check()
