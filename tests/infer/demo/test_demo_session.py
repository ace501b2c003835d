"""A visitor's conversation without a page: streams, stops, errors, boxes, many visitors at once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from PIL import Image
from talking import talking, write_video

from internvl_chat.data.tiles import count_tiles, cut_tiles
from internvl_chat.errors import DataError, InternVLError
from internvl_chat.infer.boxes import draw_boxes
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.demo.line import Line
from internvl_chat.infer.demo.look import alert, messages, tiles_html
from internvl_chat.infer.demo.seen import GAP, LARGE_GAP, TILE_SIDE, what_is_seen
from internvl_chat.infer.demo.session import Model, Round, Session, Settings, sort_files
from internvl_chat.infer.demo.visitors import Visitors
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.pictures import Video, read_video

SHORT = Settings(max_new_tokens=12, max_tiles=6)
BOXES = "A <ref>cat</ref><box>[[100, 200, 500, 600]]</box> and <ref>猫</ref><box>[[600, 200, 900, 600]]</box>."
SAID = {"where": BOXES, "long": "word " * 200}


@pytest.fixture()
def plain(qwen: Loaded) -> Loaded:
    return talking(qwen)


@pytest.fixture()
def session(plain: Loaded, tmp_path: Path) -> Session:
    return Session([Model("tiny", plain)], tmp_path / "drawn")


def last(rounds: list[tuple[Round, ...]], model: int = 0) -> str:
    return rounds[-1][-1].answers[model].text


def greedy(loaded: Loaded, *questions: tuple[str, list[Path]], settings: Settings = SHORT) -> list[str]:
    """The reference: a plain conversation."""
    chat = Chat(settings.tiled(loaded))
    return [chat.ask(question, files, max_new_tokens=settings.max_new_tokens) for question, files in questions]


def test_a_streamed_answer_grows_to_the_greedy_text(session: Session, plain: Loaded, pictures: list[Path]) -> None:
    texts = [rounds[-1].answers[0].text for rounds in session.ask("What is it?", pictures[:2], SHORT)]
    assert texts[-1] == greedy(plain, ("What is it?", pictures[:2]))[0] != ""
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(texts))
    assert session.rounds[0].pictures == tuple(pictures[:2])
    assert session.rounds[0].answers[0].state == "done"


def test_pieces_are_told_while_the_answer_is_written(qwen: Loaded, tmp_path: Path) -> None:
    session = Session([Model("slow", talking(qwen, pause=0.05))], tmp_path)
    seen = [rounds[-1].answers[0].text for rounds in session.ask("Hello", [], SHORT)]
    assert len(set(seen)) >= 5


def test_rounds_and_settings_reach_the_model(session: Session, plain: Loaded, pictures: list[Path]) -> None:
    few = replace(SHORT, max_tiles=1, max_new_tokens=7)
    first = last(list(session.ask("What is it?", pictures[:1], few)))
    second = last(list(session.ask("And now?", [], few)))
    assert [first, second] == greedy(plain, ("What is it?", pictures[:1]), ("And now?", []), settings=few)
    many = greedy(plain, ("What is it?", pictures[:1]), ("And now?", []), settings=replace(few, max_tiles=6))
    assert [first, second] != many  # the tile limit makes a difference
    hot = [last(list(session.ask_again(replace(few, temperature=1.5)))) for _ in range(4)]
    assert len(set(hot)) > 1


def test_a_video_is_asked_about(session: Session, plain: Loaded, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4")
    three = replace(SHORT, num_segments=3)
    answer = last(list(session.ask("What happens?", [film], three)))
    assert answer == Chat(plain).ask("What happens?", video=film, num_segments=3, max_new_tokens=12)
    assert answer != Chat(plain).ask("What happens?", max_new_tokens=12)
    assert session.rounds[0].video == film


def test_two_models_answer_side_by_side(
    loaded_of: Callable[[str], Loaded], pictures: list[Path], tmp_path: Path
) -> None:
    loaded = [talking(loaded_of(kind)) for kind in ("qwen2", "llama")]
    session = Session([Model(name, one) for name, one in zip("ab", loaded, strict=True)], tmp_path)
    rounds = list(session.ask("What is it?", pictures[:1], SHORT))
    for number, one in enumerate(loaded):
        assert last(rounds, number) == greedy(one, ("What is it?", pictures[:1]))[0]
    assert last(rounds, 0) != last(rounds, 1)


def test_stop_ends_generation_and_the_question_is_forgotten(qwen: Loaded, pictures: list[Path], tmp_path: Path) -> None:
    loaded = talking(qwen, SAID, pause=0.01)
    session = Session([Model("slow", loaded)], tmp_path)
    first = last(list(session.ask("What is it?", pictures[:1], SHORT)))
    long = replace(SHORT, max_new_tokens=200)
    rounds = []
    for rounds in session.ask("a long one", [], long):
        if "word" in rounds[-1].answers[0].text:
            session.stop()
    assert rounds[-1].answers[0].state == "stopped"
    assert rounds[-1].answers[0].text.startswith("word")
    assert loaded.model.tokens < 100  # type: ignore[operator]
    # The rest is as if it had never been asked; and it can be asked again.
    assert last(list(session.ask_again(long))).count("word") > 30
    assert first == greedy(loaded, ("What is it?", pictures[:1]))[0]


def test_after_a_stop_the_next_answer_is_that_of_a_conversation_without_it(
    qwen: Loaded, pictures: list[Path], tmp_path: Path
) -> None:
    loaded = talking(qwen, SAID, pause=0.02)
    session = Session([Model("slow", loaded)], tmp_path)
    list(session.ask("What is it?", pictures[:1], SHORT))
    for _ in session.ask("a long one", [], replace(SHORT, max_new_tokens=200)):
        session.stop()
    answer = last(list(session.ask("And now?", [], SHORT)))
    assert answer == greedy(loaded, ("What is it?", pictures[:1]), ("And now?", []))[1]
    assert len(session.rounds) == 3


def test_a_reader_who_goes_away_stops_the_answer(qwen: Loaded, tmp_path: Path) -> None:
    loaded = talking(qwen, SAID, pause=0.02)
    session = Session([Model("slow", loaded)], tmp_path)
    stream = session.ask("a long one", [], replace(SHORT, max_new_tokens=200))
    while "word" not in next(stream)[-1].answers[0].text:
        pass
    stream.close()  # type: ignore[attr-defined]
    assert loaded.model.tokens < 100  # type: ignore[operator]
    assert not session.busy
    assert last(list(session.ask("Hello", [], SHORT))) == greedy(loaded, ("Hello", []))[0]


def test_regenerating_replaces_the_last_answer_only(session: Session, plain: Loaded, pictures: list[Path]) -> None:
    list(session.ask("What is it?", pictures[:1], SHORT))
    second = last(list(session.ask("And now?", [], SHORT)))
    assert last(list(session.ask_again(SHORT))) == second
    assert len(session.rounds) == 2
    expected = greedy(plain, ("What is it?", pictures[:1]), ("And now?", []), ("Then?", []))
    assert last(list(session.ask("Then?", [], SHORT))) == expected[2]


def test_a_clear_begins_anew(session: Session, plain: Loaded, pictures: list[Path]) -> None:
    list(session.ask("What is it?", pictures[:1], SHORT))
    session.clear()
    assert session.rounds == ()
    assert last(list(session.ask("And now?", [], SHORT))) == greedy(plain, ("And now?", []))[0]
    session.clear()
    with pytest.raises(DataError, match="no question yet"):
        list(session.ask_again(SHORT))


def test_errors_leave_the_conversation_as_it_was(
    loaded_of: Callable[[str], Loaded], pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    loaded = [talking(loaded_of(kind)) for kind in ("qwen2", "llama")]
    session = Session([Model(name, one) for name, one in zip("ab", loaded, strict=True)], tmp_path)
    list(session.ask("What is it?", pictures[:1], SHORT))
    film = write_video(tmp_path / "film.mp4")
    for question, files, message in (
        ("Well?", [broken], "broken.png' cannot be opened"),
        (" ", pictures[:1], "write a question"),
        ("<image> <image> which?", pictures[:1], "2 <image> in the question"),
        ("Which?", [film, film], "2 videos"),
    ):
        with pytest.raises(DataError, match=message):
            list(session.ask(question, files, SHORT))
    loaded[1].model.failing = True  # type: ignore[assignment]
    for asking in (session.ask("And now?", [], SHORT), session.ask_again(SHORT)):
        with pytest.raises(InternVLError, match="b: out of memory; take fewer tiles"):
            list(asking)
    loaded[1].model.failing = False  # type: ignore[assignment]
    assert len(session.rounds) == 1
    rounds = list(session.ask("And now?", [], SHORT))
    for number, one in enumerate(loaded):
        assert last(rounds, number) == greedy(one, ("What is it?", pictures[:1]), ("And now?", []))[1]


def test_a_second_question_of_a_visitor_waits_for_the_first_to_end(qwen: Loaded, tmp_path: Path) -> None:
    session = Session([Model("slow", talking(qwen, pause=0.02))], tmp_path)
    stream = session.ask("Hello", [], SHORT)
    next(stream)
    with pytest.raises(DataError, match="an answer is being written"):
        list(session.ask("Hello?", [], SHORT))
    list(stream)
    list(session.ask("Hello?", [], SHORT))


def test_many_visitors_get_their_own_answers_one_at_a_time(qwen: Loaded, tmp_path: Path) -> None:
    names = ["red", "green", "blue", "black", "left", "right", "first", "second"]
    loaded = talking(qwen, {name: f"{name} " * 6 for name in names}, pause=0.002)
    visitors = Visitors([Model("tiny", loaded)], tmp_path)
    answers: dict[str, list[str]] = {}
    states = set()

    def visit(name: str) -> None:
        session = visitors.session(name)
        for _ in range(2):
            for rounds in session.ask(f"Say {name}", [], replace(SHORT, max_new_tokens=40)):
                states.add(rounds[-1].answers[0].state)
        answers[name] = [round.answers[0].text for round in session.rounds]

    threads = [threading.Thread(target=visit, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {name: [f"{name} " * 5 + name] * 2 for name in names}
    assert loaded.model.most_at_work == 1  # type: ignore[operator]
    assert "waiting" in states


def test_boxes_are_drawn_on_the_picture_that_was_asked_about(
    qwen: Loaded, pictures: list[Path], tmp_path: Path
) -> None:
    session = Session([Model("tiny", talking(qwen, SAID))], tmp_path / "drawn")
    long = replace(SHORT, max_new_tokens=200)
    list(session.ask("What is it?", pictures[:1], SHORT))
    assert session.rounds[0].answers[0].drawn == ()
    answer = list(session.ask("where?", [], long))[-1][-1].answers[0]
    assert (answer.text, len(answer.drawn), answer.legend) == (BOXES, 1, ("2 = 猫",))
    with Image.open(pictures[0]) as original:
        enlarged = original.convert("RGB").resize((640, round(original.height * 640 / original.width)))
        draw_boxes(enlarged, BOXES).save(tmp_path / "expected.jpg", quality=90)
    assert answer.drawn[0].read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    shown = messages(session.rounds, 0)[-1]["content"]
    assert shown[0] == BOXES
    assert shown[1]["path"] == str(answer.drawn[0])
    assert "2 = 猫" in shown[2]
    both = list(session.ask("where is it?", pictures[1:3], long))[-1][-1].answers[0]
    assert len(both.drawn) == 2
    assert "does not say which picture" in messages(session.rounds, 0)[-1]["content"][3]
    film = write_video(tmp_path / "film.mp4")
    assert list(session.ask("where is it?", [film], long))[-1][-1].answers[0].drawn == ()
    session.clear()
    assert not answer.drawn[0].exists()


def test_an_answer_stands_whose_boxes_cannot_be_drawn(qwen: Loaded, pictures: list[Path], tmp_path: Path) -> None:
    """Uploads are deleted after some hours, and disks get full: the round ends all the same, and others follow."""
    upload, other = tmp_path / "upload.png", tmp_path / "other.png"
    for file in (upload, other):
        file.write_bytes(pictures[0].read_bytes())
    session = Session([Model("tiny", talking(qwen, SAID))], tmp_path / "drawn")
    long = replace(SHORT, max_new_tokens=200)
    list(session.ask("What are they?", [upload, other], SHORT))
    upload.unlink()
    answer = list(session.ask("where?", [], long))[-1][-1].answers[0]
    assert (answer.text, answer.state, len(answer.drawn)) == (BOXES, "done", 1)
    note = messages(session.rounds, 0)[-1]["content"][-1]
    assert "boxes cannot be drawn: picture &#x27;upload.png&#x27; does not exist" in note
    assert str(tmp_path) not in note
    other.unlink()
    again = list(session.ask_again(long))[-1]
    assert [answer.state for round in again for answer in round.answers] == ["done", "done"]
    assert again[-1].answers[0].drawn == ()
    # A file where the folder should be.
    session.clear()
    (tmp_path / "drawn").write_bytes(b"")
    answer = list(session.ask("where?", pictures[:1], long))[-1][-1].answers[0]
    assert (answer.text, answer.drawn, answer.legend) == (BOXES, (), ())
    assert "cannot be drawn" in answer.undrawn


def test_beams_of_the_checkpoint_come_all_at_once(
    qwen: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Chat(qwen).ask("Hello", num_beams=3, max_new_tokens=12)
    assert expected != Chat(qwen).ask("Hello", max_new_tokens=12)
    monkeypatch.setattr(qwen.model.language_model.generation_config, "num_beams", 3)
    session = Session([Model("tiny", qwen)], tmp_path)
    texts = [rounds[-1].answers[0].text for rounds in session.ask("Hello", [], SHORT)]
    assert set(texts) == {"", expected}
    assert session.rounds[0].answers[0].state == "done"


def test_what_was_read_is_held_for_the_last_few_visitors(
    plain: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internvl_chat.infer.demo.visitors.MOST_READ", 2)
    visitors = Visitors([Model("tiny", plain)], tmp_path)

    def holding() -> list[str]:
        return [key for key, session in visitors._sessions.items() if any(chat._kept for chat in session._chats)]

    for key in "abc":
        list(visitors.session(key).ask("Hello", [], SHORT))
    assert holding() == ["b", "c"]
    answer = last(list(visitors.session("a").ask("And now?", [], SHORT)))
    assert answer == greedy(plain, ("Hello", []), ("And now?", []))[1], "read anew"
    assert holding() == ["c", "a"]
    monkeypatch.setattr("internvl_chat.infer.demo.visitors.IDLE", 0.01)
    visitors.session("a")
    end = time.monotonic() + 10
    while holding():
        assert time.monotonic() < end, "nobody came, and it is held"
        time.sleep(0.01)
    assert len(visitors._sessions) == 3


def test_what_was_read_is_given_back_when_many_ask_at_once(
    plain: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have come before any has its answer: what is above the limit goes when the answers end."""
    monkeypatch.setattr("internvl_chat.infer.demo.visitors.MOST_READ", 2)
    visitors = Visitors([Model("tiny", plain)], tmp_path)
    sessions = [visitors.session(key) for key in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda session: list(session.ask("Hello", [], SHORT)), sessions))
    assert [any(chat._kept for chat in session._chats) for session in sessions] == [False, False, True, True]


