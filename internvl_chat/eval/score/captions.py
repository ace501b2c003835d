"""Captions against references as COCO evaluates them: BLEU, ROUGE-L, CIDEr; METEOR and SPICE by their own programs.

A caption is a text, references are texts of the same picture; both are cut into words by ``score.words``.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from internvl_chat.errors import ConfigError, DataError, first_line
from internvl_chat.eval.score.words import caption_words

Words = Sequence[str]
Grams = Mapping[tuple[str, ...], int]
_LONGEST = 4  # words of an n-gram
# BLEU: so that nothing is divided by nothing, as in COCO's code.
_TINY, _SMALL = 1e-15, 1e-9
_BETA = 1.2  # ROUGE-L: weight of recall
_SIGMA = 6.0  # CIDEr-D: how much another length costs
_CIDER_SCALE = 10.0


def average_length(captions: Sequence[str]) -> float:
    """Mean number of words between blanks."""
    return sum(len(caption.split()) for caption in captions) / len(captions)


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Bleu_1 to Bleu_4, ROUGE_L and CIDEr of a whole data set, as COCO's evaluation gives them (not times 100).

    ``references``: those of each caption's picture. Raises DataError if a picture has none.
    """
    own, due = cut(captions, references)
    rouge = [rouge_l(words, others) for words, others in zip(own, due, strict=True)]
    figures = {f"Bleu_{n}": value for n, value in enumerate(bleu(own, due), 1)}
    return figures | {"ROUGE_L": sum(rouge) / len(rouge), "CIDEr": float(np.mean(cider(own, due)))}


def cut(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    """The words of captions and of their references. Raises DataError if a picture has no reference."""
    for number, texts in enumerate(references, 1):
        if not texts:
            raise DataError(f"picture {number} has no reference caption; check the annotation file")
    return [caption_words(text) for text in captions], [[caption_words(one) for one in texts] for texts in references]


def n_grams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """All runs of ``n`` words and how often each is there."""
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU with runs of up to 1, 2, 3, 4 words over all captions; the nearest reference's length counts."""
    right, all_runs = [0] * _LONGEST, [0] * _LONGEST
    written = due = 0
    for words, others in zip(captions, references, strict=True):
        written += len(words)
        due += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, _LONGEST + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= n_grams(other, n)
            right[n - 1] += (n_grams(words, n) & most).total()
            all_runs[n - 1] += max(0, len(words) - n + 1)
    ratio = (written + _TINY) / (due + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, found = 1.0, []
    for n in range(1, _LONGEST + 1):
        product *= (right[n - 1] + _TINY) / (all_runs[n - 1] + _SMALL)
        found.append(product ** (1 / n) * brevity)
    return found


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """Longest common subsequence with the references: best precision and best recall, recall weighted more."""
    lengths = [_common(words, other) for other in references]
    precision = max(length / max(1, len(words)) for length in lengths)
    recall = max(length / max(1, len(other)) for length, other in zip(lengths, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(first: Words, second: Words) -> int:
    row = [0] * (len(second) + 1)
    for own in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], diagonal + 1 if own == other else max(row[j], row[j - 1])
    return row[-1]


def cider(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption; how rare a run of words is comes from the references of all pictures given."""
    seen: Counter[tuple[str, ...]] = Counter()
    counted = [[_all_grams(other) for other in others] for others in references]
    for grams in counted:
        seen.update({gram for one in grams for gram in one})
    pictures = math.log(len(references))
    found = []
    for words, grams in zip(captions, counted, strict=True):
        own = _Weighted(_all_grams(words), seen, pictures)
        likeness = [own.likeness(_Weighted(one, seen, pictures)) for one in grams]
        found.append(_CIDER_SCALE * sum(likeness) / len(likeness))
    return found


def _all_grams(words: Words) -> Counter[tuple[str, ...]]:
    return sum((n_grams(words, n) for n in range(1, _LONGEST + 1)), Counter())


class _Weighted:
    """The runs of words of one text, weighted by how rare they are, for each length of a run."""

    def __init__(self, grams: Grams, seen: Grams, pictures: float) -> None:
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
        for gram, times in grams.items():
            self.weights[len(gram) - 1][gram] = times * (pictures - math.log(max(1, seen.get(gram, 0))))
        self.norms = [math.sqrt(sum(value * value for value in of_n.values())) for of_n in self.weights]
        # COCO's code measures the length of a text by its pairs of words.
        self.length = sum(times for gram, times in grams.items() if len(gram) == 2)

    def likeness(self, other: _Weighted) -> float:
        """Mean over the lengths of a run; weights above the reference's are cut to it."""
        total = 0.0
        for own, due, size, due_size in zip(self.weights, other.weights, self.norms, other.norms, strict=True):
            value = sum(min(weight, due[gram]) * due[gram] for gram, weight in own.items() if gram in due)
            total += value / (size * due_size) if size and due_size else value
        apart = self.length - other.length
        return total / _LONGEST * math.exp(-(apart**2) / (2 * _SIGMA**2))


def check_java_metrics(metrics: str) -> None:
    """Raise ConfigError unless METEOR and SPICE can run here. ``metrics``: the option that asks for them."""
    missing = [] if shutil.which("java") else ["Java (a program `java`)"]
    missing += [] if importlib.util.find_spec("pycocoevalcap") else ["pycocoevalcap (pip install pycocoevalcap)"]
    if missing:
        needs = " and ".join(missing)
        raise ConfigError(f"metrics={metrics} needs {needs}; metrics=plain gives BLEU, ROUGE-L and CIDEr without them")


def java_metrics(captions: Sequence[str], references: Sequence[Sequence[str]], metrics: str) -> dict[str, float]:
    """METEOR, and SPICE if ``metrics`` is "all", by pycocoevalcap, which starts Java.

    Raises ConfigError where they cannot run.
    """
    check_java_metrics(metrics)
    own, due = cut(captions, references)
    texts = {number: [" ".join(words)] for number, words in enumerate(own)}
    others = {number: [" ".join(words) for words in one] for number, one in enumerate(due)}
    figures = {}
    for name in ("METEOR", "SPICE") if metrics == "all" else ("METEOR",):
        try:
            figures[name] = float(_java_scorer(name).compute_score(others, texts)[0])
        except (OSError, ValueError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
            more = "; it fetches its parser from the network at first use" if name == "SPICE" else ""
            mend = "score again with metrics=meteor" if name == "SPICE" else "score again with metrics=plain"
            raise ConfigError(f"{name} failed ({first_line(error)}){more}; {mend}") from error
    return figures


def _java_scorer(name: str) -> Any:
    if name == "METEOR":
        from pycocoevalcap.meteor.meteor import Meteor

        return Meteor()
    from pycocoevalcap.spice.spice import Spice

    return Spice()
