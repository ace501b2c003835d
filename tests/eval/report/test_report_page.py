"""The report in a real browser: table, filter, search, boxes, injected text, missing pictures, dark and narrow.

Screenshots are kept in the folder that INTERNVL_TEST_ARTEFACTS names.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.errors import DataError
from internvl_chat.eval.report.page import write_report
from internvl_chat.eval.report.pictures import open_thumbnail, uri_of
from internvl_chat.eval.report.runs import log_scalars, read_entries
from internvl_chat.eval.report.sheet import MOST_CARDS, wrong_answers
from tests.eval.mini.common import picture
from tests.eval.report.made import PLUS, line, made_run

CHROMIUM = Path("/usr/bin/chromium")
EVIL = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'></pre></details>\"'&"
BOX = "<ref>the dog</ref><box>[[100, 200, 600, 900]]</box>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    picture(out / "a.png", 1, (640, 400))
    shown = {"pictures": ["a.png"]}
    lines = [line(str(number), f"answer {number}", **shown) for number in range(100)]
    lines += [line("right", "yes", mark=1.0), line("half", "maybe", mark=0.3)]
    made_run(out, PLUS, "textvqa_val", {"accuracy": 0.7, EVIL: 1.5}, lines, count=102)
    evil = [
        line("e1", EVIL, EVIL, question=EVIL, pictures=[EVIL, "missing.png"]),
        line("e2", "", ["yes", "yes", "no"]),
        {"id": "e3", "question": "Q", "error": "picture is broken " + EVIL, "mark": 0.0},
        line("e4", "long " * 40_000, **shown),
        line(EVIL, None),  # type: ignore[arg-type]
    ]
    made_run(
        out, "a model", "okvqa_val", {"accuracy": 0.1}, evil, complete=False, answered=3, items=5, there=5, count=5046
    )
    boxes = [
        line("b", BOX, [64, 80, 384, 360], **shown),
        line("bare", "[[0.1,0.2,0.6,0.9]]", {"bbox": [1, 2, 600, 3000]}, **shown),
    ]
    made_run(out, "a model", "refcoco_val", {"accuracy": 0.5}, boxes)
    made_run(out, "a model", "vizwiz_test", None, [line("v", mark=None)])
    (out / "broken").mkdir()
    (out / "broken/run.json").write_text('{"task": 5')
    (out / "a model/okvqa_val/scored.jsonl").open("a").write('{"id": "cut')
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    return write_report(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture()
def visit(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    contexts = []

    def go(width: int = 1280, dark: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.asked.append(f"error {error}"))
        page.goto(report.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()


def shot(page: Any, name: str) -> None:
    if where := os.environ.get("INTERNVL_TEST_ARTEFACTS"):
        page.screenshot(path=str(Path(where) / name), full_page=True)


@pytest.mark.slow
def test_nothing_is_run_or_fetched_that_is_not_ours(visit: Callable[..., Any], report: Path) -> None:
    page = visit()
    assert page.evaluate("window.hit") is None
    assert [url for url in page.asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.locator("script").count() == 1
    assert page.locator("img[onerror]").count() == 0
    assert EVIL in page.locator(".card .question").all_inner_texts()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    shot(page, "report.png")


@pytest.mark.slow
def test_partial_runs_and_published_figures_stand_in_the_table(visit: Callable[..., Any]) -> None:
    page = visit()
    rows = {row.split("\t")[0].split("\n")[0]: row for row in page.locator(".scores tbody tr").all_inner_texts()}
    assert "partial: 3 of 5046" in rows["okvqa_val"]
    assert "published 0.71188, -0.0119" in rows["textvqa_val"]
    assert "no score" in rows["vizwiz_test"]
    assert "partial: 3 of 5046" in page.locator("summary", has_text="okvqa_val").inner_text()
    page.locator(".scores a", has_text="0.7000").click()
    assert page.locator("details.run[open]").count() == 1
    assert '"sha256": "0"' in page.locator("details.run[open] pre").text_content()
    assert "broken" in page.locator("section.warn").inner_text()


@pytest.mark.slow
def test_the_sheet_is_filtered_and_searched(visit: Callable[..., Any]) -> None:
    page = visit()
    total = MOST_CARDS + 5 + 2
    assert page.inner_text("#count") == f"{total} of {total}"
    page.select_option("#run", "refcoco_val")
    assert page.inner_text("#count") == f"2 of {total}"
    assert page.locator(".card:visible img").count() == 2
    page.select_option("#run", "")
    page.fill("#text", "PICTURE is broken")
    assert page.inner_text("#count") == f"1 of {total}"
    page.fill("#text", "")
    huge = page.locator(".card .answer", has_text="(199999 characters)")
    assert len(huge.inner_text()) < 2000
    assert page.locator(".card span", has_text="cannot be read: missing.png").count() == 1
    assert page.locator(".card .answer", has_text="(empty answer)").count() == 2
    assert "yes | no" in page.locator(".card .gold").all_inner_texts()


@pytest.mark.slow
def test_dark_and_narrow(visit: Callable[..., Any]) -> None:
    page = visit(width=390, dark=True)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "report_dark_narrow.png")


def test_wrong_answers_are_chosen_evenly_and_those_without_a_point_first(folder: Path) -> None:
    entries, lost = read_entries(folder)
    assert [str(place.name) for place in lost] == ["broken"]
    entry = next(entry for entry in entries if entry.task == "textvqa_val")
    wrong, total = wrong_answers(entry)
    assert (len(wrong), total) == (MOST_CARDS, 101)
    names = [one.record["id"] for one in wrong]
    assert "half" not in names and "right" not in names
    assert names == sorted(names, key=int) and int(names[-1]) >= 95
    assert [one.record["id"] for one in wrong_answers(entry, 101)[0]][-1] == "half"


def test_boxes_of_answer_and_gold_are_drawn(folder: Path) -> None:
    image = open_thumbnail("a.png", folder)
    assert image is not None and open_thumbnail("none.png", folder) is None
    plain = Image.new("RGB", (640, 400), "black")

    def drawn(answer: str, gold: Any) -> Image.Image:
        uri = uri_of(plain, answer, gold)
        return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")

    def lit(one: Image.Image, x: float, y: float) -> tuple[bool, ...]:
        return tuple(
            channel > 120
            for channel in one.getpixel((round(x * one.width), min(round(y * one.height), one.height - 1)))
        )

    assert drawn("no box", "dog").getbbox() is None or max(drawn("no box", "dog").getextrema()[0]) < 10
    gold = drawn("no box", [64, 80, 384, 360])
    assert lit(gold, 0.11, 0.2) == (False, True, False)
    answer = drawn("[[100, 200, 600, 900]]", [0, 0, 1, 1])
    assert lit(answer, 0.1, 0.5)[0] and lit(answer, 0.6, 0.5)[0]
    shares = drawn("[[0.1, 0.2, 0.6, 0.9]]", [0, 0, 1, 1])
    assert lit(shares, 0.1, 0.5)[0] and lit(shares, 0.6, 0.5)[0]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished evaluation"):
        write_report(tmp_path)
    for manifest, why in (({"task": "t"}, "KeyError: 'model'"), ({"task": "t", "model": "m"}, "KeyError: 'complete'")):
        (tmp_path / "run.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=why):
            write_report(tmp_path)


def test_no_half_page_is_left(folder: Path, report: Path) -> None:
    assert report.name == "report.html"
    assert not list(folder.glob(".*"))


def test_figures_of_whole_data_sets_for_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made_run(tmp_path, "m", "whole", {"accuracy": 0.5, "odd": float("nan")}, [])
    made_run(tmp_path, "m", "part", {"accuracy": 0.5}, [], complete=False, missing=["A"])
    entries, _ = read_entries(tmp_path)
    with caplog.at_level("WARNING", "internvl_chat"):
        log_scalars(tmp_path / "tb", 7, entries)
    assert "part: not written for TensorBoard (partial: without A)" in caplog.text
    (events,) = (tmp_path / "tb").glob("events.*")
    content = events.read_bytes()
    assert b"eval/whole/accuracy" in content
    assert b"eval/part" not in content and b"eval/whole/odd" not in content