def test_conversations_that_were_quiet_for_longest_are_forgotten(qwen: Loaded, tmp_path: Path) -> None:
    visitors = Visitors([Model("tiny", talking(qwen, SAID))], tmp_path, most=2)
    first = visitors.session("a")
    (tmp_path / "a").mkdir()
    visitors.session("b")
    assert visitors.session("a") is first
    visitors.session("c")
    assert len(visitors._sessions) == 2
    assert visitors.session("a") is first  # b had to go
    visitors.drop("a")
    assert not (tmp_path / "a").exists()
    assert visitors.session("a") is not first
    assert len({Visitors.new_key() for _ in range(100)}) == 100


def test_a_line_is_first_come_first_served_and_can_be_left() -> None:
    line, order, never = Line(), [], threading.Event()

    def wait(name: int, given_up: threading.Event) -> None:
        with line.turn(given_up) as called:
            order.append((name, called))

    with line.turn(never) as called:
        assert called
        leaving = threading.Event()
        threads = []
        for name in range(4):
            threads.append(threading.Thread(target=wait, args=(name, leaving if name == 1 else never)))
            threads[-1].start()
            while len(line._tickets) < name + 2:
                time.sleep(0.001)
        leaving.set()
        threads[1].join(10)
        assert order == [(1, False)]
    for thread in threads:
        thread.join(10)
    assert order == [(1, False), (0, True), (2, True), (3, True)]


