"""Samples that are too long: what each policy gives up, that the rest is as it was, and that index and loader agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.data.address import Address
from internvl_chat.data.corpus import open_corpus
from internvl_chat.data.faults import Cut, Fault, FaultCode, TooManyFaults
from internvl_chat.data.fit import Footprint, Limits
from internvl_chat.data.index_build import measure_line
from internvl_chat.data.sample import SampleMaker, VideoSettings
from tests.data.helpers import NO_LIMIT, encoder, line, make_maker, properties, spec_of, write_lines, write_noise


def maker_of(max_tokens: int, max_tiles: int, policy: str, **more: Any) -> SampleMaker:
    whole = make_maker(**more)
    limits = Limits(max_tokens, max_tiles, policy)  # type: ignore[arg-type]
    return SampleMaker(whole.encoder, whole.tiles, limits, videos=VideoSettings("middle", 6, 6))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_noise(tmp_path / "wide.png", 300, 100)
    write_noise(tmp_path / "square.png", 60, 60)
    (tmp_path / "film").mkdir()
    for number in range(10):
        write_noise(tmp_path / "film" / f"{number}.png", 30, 20, seed=number)
    return tmp_path


def both(maker: SampleMaker, item: dict[str, Any], folder: Path) -> tuple[Footprint, Cut | None]:
    """What the index says, after a look at the sample itself."""
    text, spec = json.dumps(item).encode(), spec_of(folder / "a.jsonl", folder)
    footprint, cut = maker.measure(text, spec)
    assert maker.load(text, spec, Address("notes", 0), expected=footprint).footprint == footprint
    return footprint, cut


def test_fewer_tiles_are_the_most_that_fit(folder: Path) -> None:
    item = line("<image>\nWhat?", "A picture.", image="wide.png")  # 3 tiles and a thumbnail of 4 tokens each
    whole, _ = both(maker_of(NO_LIMIT, NO_LIMIT, "drop"), item, folder)
    assert whole.tiles == 4
    for spare, tiles in ((0, 4), (1, 3), (4, 3), (5, 1), (8, 1), (12, 1)):
        footprint, cut = both(maker_of(whole.tokens - spare, NO_LIMIT, "fewer_tiles"), item, folder)
        assert (footprint.tiles, footprint.tokens) == (tiles, whole.tokens - 4 * (4 - tiles))
        assert cut == (Cut.FEWER_TILES if tiles < 4 else None)
        assert footprint.supervised == whole.supervised
    footprint, cut = both(maker_of(NO_LIMIT, 3, "fewer_tiles"), item, folder)
    assert (footprint.tiles, cut) == (3, Cut.FEWER_TILES)
    with pytest.raises(Fault, match=f"{whole.tokens} tokens .4 tiles., more than max_seq_length"):
        both(maker_of(whole.tokens - 13, NO_LIMIT, "fewer_tiles"), item, folder)


def test_fewer_tiles_of_a_video_are_fewer_frames(folder: Path) -> None:
    item = line("<video>\nWhat?", "A film.", video="film/")
    whole, _ = both(maker_of(NO_LIMIT, NO_LIMIT, "drop"), item, folder)
    assert whole.tiles == 6
    for most in (5, 3, 1):
        footprint, cut = both(maker_of(NO_LIMIT, most, "fewer_tiles"), item, folder)
        assert (footprint.tiles, cut) == (most, Cut.FEWER_TILES)


def test_whole_rounds_are_left_away_from_the_end(folder: Path) -> None:
    texts = ["<image>\nOne?", "First answer.", "Two? <image>", "Second answer.", "Three?", "Third answer."]
    item = line(*texts, image=["square.png", "wide.png"], system="Be brief.")
    whole, _ = both(maker_of(NO_LIMIT, NO_LIMIT, "drop"), item, folder)
    seen = set()
    for most in range(whole.tokens, 10, -1):
        maker = maker_of(most, NO_LIMIT, "truncate")
        try:
            footprint, cut = both(maker, item, folder)
        except Fault as fault:
            assert fault.code is FaultCode.TOO_LONG
            break
        assert footprint.tokens <= most
        assert cut == (Cut.FEWER_TURNS if footprint != whole else None)
        seen.add(footprint)
    assert len(seen) == 3
    for rounds in (1, 2):
        # The first rounds alone; each picture is cut as beside the others, so with half of the tile limit.
        images = ["square.png", "wide.png"][:rounds]
        part = line(*texts[: 2 * rounds], image=images, system="Be brief.")
        alone = maker_of(NO_LIMIT, NO_LIMIT, "drop")
        spec = spec_of(folder / "a.jsonl", folder, max_dynamic_patch=3 * rounds)
        assert alone.measure(json.dumps(part).encode(), spec)[0] in seen


def test_a_conversation_is_not_cut_to_what_nobody_learns_from(folder: Path) -> None:
    item = line("One?", "First.", "Two?", "Second answer.")
    item["conversations"][1]["loss"] = False
    footprint, _ = both(maker_of(NO_LIMIT, NO_LIMIT, "drop"), item, folder)
    with pytest.raises(Fault, match="more than max_seq_length"):
        both(maker_of(footprint.tokens - 1, NO_LIMIT, "truncate"), item, folder)


def test_answers_without_loss_are_read_but_not_learnt() -> None:
    encode = encoder("internvl2_5", "tiny-qwen2", 4)
    maker = make_maker()
    item = line("One?", "First.", "Two?", "Second.")
    whole = maker.load(json.dumps(item).encode(), spec_of(Path("a.jsonl")), Address("a", 0))
    item["conversations"][1]["loss"] = 0
    part = maker.load(json.dumps(item).encode(), spec_of(Path("a.jsonl")), Address("a", 0))
    assert part.input_ids.tolist() == whole.input_ids.tolist()
    learnt = part.input_ids[part.labels != IGNORE_INDEX].tolist()
    assert learnt == [*encode.text_ids("Second.", "\n"), encode.stop_id]


def test_any_policy_and_limit_gives_a_sample_or_a_fault_and_keeps_the_limit(folder: Path) -> None:
    words = st.text(st.sampled_from("ab \n<é"), min_size=1, max_size=30).map(lambda text: f"a{text}")

    @properties(60)
    @given(
        st.lists(
            st.tuples(words, words, st.sampled_from(["", "wide.png", "square.png", "film/"])), min_size=1, max_size=4
        ),
        st.integers(20, 160),
        st.integers(1, 12),
        st.sampled_from(["fewer_tiles", "truncate"]),
    )
    def check(rounds: list[tuple[str, str, str]], tokens: int, tiles: int, policy: str) -> None:
        texts, images, videos = [], [], []
        for question, answer, name in rounds:
            tag = "" if not name else "<video>" if name == "film/" else "<image>"
            texts += [f"{tag}\n{question}", answer]
            (videos if name == "film/" else images).extend([name] if name else [])
        item = line(*texts, image=images, video=videos)
        text, spec = json.dumps(item).encode(), spec_of(folder / "a.jsonl", folder)
        maker = maker_of(tokens, tiles, policy)
        size = measure_line(text, spec, maker)
        if size[0]:
            assert size[0] <= tokens
            assert size[1] <= tiles
            assert size[2] > 0
            maker.load(text, spec, Address("notes", 0), expected=Footprint(*size[:3]))
        else:
            assert size[3] in (FaultCode.TOO_LONG, FaultCode.TOO_MANY_TILES)

    check()


def test_what_was_cut_is_counted_and_the_limit_is_part_of_the_key(folder: Path, caplog: Any) -> None:
    annotation = write_lines(folder / "a.jsonl", [line("Hi", "Ho"), line("<image>", "x", image="wide.png")])
    spec = spec_of(annotation, folder)
    sizes = []
    for most in (4, 3, 1):
        caplog.clear()
        with caplog.at_level("INFO"):
            corpus = open_corpus([spec], maker_of(NO_LIMIT, most, "fewer_tiles"), folder / "index")
        assert ("1 lines cut to fit (FEWER_TILES)" in caplog.text) is (most < 4)
        sizes.append(corpus.column("tiles").tolist())
    assert sizes == [[0, 4], [0, 3], [0, 1]]


def test_fail_ends_the_run_and_names_the_first(folder: Path) -> None:
    annotation = write_lines(folder / "a.jsonl", [line("Hi", "Ho"), line("<image>", "x", image="wide.png")])
    with pytest.raises(TooManyFaults, match=r"--long_samples is fail; the first: .*a\.jsonl:2: 4 tiles, more than"):
        open_corpus([spec_of(annotation, folder)], maker_of(NO_LIMIT, 3, "fail"), folder / "index", max_fault_share=1)
