"""The report page: well formed, self-contained, everything escaped, every picture in it."""

from __future__ import annotations

import base64
import io
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.tools.report import PICTURE_SIDE, write_report
from internvl_chat.tools.report_charts import finite_points, line_chart, log_ticks, smoothed, thinned, ticks, wilson

VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Page(HTMLParser):
    """Checks that tags nest, and collects elements and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _report(path: Path, **changes: Any) -> _Page:
    whole: dict[str, Any] = {
        "title": "Run",
        "curve": [{"step": i, "loss": 4 * math.exp(-i / 20), "learning_rate": 1e-3} for i in range(100)],
        "accuracy": {"1": {"right": 97, "total": 100}, "2": {"right": 0, "total": 0}},
        "samples": [],
        "facts": {"seed": "0"},
    }
    write_report(path, **(whole | changes))
    return _Page(path.read_text(encoding="utf-8"))


def test_pictures_are_inside_the_page_and_small(tmp_path: Path) -> None:
    modes = {"a.png": "RGBA", "b.jpg": "RGB", "c.png": "P", "d.png": "L"}
    for name, mode in modes.items():
        Image.new(mode, (900, 300)).save(tmp_path / name)
    asked = {"question": "<image>\nWhat?", "answer": "7", "prediction": "7", "right": True}
    samples = [
        asked | {"images": [tmp_path / "a.png"]},
        asked | {"images": [str(tmp_path / n) for n in list(modes)[1:]]},
    ]
    page = _report(tmp_path / "deep" / "report.html", samples=samples)
    sources = [str(attributes["src"]) for attributes in page.all("img")]
    assert len(sources) == 4
    for source in sources:
        assert source.startswith("data:image/")
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
            assert picture.size == (PICTURE_SIDE, PICTURE_SIDE // 3)
    assert sources[0].startswith("data:image/png") and sources[1].startswith("data:image/jpeg")
    assert "What?" in page.words
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_every_string_of_a_user_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    sample = {"images": [], "question": evil, "answer": evil, "prediction": evil, "right": False}
    missing = sample | {"images": [tmp_path / "<script>.png"]}
    bars = {evil: {"right": 1, "total": 2}}
    page = _report(tmp_path / "r.html", title=evil, accuracy=bars, samples=[sample, missing], facts={evil: evil})
    assert not page.all("script") and not page.all("link")
    # title, h1, bar, two facts, and question, prediction, expected of two samples
    assert "".join(page.words).count(evil) == 5 + 6
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_right_and_wrong_are_marked_by_sign_and_colour(tmp_path: Path) -> None:
    sample = {"images": [], "question": "Repeat: 4", "answer": "4"}
    samples = [sample | {"prediction": "4", "right": True}, sample | {"prediction": "", "right": False}]
    page = _report(tmp_path / "r.html", samples=samples)
    text = "".join(page.words)
    assert "✓ 4" in text and "✗ (empty answer)" in text and "expected: 4" in text and text.count("expected") == 1
    assert [a["class"] for a in page.all("p") if "verdict" in str(a.get("class"))] == ["verdict good", "verdict bad"]
    assert "1 of the 2 shown are right" in text and "97.0%" in text and "97 of 100" in text


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [{"step": 1}],
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}],
        [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 0.0}],
        [{"step": 1, "loss": -3.0}, {"step": 2, "loss": -1.0}],
        [{"step": i, "loss": 1.0} for i in range(5000)],
    ],
)
def test_odd_curves_still_make_a_page(tmp_path: Path, curve: list[dict[str, Any]]) -> None:
    page = _report(tmp_path / "r.html", curve=curve, accuracy={}, facts={})
    lines = page.all("polyline")
    assert len(lines) == (2 if finite_points(curve, "loss") else 0)
    for line in lines:
        pairs = [tuple(map(float, pair.split(","))) for pair in str(line["points"]).split()]
        assert 0 < len(pairs) <= 1200 and all(0 <= x <= 860 and 0 <= y <= 320 for x, y in pairs)


def test_smoothing_keeps_a_straight_line_and_its_ends() -> None:
    line = [(float(i), 3.0 - 0.01 * i) for i in range(200)]
    assert [y for _, y in smoothed(line)] == pytest.approx([y for _, y in line])
    assert [x for x, _ in smoothed(line)] == [x for x, _ in line]
    falling = [(float(i), math.exp(-i / 30)) for i in range(200)]
    assert [y for _, y in smoothed(falling, log=True)] == pytest.approx([y for _, y in falling])
    assert thinned(line, 100)[0] == pytest.approx((0.5, 2.995)) and len(thinned(line, 99)) <= 99


def test_axis_values_are_round() -> None:
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3, 3) == [3]
    assert log_ticks(0.04, 5) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    assert "logarithmic" in line_chart([(0.0, 5.0), (1.0, 0.05)], "loss")
    assert "logarithmic" not in line_chart([(0.0, 5.0), (1.0, 2.0)], "loss")


def test_interval_of_a_share() -> None:
    # scipy.stats.binomtest(97, 100).proportion_ci(method="wilson")
    assert wilson(97, 100) == pytest.approx((0.915481, 0.989745), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)