def test_the_tiles_shown_are_those_of_the_model(qwen: Loaded, pictures: list[Path], tmp_path: Path) -> None:
    wide, second = what_is_seen(pictures[:2], qwen, 8)
    settings = qwen.tiles.shared_among(2)
    with Image.open(pictures[0]) as image:
        tiles = cut_tiles(image.convert("RGB"), settings)
        count = count_tiles(*image.size, settings)
    each = qwen.model.config.num_image_token
    assert wide.text == (
        f"wide.png: 230 x 110 pixels, 2 x 1 tiles of 56 x 56 and the thumbnail, {count} x {each} = "
        f"{count * each} image tokens"
    )
    assert wide.image.size == (3 * TILE_SIDE + GAP + LARGE_GAP, TILE_SIDE)
    for number, left in enumerate((0, TILE_SIDE + GAP, 2 * TILE_SIDE + GAP + LARGE_GAP)):
        expected = Image.fromarray(tiles[number].permute(1, 2, 0).numpy()).resize((TILE_SIDE, TILE_SIDE))
        shown = wide.image.crop((left, 0, left + TILE_SIDE, TILE_SIDE)).convert("RGB")
        assert shown.tobytes() == expected.tobytes()
    assert wide.image.getpixel((TILE_SIDE + 1, 5))[3] == 0  # type: ignore[index]
    assert second.text.startswith("tall.png: 60 x 190 pixels, 1 x 3 tiles")
    html = tiles_html([replace(wide, text="<script>")])
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


