"""Metrics of captions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.score import captions as scorer
from tests.eval.cases import cases, expected

WORDS = ["a", "dog", "cat", "on", "the", "red", "sofa", "runs"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize("case", cases("caption_corpus"))
def test_corpus(case: dict[str, Any]) -> None:
    due = expected(case)
    figures = scorer.score_captions(case["prediction"], case["ground_truth"])
    for name, value in figures.items():
        assert value == pytest.approx(due[name], abs=6e-7), name
    own, others = scorer.cut(case["prediction"], case["ground_truth"])
    if "CIDEr_each" in due:
        assert scorer.cider(own, others) == pytest.approx(due["CIDEr_each"], abs=6e-7)
    if "ROUGE_each" in due:
        each = [scorer.rouge_l(words, texts) for words, texts in zip(own, others, strict=True)]
        assert each == pytest.approx(due["ROUGE_each"], abs=6e-7)
    if "tokenised" in due:
        assert [" ".join(words) for words in own] == due["tokenised"]


@pytest.mark.parametrize("case", cases("caption_average_length"))
def test_average_length(case: dict[str, Any]) -> None:
    assert scorer.average_length(case["prediction"]) == expected(case)


@given(st.lists(TEXTS, min_size=2, max_size=5))
def test_captions_that_are_their_references(texts: list[str]) -> None:
    figures = scorer.score_captions(texts, [[text] for text in texts])
    assert figures["Bleu_1"] == pytest.approx(1, abs=1e-6)
    assert figures["ROUGE_L"] == pytest.approx(1)
    others = scorer.score_captions(["zebra"] * len(texts), [[text] for text in texts])
    assert others["CIDEr"] == 0 <= figures["CIDEr"] <= 10 + 1e-9


def test_a_picture_without_reference() -> None:
    with pytest.raises(DataError, match="picture 2 has no reference"):
        scorer.score_captions(["a", "b"], [["a"], []])


class _Scorer:
    def __init__(self, value: float | None) -> None:
        self.value = value

    def compute_score(self, references: dict[int, list[str]], captions: dict[int, list[str]]) -> tuple[float, None]:
        assert captions == {0: ["a cat"]}
        assert references == {0: ["cat -lrb- x -rrb-"]}
        if self.value is None:
            raise OSError("no network")
        return self.value, None


def test_java_metrics_get_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "check_java_metrics", lambda metrics: None)
    found = {"METEOR": _Scorer(0.5), "SPICE": _Scorer(0.25)}
    monkeypatch.setattr(scorer, "_java_scorer", lambda name: found[name])
    assert scorer.java_metrics(["A cat."], [["Cat (x)!"]], "meteor") == {"METEOR": 0.5}
    assert scorer.java_metrics(["A cat."], [["Cat (x)!"]], "all") == {"METEOR": 0.5, "SPICE": 0.25}
    found["SPICE"] = _Scorer(None)
    with pytest.raises(ConfigError, match=r"SPICE failed .*no network.*; score again with metrics=meteor"):
        scorer.java_metrics(["A cat."], [["Cat (x)!"]], "all")


def test_java_metrics_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="Java"):
        scorer.java_metrics(["a"], [["a"]], "all")
