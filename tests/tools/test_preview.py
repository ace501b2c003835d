"""``internvl preview``: what is shown is what is trained on; pages are well formed, and what users wrote is escaped."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.data.address import Address
from internvl_chat.errors import ConfigError
from internvl_chat.tools import preview as tool
from internvl_chat.tools.data_view import View, read_view
from internvl_chat.tools.preview_look import (
    Film,
    Look,
    Picture,
    decoder,
    item_text,
    look,
    name_of,
    read_line,
    split_tokens,
)
from internvl_chat.tools.preview_overview import bins, histogram, overview_page
from internvl_chat.tools.preview_page import line_page, picture_svg
from internvl_chat.tools.preview_text import look_lines, token_text
from tests.data.helpers import line, picture_bytes, tokenizer, write_lines, write_noise
from tests.tools.test_report import _Page
from tests.tools.troubles import data_flags, number_of, write_troubles

NASTY = "<script>alert('1')</script> & <b> {x} \x1b[31m"
SCRIPT = "<script"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    write_noise(folder / "wide.png", 200, 100)
    write_noise(folder / "tall{0}.png", 50, 100, seed=1)
    frames = [Image.new("RGB", (20, 20), (n * 20, 0, 0)) for n in range(10)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:], duration=100)
    lines: list[Any] = [
        line("<image>\nFind <ref>a</ref>", "<ref>cup & <i></ref><box>[[100, 200, 400, 800], [0, 0, 500, 500]]</box>",
             image="wide.png"),
        line("<image><image>\n<bbox>?", "Here, 确定 🙂.\nYes.", image=["wide.png", "tall{0}.png"],
             objects=[{"ref": "x", "bbox": [5, 10, 25, 60], "image": 1}]),
        line("<image>\n<video>\nq", "a", image="wide.png", video="film.gif"),
        line(NASTY, NASTY, "again", "last", system=NASTY),
        line("<image><image>", "<box>[[1, 2, 3, 4]]</box>", image=["wide.png", "wide.png"]),
    ]  # fmt: skip
    lines[3]["conversations"][2]["loss"] = 0
    write_lines(folder / "a.jsonl", lines)
    (folder / "array.json").write_text(json.dumps([line("one", "1"), line("two", "2")]))
    names = {"first": "a.jsonl", "second <i>": "array.json"}
    meta = {name: {"root": str(folder), "annotation": str(folder / file)} for name, file in names.items()}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder / "meta.json"


@pytest.fixture(scope="module")
def view(manifest: Path, tiny: Path) -> View:
    flags = ["--model_name_or_path", str(tiny), "--max_dynamic_patch", "6", "--loss_reduction", "square"]
    return read_view(str(manifest), flags)


def seen(view: View, number: int, name: str = "first") -> Look:
    spec = view.only(name).specs[0]
    content, place = read_line(view, spec, number)
    return look(view, spec, content, number, place)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return tool.run(parser.parse_args(words))


def numbers(element: dict[str, Any], *names: str) -> tuple[float, ...]:
    return tuple(float(element[name]) for name in names)


def test_tokens_are_the_samples_and_marked_as_learned_where_they_have_labels(view: View) -> None:
    for number in range(1, 6):
        one = seen(view, number)
        assert one.sample is not None and one.fault is None
        sample = view.maker.load(one.line, one.spec, Address("first", number - 1))
        ids = [i for token in one.tokens for i in token.ids]
        assert ids == sample.input_ids.tolist()
        learned = [token.weight > 0 for token in one.tokens for _ in token.ids]
        assert learned == (sample.labels != IGNORE_INDEX).tolist()
        weights = {token.weight for token in one.tokens if token.weight}
        assert list(weights) == [pytest.approx(sample.footprint.supervised**-0.5)]  # --loss_reduction square
        whole = decoder(view.tokenizer)(ids)
        runs = [token.text * (len(token.ids) if "IMG_CONTEXT" in token.text else 1) for token in one.tokens]
        assert "".join(runs) == whole
    text = "".join(token.text for token in seen(view, 2).tokens)
    assert "确定 🙂" in text and "\ufffd" not in text


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-llama", "tiny-phi3"])
def test_pieces_join_to_the_text_with_any_tokenizer(name: str) -> None:
    tok = tokenizer(name)
    text = "a b  c\n确定 🙂 é, end"
    ids = tok(text, add_special_tokens=False)["input_ids"]
    tokens = list(split_tokens(ids, [0.0] * len(ids), decoder(tok), -1))
    assert "".join(token.text for token in tokens) == decoder(tok)(ids)
    assert [i for token in tokens for i in token.ids] == ids
    several = next((n for n, token in enumerate(tokens) if len(token.ids) > 1), None)
    if several is not None:  # half a character, at the end of a prompt that was cut
        count = sum(len(token.ids) for token in tokens[:several]) + 1
        half = list(split_tokens(ids[:count], [0.0] * count, decoder(tok), -1))
        assert len(half) == several + 1 and half[-1].ids == (ids[count - 1],)


def test_pictures_have_their_grid_tiles_and_boxes(view: View) -> None:
    (wide,) = seen(view, 1).media
    assert isinstance(wide, Picture) and wide.certain
    assert (wide.grid, len(wide.tiles), wide.thumbnail) == ((2, 1), 3, True)
    assert [(g.ref, g.boxes) for g in wide.boxes] == [
        ("cup & <i>", ((100, 200, 400, 800), (0, 0, 500, 500))),
    ]
    one, two = seen(view, 2).media
    assert isinstance(one, Picture) and isinstance(two, Picture)
    assert one.boxes == () and [g.boxes for g in two.boxes] == [((100, 100, 500, 600),)] and two.certain
    assert (two.grid, len(two.tiles)) == ((1, 2), 3)
    picture, film = seen(view, 3).media
    sample = seen(view, 3).sample
    assert isinstance(picture, Picture) and isinstance(film, Film) and sample is not None
    assert torch.equal(torch.cat([picture.tiles, film.frames]), sample.tiles) and len(film.frames) >= 8
    both = seen(view, 5).media
    assert [len(p.boxes) for p in both if isinstance(p, Picture)] == [1, 1]
    assert not any(p.certain for p in both if isinstance(p, Picture))


@pytest.mark.parametrize("limit", ["fewer_tiles", "truncate"])
@pytest.mark.parametrize("method", ["rand", "fps5"])
def test_cut_samples_show_what_is_left(manifest: Path, tiny: Path, tmp_path: Path, limit: str, method: str) -> None:
    film = ("film.gif", "wide.png", "film.gif")
    texts = ("<video><image>", "a", "<image><video>", "b")
    item = {**line(*texts, image=[film[1]] * 2, video=[film[0]] * 2), "clip": [None, [0.0, 0.6]]}
    annotation = write_lines(tmp_path / "cut.jsonl", [item])
    (tmp_path / "m.json").write_text(json.dumps({"m": {"root": str(manifest.parent), "annotation": str(annotation)}}))
    flags = ["--model_name_or_path", str(tiny), "--max_dynamic_patch", "6", "--sampling_method", method]
    whole = seen(read_view(str(tmp_path / "m.json"), flags), 1, "m")
    assert whole.sample is not None and whole.cut is None
    kinds = [type(medium) for medium in whole.media]
    assert kinds == [Film, Picture, Picture, Film]
    seconds = [len(medium.frames) for medium in whole.media if isinstance(medium, Film)]
    assert (seconds == [5, 3]) if method == "fps5" else (seconds[0] == seconds[1] >= 8)
    for less in (1, 40):  # fewer tiles are enough, or are not
        some = [*flags, "--long_samples", limit, "--max_seq_length", str(len(whole.sample.input_ids) - less)]
        one = seen(read_view(str(tmp_path / "m.json"), some), 1, "m")
        assert one.sample is not None and one.cut is not None
        assert [type(medium) for medium in one.media] == (kinds if limit == "fewer_tiles" else kinds[:2])
        parts = [medium.frames if isinstance(medium, Film) else medium.tiles for medium in one.media]
        assert torch.equal(torch.cat(parts), one.sample.tiles) and "cut to fit" in "\n".join(look_lines(one, False))


def test_boxes_and_grid_are_drawn_where_they_belong(view: View) -> None:
    (wide,) = seen(view, 1).media
    assert isinstance(wide, Picture)
    page = _Page(picture_svg(wide))
    assert page.all("svg")[0]["viewbox"] == "0 0 200 100"
    boxes = [numbers(e, "x", "y", "width", "height") for e in page.all("rect") if e["class"] == "box"]
    # [100, 200, 400, 800] thousandths of 200 x 100 pixels.
    assert boxes == [(20, 20, 60, 60), (0, 0, 100, 50)]
    assert "".join(page.words) == "cup & <i>" * 2
    cuts = [numbers(e, "x1", "y1", "x2", "y2") for e in page.all("line") if e["class"] == "cut"]
    assert cuts == [(100, 0, 100, 100)]
    source = str(page.all("image")[0]["href"])
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
        assert picture.size == (200, 100)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_page_is_well_formed_and_colours_follow_the_labels(view: View, number: int) -> None:
    one = seen(view, number)
    page = _Page(line_page(one, "square"))
    assert one.sample is not None
    spans = [e for e in page.all("span") if "title" in e]
    assert len(spans) == len(one.tokens)
    for span, token in zip(spans, one.tokens, strict=True):
        assert (span.get("class") == "learned") == (token.weight > 0)
        assert str(span["title"]).startswith(f"id {token.ids[0]}") and f"weight {token.weight:.4g}" in str(
            span["title"]
        )
    pictures = [medium for medium in one.media if isinstance(medium, Picture)]
    assert len(page.all("svg")) == len(pictures)
    assert len(page.all("img")) == len(one.sample.tiles)
    links = [
        str(value) for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)


def test_what_users_wrote_is_escaped_everywhere(view: View) -> None:
    one = seen(view, 4)
    page = line_page(one, "token")
    assert SCRIPT not in page and html.escape("<script>alert('1')</script>") in page and "\x1b" not in page
    assert "gpt (not learned)" in page
    overview = overview_page(view, 5)
    assert SCRIPT not in overview and "\x1b" not in overview and "second <i>" not in overview
    text = "\n".join(look_lines(one, color=False))
    assert "\x1b" not in text and "\\x1b[31m" in text and "<script>" in text


def test_terminal_view(manifest: Path, tiny: Path, view: View, capsys: pytest.CaptureFixture[str]) -> None:
    flags = data_flags(tiny, "--max_dynamic_patch", "6", "--max_seq_length", "500")
    assert run(str(manifest), *flags) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{manifest.parent / 'a.jsonl'}:1, data set 'first'")
    assert "wide.png: 200 x 100 pixels, 2 x 1 tiles and a thumbnail = 3, 2 boxes" in out
    assert "<IMG_CONTEXT> x 3" in out  # one token per tile
    answer = out[out.index("⟦") : out.rindex("⟧")]
    assert answer.replace("¦", "").endswith("[0, 0, 500, 500]]</box><|im_end|>")
    assert run(str(manifest), *flags, "--dataset", "second <i>", "--line", "2") == 0
    assert "array.json: item 2, data set" in capsys.readouterr().out
    coloured = token_text(seen(view, 1).tokens, color=True)
    assert "\033[32m" in coloured and "⟦" not in coloured
    for words, message in (
        (("--line", "9"), r"--line 9: .*a\.jsonl has lines 1 to 5"),
        (("--line", "0"), "lines 1 to 5"),
        (("--dataset", "frist"), "did you mean 'first'"),
        (("--html", str(manifest.parent)), "is a folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(str(manifest), *flags, *words)


def test_faulty_lines_show_their_fault(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta, flags = str(write_troubles(tmp_path)), data_flags(tiny)
    assert run(meta, *flags, "--line", str(number_of("no such picture"))) == 1
    assert "left out (MISSING_IMAGE): picture" in capsys.readouterr().out
    assert run(meta, *flags, "--line", str(number_of("too long"))) == 1
    out = capsys.readouterr().out
    assert "left out (TOO_LONG)" in out and "as the model reads it" in out
    assert run(meta, *flags, "--line", str(number_of("swapped box"))) == 0
    assert "warning: box [300, 1, 200, 2] has swapped corners" in capsys.readouterr().out
    for name in ("not UTF-8", "truncated", "too long"):
        page = tmp_path / "deep" / "page.html"
        assert run(meta, *flags, "--line", str(number_of(name)), "--html", str(page)) == 1
        assert any(e.get("class") == "fault" for e in _Page(page.read_text()).all("p"))


def test_the_page_of_a_manifest(manifest: Path, tiny: Path, tmp_path: Path) -> None:
    meta = json.loads(manifest.read_text())
    meta["empty"] = {"root": "", "annotation": str(write_lines(tmp_path / "empty.jsonl", []))}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    out = tmp_path / "all.html"
    assert run(str(tmp_path / "meta.json"), "--html", str(out), *data_flags(tiny, "--max_seq_length", "500")) == 0
    page = _Page(out.read_text())
    words = "".join(page.words)
    assert len(page.all("article")) == tool.CARDS + 2
    assert sum(e.get("class") != "picture" for e in page.all("svg")) == 6  # three histograms of two data sets
    assert "empty.jsonl:1: the annotation is empty" in words and "tokens learned of a sample" in words


def test_histograms_by_hand() -> None:
    assert bins(np.array([3, 3, 5]), 30) == ([2, 0, 1], 3, 1)
    assert bins(np.array([0, 99]), 30) == ([1, *[0] * 23, 1], 0, 4)
    page = _Page(histogram(np.array([3, 3, 5]), "a < b"))
    heights = [float(str(e["height"])) for e in page.all("rect")]
    assert heights[0] == pytest.approx(2 * heights[2]) and heights[1] == 0
    assert "3: 2 samples" in page.words
    assert "none" in histogram(np.zeros(0, np.int64), "tokens")


def embedded(width: int, height: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture_bytes(width, height)).decode()}"


def preview_of(folder: Path, tiny: Path, item: Any, **keys: Any) -> Look:
    annotation = write_lines(folder / "one.jsonl", [item])
    (folder / "one.json").write_text(json.dumps({"one": {"root": "", "annotation": str(annotation), **keys}}))
    return seen(read_view(str(folder / "one.json"), data_flags(tiny, "--max_seq_length", "2000")), 1, "one")


def test_embedded_media_are_named_by_kind_and_size(tmp_path: Path, tiny: Path) -> None:
    url = embedded(400, 300)
    size = len(picture_bytes(400, 300))
    one = preview_of(tmp_path, tiny, line("<image>\nq", "a", image=url))
    text, page = "\n".join(look_lines(one, color=False)), line_page(one, "token")
    assert size >= 1024 and f"1. embedded png, {size / 1024:.0f} KB: 400 x 300 pixels" in text
    assert url[:60] not in text and "data:" not in text and url[:60] not in page
    assert f"1. embedded png, {size / 1024:.0f} KB: 400 x 300" in page
    assert name_of("a/b.png") == "a/b.png" and name_of("data:;base64,AAAA") == "embedded file, 3 bytes"
    assert name_of("data:image/jpeg;base64,AAA=") == "embedded jpeg, 2 bytes"


def test_a_line_left_out_shows_its_fault_and_its_texts_in_short(tmp_path: Path, tiny: Path) -> None:
    long, url = "word " * 1000, embedded(400, 300)
    one = preview_of(tmp_path, tiny, line("<image>", long, image=[url, "\x1b[31m.png"]))
    lines = list(look_lines(one, color=False))
    assert lines[1].startswith("left out (PLACEHOLDERS): 1 <image>")
    text = "\n".join(lines)
    page = html.unescape(line_page(one, "token"))
    for shown in (text, page):
        assert f"{long[:200]}... (5,000 characters)" in shown and long[:201] not in shown
        assert f"{url[:200]}... ({len(url):,} characters)" in shown and url[:201] not in shown
        assert "\x1b" not in shown and "[31m.png" in shown
    assert text.index("left out") < text.index("conversations")
    no_item = b'x {"image": "' + url.encode() * 9
    broken = list(look_lines(preview_of(tmp_path, tiny, no_item), color=False))
    assert broken[1].startswith("left out (NOT_JSON)") and len("".join(broken[2:])) < 2100
    assert len(line_page(preview_of(tmp_path, tiny, no_item), "token")) < 20_000
    assert len(item_text(json.dumps([["a"] * 99] * 999).encode())) < 10_100
    assert item_text(b"[" * 100_000).startswith("[[[") and item_text(b"\xff") == "\\xff"


def test_a_manifests_system_message_is_part_of_the_conversation(tmp_path: Path, tiny: Path) -> None:
    said, bare = "system (of the manifest)", line("q", "a")
    for item, keys, there in (
        (bare, {"system_message": "Be <brief>."}, True),
        (line("q", "a", system="Own."), {"system_message": "Be <brief>."}, False),
        (bare, {}, False),
    ):
        one = preview_of(tmp_path, tiny, item, **keys)
        assert (f"{said}: Be <brief>." in list(look_lines(one, color=False))) == there
        assert (f"<b>{said}</b>Be &lt;brief&gt;.</div>" in line_page(one, "token")) == there


def test_the_page_of_a_manifest_says_what_is_left_out_and_held_out(tmp_path: Path, tiny: Path) -> None:
    troubles = write_troubles(tmp_path)
    entry = json.loads(troubles.read_text())["troubles"]
    good = str(write_lines(tmp_path / "good.jsonl", [line(f"q {n}", "a") for n in range(4)]))
    meta = {
        "troubles": {**entry, "weight": 0.25},
        "good": {"root": "", "annotation": good, "weight": 3, "eval_share": 1.0},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    page = _Page(overview_page(read_view(str(tmp_path / "meta.json"), data_flags(tiny)), 1))
    words = "".join(page.words)
    number = number_of("no such picture")
    assert f"left out: 1 MISSING_IMAGE, the first: {tmp_path / 'troubles.jsonl'}:{number}: picture" in words
    assert "left out: 4 NOT_JSON" in words
    (tmp_path / "meta.json").write_text(json.dumps({"good": {**meta["good"], "weight": None, "repeat_time": 2}}))
    again = "".join(_Page(overview_page(read_view(str(tmp_path / "meta.json"), data_flags(tiny)), 1)).words)
    head = "data set lines usable left out held out weight".replace(" ", "")
    assert head in words.replace(" ", "") and "good440" + "43" in words and "0.25" in words
    assert "good440" + "42 times" in again