def test_the_frames_of_a_video_are_shown_too(qwen: Loaded, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4")
    [seen] = what_is_seen([film], qwen, 6)
    assert (
        seen.text
        == f"film.mp4: 6 frames of 56 x 56 pixels, 6 x {(each := qwen.model.config.num_image_token)} = "
        + (f"{6 * each} image tokens")
    )
    frame = cut_tiles(read_video(Video(film, 6))[5], replace(qwen.tiles, max_tiles=1))[0]
    expected = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((TILE_SIDE, TILE_SIDE))
    corner = TILE_SIDE + GAP
    shown = seen.image.crop((corner, corner, corner + TILE_SIDE, corner + TILE_SIDE)).convert("RGB")
    assert shown.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["a.png", "it's.png", 'two "words".png', 'it\'s "both".png'])
def test_a_message_names_files_without_their_folders(name: str) -> None:
    said = unescape(alert(f"picture {f'/tmp/internvl_demo_x/ab/{name}'!r} is no picture, nor is 'b.png'"))
    assert "internvl_demo_x" not in said
    assert f"{name!r} is no picture, nor is 'b.png'" in said


def test_files_are_told_apart_by_their_names() -> None:
    assert sort_files(["a.PNG", "b.mp4", "c.gif"]) == ((Path("a.PNG"), Path("c.gif")), Path("b.mp4"))
    assert sort_files(["x.MKV"])[1] == Path("x.MKV")
