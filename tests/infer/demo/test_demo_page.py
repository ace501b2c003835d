"""The page in a real browser: upload, ask, stream, boxes, video, tiles, two models, stop, errors, dark and narrow.

Screenshots are kept in the folder that INTERNVL_TEST_ARTEFACTS names.
"""

from __future__ import annotations

import http.server
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from talking import talking, write_video

from internvl_chat.infer.chat import Chat
from internvl_chat.infer.demo.command import free_port, upload_folder
from internvl_chat.infer.demo.session import Model, Settings
from internvl_chat.infer.demo.visitors import Visitors
from internvl_chat.infer.load import Loaded

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
BOXES = (
    "There are two things: <ref>a red ball</ref><box>[[110, 180, 420, 700]]</box> on the left, and "
    "<ref>a blue box</ref><box>[[560, 300, 900, 780]]</box> beside it."
)
SAID = {"Where": BOXES, "Long": "word " * 2000}
SETTINGS = Settings(max_new_tokens=30, max_tiles=6)
SECONDS = 30_000  # playwright counts milliseconds; other work may keep the cores busy


@dataclass
class Served:
    """Two pages of one process: with one model, and with two. ``folder``: uploads. ``asked``: hosts it looked for.

    ``elsewhere``: address of another server, which counts in ``hits`` what it is asked for.
    """

    one: str
    two: str
    loaded: tuple[Loaded, Loaded]
    folder: Path
    asked: set[str]
    elsewhere: str
    hits: list[str]


@pytest.fixture(scope="module")
def served(loaded_of: Callable[[str], Loaded]) -> Iterator[Served]:
    pytest.importorskip("gradio")
    from internvl_chat.infer.demo.page import launch, make_page

    hits: list[str] = []
    asked: set[str] = set()
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **named: Any) -> Any:
        asked.add(str(host))
        return real(host, *more, **named)

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)

    other = http.server.HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    elsewhere = f"http://127.0.0.1:{other.server_port}"
    said = {**SAID, "elsewhere": f"Look: ![x]({elsewhere}/a.png?secret) and <img src='{elsewhere}/b.png'> done"}
    loaded = (talking(loaded_of("qwen2"), said, 0.02), talking(loaded_of("llama"), said, 0.02))
    models = [Model(name, one) for name, one in zip(("tiny", "tuned"), loaded, strict=True)]
    with upload_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        pages = [make_page(Visitors(shown, folder / "drawn"), SETTINGS) for shown in (models[:1], models)]
        host = "127.0.0.1"
        addresses = [launch(page, host, free_port(host, 0), None, False, 1).rstrip("/") for page in pages]
        yield Served(*addresses, loaded, folder, asked, elsewhere, hits)
        for page in pages:
            page.close(verbose=False)
    other.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """A visitor: an own browser context. ``requests``: addresses of all that the browser would fetch."""

    def __init__(self, browser: Any, address: str, width: int = 1280, dark: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS)
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#question textarea:enabled")

    def attach(self, *files: Path) -> None:
        before = self.page.locator("#question .thumbnail-item").count()
        self.page.set_input_files("#question input[type=file]", [str(file) for file in files])
        self.page.wait_for_function(
            "n => document.querySelectorAll('#question .thumbnail-item').length >= n", arg=before + len(files)
        )

    def send(self, question: str) -> None:
        """By the button: the key Enter is not heard while a file is on its way up."""
        self.page.fill("#question textarea", question)
        self.page.click("#question button.submit-button:enabled")

    def ask(self, question: str) -> None:
        """Send, and wait until the answer is complete."""
        rounds = self.page.locator("#chat0 [data-testid=user]").count()
        self.send(question)
        self.page.wait_for_function(
            "n => document.querySelectorAll('#chat0 [data-testid=user]').length > n", arg=rounds
        )
        self.rest()

    def rest(self) -> None:
        """Wait until nothing is written."""
        self.page.wait_for_selector("#buttons button.stop:disabled")
        self.page.wait_for_selector("#question textarea:enabled")

    def answer(self, chat: int = 0) -> str:
        texts = self.page.locator(f"#chat{chat} [data-testid=bot] .md").all_inner_texts()
        return texts[-1].strip() if texts else ""

    def set(self, label: str, value: float) -> None:
        number = self.page.get_by_label(f"number input for {label}")
        number.fill(str(value))
        number.press("Tab")

    def shot(self, folder: Path, name: str) -> Path:
        self.page.wait_for_timeout(400)  # pictures fade in
        self.page.screenshot(path=str(folder / name))
        return folder / name


