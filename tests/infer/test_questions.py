"""What is asked: tags, pictures and videos in reading order; and many questions at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from internvl_chat.data.record import Turn
from internvl_chat.data.tiles import TileSettings, cut_tiles
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer.batch import Answer, answers
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import Shown, Video, count_shown, cut_shown, read_video
from internvl_chat.infer.questions import Question, question_of

CLIP = Path(__file__).parents[1] / "goldens/videos/clip.mp4"
SETTINGS = TileSettings(size=28, max_tiles=6)
LENGTH = {"max_new_tokens": 10}


@pytest.fixture()
def frames(tmp_path: Path) -> Path:
    """A folder of ten frames, each of a grey of its own."""
    for number in range(10):
        Image.new("RGB", (40, 30), (number * 20,) * 3).save(tmp_path / f"frame_{number}.png")
    return tmp_path


def greys(pictures: list[Image.Image]) -> list[int]:
    return [round(float(np.array(picture).mean()) / 20) for picture in pictures]


@pytest.mark.parametrize(
    ("segments", "bound", "expected"),
    [
        (1, None, [4]),
        # The middles of 9/4 frames each, as the model cards round them: 1.125 + round(2.25 k).
        (4, None, [1, 3, 5, 8]),
        (3, (2.0, 5.0), [2, 3, 4]),  # one frame a second
        (12, None, [0, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8]),
    ],
)
def test_which_frames_are_seen(
    frames: Path, segments: int, bound: tuple[float, float] | None, expected: list[int]
) -> None:
    assert greys(read_video(Video(frames, segments, bound))) == expected


def test_a_video_has_one_tile_a_frame_unless_more_are_allowed(frames: Path) -> None:
    one = [Shown(Video(frames, 3), 1)]
    many = [Shown(Video(frames, 3), 6)]
    assert count_shown(one, SETTINGS) == cut_shown(one, SETTINGS).counts == (1, 1, 1)
    assert count_shown(many, SETTINGS) == cut_shown(many, SETTINGS).counts == (7, 7, 7)  # 40 x 30 is nearest to 3 x 2


def test_pictures_and_a_video_stand_where_the_tags_are(pictures: list[Path], frames: Path) -> None:
    asked = question_of("A <image> B <video>\nC <image> D", pictures[:2], frames, SETTINGS, num_segments=2)
    text = "A <image> B Frame-1: <image>\nFrame-2: <image>\nC <image> D"
    assert asked.turns == (Turn("human", text),)
    assert [one.max_tiles for one in asked.shown] == [3, 1, 3]
    assert isinstance(asked.shown[1].source, Video)
    first = question_of("What?", pictures[:2], frames, SETTINGS, num_segments=2, system="Be brief.")
    assert first.turns[0] == Turn("system", "Be brief.")
    assert first.turns[1].text == "Frame-1: <image>\nFrame-2: <image>\nImage-1: <image>\nImage-2: <image>\nWhat?"
    assert isinstance(first.shown[0].source, Video)
    again = question_of("And <image>?", pictures[2:3], None, SETTINGS, before=first.answered("This."))
    assert [turn.text for turn in again.turns[2:]] == ["This.", "And <image>?"]
    assert [one.max_tiles for one in again.shown] == [1, 3, 3, 6]
    assert again.shown[0] is first.shown[0]


@pytest.mark.parametrize(
    ("text", "video", "message"),
    [
        ("<video> what?", False, "has 1 <video> but no video is given"),
        ("<video> <video>", True, "2 <video> in the question; one video"),
    ],
)
def test_tags_of_videos_must_match(frames: Path, text: str, video: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        question_of(text, (), frames if video else None, SETTINGS)


def test_videos_that_cannot_be_used(tmp_path: Path, frames: Path) -> None:
    with pytest.raises(ConfigError, match="num_segments 0: at least one frame"):
        Video(frames, 0)
    for bound in ((5.0, 2.0), (100.0, 200.0)):
        with pytest.raises(DataError, match="goes from"):
            read_video(Video(frames, 2, bound))
    with pytest.raises(DataError, match=r"no.mp4.* does not exist; check the path$"):
        read_video(Video(tmp_path / "no.mp4"))
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(DataError, match=r"text.mp4"):
        count_shown([Shown(Video(tmp_path / "text.mp4"), 1)], SETTINGS)


def test_a_video_in_a_conversation(qwen: Loaded, pictures: list[Path]) -> None:
    """Ids and tiles of the question are those of a hand-made one, and stay in the next round."""
    chat = Chat(qwen)
    first = chat.ask("What happens?", video=CLIP, num_segments=3, **LENGTH)
    labels = "".join(f"Frame-{number}: <image>\n" for number in (1, 2, 3))
    tiles = [cut_tiles(frame, TileSettings(size=qwen.tiles.size, max_tiles=1)) for frame in read_video(Video(CLIP, 3))]
    ids = qwen.encoder.encode_prompt([Turn("human", labels + "What happens?")], [1, 1, 1])
    out = qwen.model.generate(
        input_ids=torch.from_numpy(ids)[None], pixel_values=torch.cat(tiles), do_sample=False,
        eos_token_id=list(qwen.stop_ids), **LENGTH,
    )  # fmt: skip
    assert first == qwen.tokenizer.decode([t for t in out[0].tolist() if t not in qwen.hidden_ids]).strip()
    assert chat.ask("And now?", **LENGTH) != Chat(qwen).ask("And now?", **LENGTH)
    assert "".join(Chat(qwen).ask("What happens?", video=CLIP, num_segments=3, stream=True, **LENGTH)) == first
    assert Chat(qwen).ask("What happens?", video=CLIP, num_segments=2, **LENGTH) != first


# -- many questions ---------------------------------------------------------------------------------------------------


def test_answers_come_with_their_numbers_whatever_the_batches(
    qwen: Loaded, pictures: list[Path], tmp_path: Path
) -> None:
    text = ["What?", "Which of the two is larger, and why do you think so?", "Who is it?", "Where was it taken?"]
    shown = [pictures[:1], pictures[1:3], [], pictures[3:]]
    questions = [question_of(q, p, None, qwen.tiles) for q, p in zip(text, shown, strict=True)]
    questions.insert(2, question_of("Gone?", [tmp_path / "gone.png"], None, qwen.tiles))
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:-100])  # its head is fine
    questions.append(question_of("Broken?", [broken], None, qwen.tiles))
    expected = [Chat(qwen).ask(q, p, **LENGTH) for q, p in zip(text, shown, strict=True)]
    for batch_size, window in ((1, 1), (2, 1), (2, 3), (8, 32)):
        taken: list[int] = []

        def watched(taken: list[int] = taken) -> object:
            for number, question in enumerate(questions):
                taken.append(number)
                yield question

        found = {}
        for number, answer in answers(qwen, watched(), batch_size, window, **LENGTH):
            assert number not in found
            found[number] = answer
            assert len(taken) <= (number // (batch_size * window) + 1) * batch_size * window
        assert set(found) == set(range(6))
        assert isinstance(found[2], DataError)
        assert "gone.png" in str(found[2])
        assert isinstance(found[5], DataError)
        assert "broken.png" in str(found[5])
        assert [found[number].text for number in (0, 1, 3, 4)] == expected
    with pytest.raises(ConfigError, match="at least 1"):
        next(answers(qwen, [], 0))


def test_an_answer_counts_its_tokens(qwen: Loaded) -> None:
    question = Question((Turn("human", "What?"),))
    ((_, cut),) = answers(qwen, [question], max_new_tokens=5)
    assert isinstance(cut, Answer)
    assert (cut.tokens, cut.finish) == (5, "length")
    assert cut.prompt_tokens == len(qwen.encoder.encode_prompt(question.turns, []))
    forced = {"forced_eos_token_id": qwen.stop_ids[0]}
    ((_, ended),) = answers(qwen, [question], max_new_tokens=5, **forced)
    assert isinstance(ended, Answer)
    assert (ended.tokens, ended.finish) == (5, "stop")


@given(st.lists(st.integers(0, 3), max_size=4), st.booleans(), st.integers(1, 4))
def test_one_tag_for_each_picture_and_frame(counts: list[int], film: bool, segments: int) -> None:
    """Whatever rounds there are, tags and what is shown pair up."""
    picture = Image.new("RGB", (30, 30))
    asked: Question | None = None
    for count in counts:
        before = asked.answered("Yes.") if asked else None
        asked = question_of("Q", [picture] * count, "clip" if film else None, SETTINGS, before, num_segments=segments)
    tags = sum(turn.text.count("<image>") for turn in asked.turns) if asked else 0
    expected = sum(counts) + len(counts) * film * segments
    assert tags == expected