@pytest.fixture()
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Page]]:
    """``visit(address)``: a new visitor, gone with the test."""
    pages = []

    def open_page(address: str, **options: Any) -> Page:
        pages.append(Page(browser, address, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("INTERNVL_TEST_ARTEFACTS") or tmp_path_factory.mktemp("artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = Image.new("RGB", (640, 420), "#e8e2d4")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 300, 640, 420), fill="#b59a72")
    draw.ellipse((80, 90, 260, 280), fill="#c8332b")
    draw.rectangle((365, 140, 570, 320), fill="#2f5fa8")
    image.save(path := tmp_path_factory.mktemp("scene") / "scene.png")
    return path


def greedy(loaded: Loaded, question: str, *files: Path) -> str:
    return Chat(SETTINGS.tiled(loaded)).ask(question, files, max_new_tokens=SETTINGS.max_new_tokens)


def test_a_streamed_answer_grows_and_is_the_greedy_text(
    visit: Callable[..., Page], served: Served, scene: Path
) -> None:
    page, model = visit(served.one), served.loaded[0].model
    expected = greedy(served.loaded[0], "What is it?", scene)
    page.attach(scene)
    page.page.evaluate(
        """() => {
            window.seen = [];
            const text = () => [...document.querySelectorAll('#chat0 [data-testid=bot] .md')].at(-1)?.innerText.trim();
            new MutationObserver(() => window.seen.push(text() ?? '')).observe(
                document.querySelector('#chat0'), {subtree: true, childList: true, characterData: true});
        }"""
    )
    pause, model.pause = model.pause, 0.15
    page.ask("What is it?")
    model.pause = pause
    assert page.answer() == expected
    words = dict.fromkeys(text for text in page.page.evaluate("window.seen") if text not in ("", "…", expected))
    assert len(words) >= 3, words
    assert all(expected.startswith(piece) for piece in words)
    # A second round, without a picture, knows the first.
    page.ask("And now?")
    chat = Chat(SETTINGS.tiled(served.loaded[0]))
    chat.ask("What is it?", [scene], max_new_tokens=30)
    assert page.answer() == chat.ask("And now?", max_new_tokens=30)
    # Asked again: the same, as it is greedy; cleared: as if nothing had been said.
    page.page.click("text=Regenerate")
    page.page.wait_for_selector("#buttons button.stop:enabled")
    page.rest()
    assert page.page.locator("#chat0 [data-testid=user] .md").count() == 2
    assert page.answer() == chat.turns[-1].text
    page.page.click("#buttons >> text=Clear")
    page.page.wait_for_selector("#chat0 [data-testid=user]", state="detached")
    page.ask("And now?")
    assert page.answer() == greedy(served.loaded[0], "And now?")


def test_boxes_are_drawn_and_tiles_shown_and_nothing_is_fetched_from_elsewhere(
    visit: Callable[..., Page], served: Served, scene: Path, artefacts: Path
) -> None:
    page = visit(served.one)
    assert page.page.locator("#desk").bounding_box()["width"] > 1150  # the window is made use of, also while empty
    page.set("Longest answer (tokens)", 300)
    page.attach(scene)
    page.ask("Where are the things?")
    assert page.answer() == BOXES
    drawn = page.page.locator("#chat0 [data-testid=bot] img")
    drawn.wait_for()
    source = drawn.get_attribute("src")
    with urllib.request.urlopen(source) as reply, Image.open(reply) as image:
        red, green, blue = image.convert("RGB").getpixel((round(0.11 * 640) + 1, 250))
    assert red > 180 > 120 > max(green, blue)  # the left side of the first box
    page.page.click("#show")
    page.page.wait_for_selector("#tiles img")
    assert re.search(
        r"640 x 420 pixels, 3 x 2 tiles of 56 x 56 and the thumbnail, 7 x 4 = 28", page.page.inner_text("#tiles")
    )
    assert page.shot(artefacts, "demo.png").stat().st_size > 20_000
    assert {urllib.parse.urlsplit(url).netloc for url in page.requests} <= {
        urllib.parse.urlsplit(served.one).netloc,
        "",
    }
    # The answer names pictures of another server: they are in the page, but the browser must not ask for them.
    page.ask("What of elsewhere?")
    assert "done" in page.answer()
    assert page.page.locator(f"#chat0 [data-testid=bot] img[src^='{served.elsewhere}']").count() == 2
    page.page.wait_for_timeout(500)
    assert served.hits == []
    wide = page.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 1280


def test_two_models_answer_side_by_side(
    visit: Callable[..., Page], served: Served, scene: Path, tmp_path: Path, artefacts: Path
) -> None:
    page = visit(served.two, dark=True)
    page.attach(scene)
    page.ask("What is it?")
    answers = [page.answer(number) for number in range(2)]
    assert answers == [greedy(loaded, "What is it?", scene) for loaded in served.loaded]
    assert answers[0] != answers[1]
    left, right = (page.page.locator(f"#chat{number}").bounding_box() for number in range(2))
    assert left["x"] + left["width"] <= right["x"]
    assert abs(left["y"] - right["y"]) < 2
    page.shot(artefacts, "demo_two_dark.png")
    # A video, to both.
    film = write_video(tmp_path / "film.mp4")
    page.page.click("#buttons >> text=Clear")
    page.page.wait_for_selector("#chat0 [data-testid=user]", state="detached")
    page.set("Frames of a video", 3)
    page.attach(film)
    page.ask("What happens?")
    for number, loaded in enumerate(served.loaded):
        expected = Chat(loaded).ask("What happens?", video=film, num_segments=3, max_new_tokens=30)
        assert page.answer(number) == expected
    page.page.click("#show")
    page.page.wait_for_selector("#tiles img")
    assert "3 frames of 56 x 56 pixels, 3 x 4 = 12 image tokens" in page.page.inner_text("#tiles")


def test_stop_ends_the_answer_and_the_page_goes_on(visit: Callable[..., Page], served: Served) -> None:
    page = visit(served.one)
    page.set("Longest answer (tokens)", 1000)
    page.send("Long, please")
    page.page.wait_for_function("document.querySelector('#chat0 [data-testid=bot]')?.innerText.includes('word word')")
    page.page.click("#buttons >> text=Stop")
    page.rest()
    assert served.loaded[0].model.tokens < 700  # type: ignore[operator]
    assert "stopped; the model does not remember this question" in page.page.inner_text("#chat0")
    page.set("Longest answer (tokens)", 30)
    page.ask("What is it?")
    assert page.answer() == greedy(served.loaded[0], "What is it?")


def test_who_closes_the_page_stops_the_answer(visit: Callable[..., Page], served: Served) -> None:
    page, model = visit(served.one), served.loaded[0].model
    page.set("Longest answer (tokens)", 4000)
    page.send("Long, please")
    page.page.wait_for_function("document.querySelector('#chat0 [data-testid=bot]')?.innerText.includes('word word')")
    assert model.at_work == 1
    page.context.close()
    deadline = time.monotonic() + 20
    while model.at_work:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert model.tokens < 2000  # type: ignore[operator]


def test_errors_are_said_once_and_the_page_stays_usable(
    visit: Callable[..., Page], served: Served, scene: Path, tmp_path: Path
) -> None:
    broken, large = tmp_path / "broken.png", tmp_path / "large.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no picture at all")
    page = visit(served.one)
    page.page.click("#show")
    page.page.wait_for_selector("#tiles >> text=Attach a picture or a video first")
    page.page.click("text=Regenerate")
    page.page.wait_for_selector("#notice .alert >> text=there is no question yet")
    page.rest()
    page.attach(broken)
    page.send("What is it?")
    page.page.wait_for_selector("#notice .alert >> text=picture 'broken.png' cannot be opened")
    assert page.page.inner_text("#notice .alert").endswith("replace the file")
    page.rest()
    assert page.page.input_value("#question textarea") == "What is it?"  # given back, to be mended
    assert page.page.locator("#chat0 [data-testid=user]").count() == 0
    page.page.click("#buttons >> text=Clear")
    page.page.wait_for_selector("#notice .alert", state="detached")
    page.attach(scene)
    page.send("<image> and <image>?")
    page.page.wait_for_selector("#notice .alert >> text=2 <image> in the question")
    page.rest()
    page.send("What is it?")
    page.page.wait_for_selector("#notice .alert", state="detached")
    page.page.wait_for_selector("#chat0 [data-testid=bot]")
    page.rest()
    assert page.answer() == greedy(served.loaded[0], "What is it?", scene)
    large.write_bytes(scene.read_bytes() + bytes(1_100_000))
    page.page.set_input_files("#question input[type=file]", str(large))
    page.page.wait_for_selector("text=/exceed|too large|maximum/i")


def test_visitors_see_nothing_of_each_other(visit: Callable[..., Page], served: Served, scene: Path) -> None:
    first, second = visit(served.one), visit(served.one, width=400)
    first.attach(scene)
    first.send("What is it?")
    second.send("And now?")
    for page in (first, second):
        page.page.wait_for_selector("#chat0 [data-testid=bot]")
        page.rest()
    assert first.answer() == greedy(served.loaded[0], "What is it?", scene)
    assert second.answer() == greedy(served.loaded[0], "And now?")
    assert second.page.locator("#chat0 img").count() == 0
    assert second.page.evaluate("document.documentElement.scrollWidth") <= 400
    # An upload is served under a name that cannot be guessed, from a folder that cannot be listed.
    source = first.page.locator("#chat0 [data-testid=user] img").get_attribute("src")
    name = urllib.parse.unquote(source.split("/file=", 1)[1])
    assert re.fullmatch(re.escape(str(served.folder)) + r"/[0-9a-f]{64}/scene\.png", name)
    assert served.folder.stat().st_mode & 0o077 == 0
    for path in (
        served.folder,
        Path(name).parent,
        served.folder / "drawn",
        Path(__file__),
        "/etc/passwd",
        "../../etc/passwd",
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{served.one}/gradio_api/file={path}")
        assert error.value.code in (403, 404)


def test_the_page_fits_a_telephone(visit: Callable[..., Page], served: Served, scene: Path, artefacts: Path) -> None:
    page = visit(served.two, width=400)
    page.set("Longest answer (tokens)", 300)
    page.attach(scene)
    page.ask("Where are the things?")
    page.page.locator("#chat1 [data-testid=bot] img").wait_for()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 400
    upper, lower = (page.page.locator(f"#chat{number}").bounding_box() for number in range(2))
    assert upper["y"] + upper["height"] <= lower["y"]
    page.shot(artefacts, "demo_narrow.png")


def test_the_server_looked_for_no_other_host(served: Served) -> None:
    """The last of this file, so that it has seen what the others did."""
    assert served.asked <= {"127.0.0.1", "localhost"}
