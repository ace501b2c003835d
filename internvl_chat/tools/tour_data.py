"""Data of ``internvl tour``: real handwritten digits in colour, asked for and answered in whole sentences.

Made below one folder::

    first.json, second.json, held_out.json              manifests: of stage 1, of stage 2, of the evaluation
    first.jsonl, second.jsonl, held_out.jsonl           annotations; stage 2 has lines without a picture too
    pictures/{first,second,held_out}/*.png              pictures

Held-out pictures show scans that no training picture shows. Every other one also has a combination of digit and colours
that no training picture has: there even what goes with what, learnt by heart, does not help.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.errors import ConfigError
from internvl_chat.tools.digit_pictures import SHAKY, STEADY, Deck, Hand, draw_number, load_scans, split_scans

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# Short: every sample pays for its tokens, and the templates' own message is 90 tokens of this tokenizer.
SYSTEM = "You are a helpful assistant."
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# One token each in common vocabularies, and none needs "an". The pen is always darker than the paper: with both
# polarities light and dark shapes cancel out, and a small tower needs many times more pictures to see the digit.
INKS = {
    "red": (195, 20, 30),
    "green": (15, 115, 40),
    "blue": (30, 50, 190),
    "black": (15, 15, 15),
    "purple": (120, 20, 140),
    "brown": (105, 60, 20),
}
PAPERS = {
    "white": (248, 248, 248),
    "yellow": (245, 225, 60),
    "pink": (250, 165, 190),
    "grey": (172, 172, 172),
    "cyan": (105, 225, 235),
}
COLOURS = INKS | PAPERS
PAIRS = tuple(product(INKS, PAPERS))
# Of five combinations one is held out: for each digit 6 of 30 pairs of colours, for each pair 2 digits.
HELD_OUT_EVERY = 5
# How much a channel strays from the colour's own value, to both sides.
STRAY = 14
HEIGHTS = (56, 74)


@dataclass(frozen=True)
class Ask:
    """A question, its answer with the facts in braces, and how often it is asked."""

    question: str
    answer: str
    share: float

    @property
    def facts(self) -> tuple[str, ...]:
        """The facts that the answer states."""
        return tuple(re.findall(r"{(\w+)}", self.answer))


# Mostly whole descriptions: three facts for the price of one prompt.
ASKS = (
    Ask("What does the picture show?", "The picture shows a {ink} {digit} on a {paper} background.", 0.25),
    Ask("Describe the picture.", "This is a {ink} {digit} on a {paper} background.", 0.2),
    Ask("What do you see?", "I see a {ink} {digit} on a {paper} background.", 0.2),
    Ask("Which digit is written?", "The written digit is {digit}.", 0.2),
    Ask("What colour is the digit?", "The digit is {ink}.", 0.075),
    Ask("What colour is the background?", "The background is {paper}.", 0.075),
)
FACTS = ("digit", "ink", "paper")
# Longest answer without a picture.
TALK_TOKENS = 48
# Asked in training, so that the model still talks of other things than pictures.
TALK_QUESTIONS = (
    "What is the capital of Italy?",
    "What is the capital of Japan?",
    "Why is the sky blue?",
    "What do bees make?",
    "How does a bicycle work?",
    "What is the largest planet?",
    "Who wrote Hamlet?",
    "What is photosynthesis?",
    "Name three fruits.",
    "Why do we sleep?",
    "What is a computer?",
    "How do fish breathe?",
    "What is rain made of?",
    "Give me a tip for learning a language.",
    "What is the moon?",
    "Tell me something about elephants.",
    "How is bread made?",
    "What is music?",
    "What does a doctor do?",
    "Why is exercise good for us?",
    "What is a volcano?",
    "How can I save water at home?",
    "What is the Great Wall of China?",
    "Write a sentence about spring.",
    "What is gravity?",
    "Who was Albert Einstein?",
    "What is a poem?",
    "How do birds fly?",
    "What is the Internet?",
    "Say hello.",
    "What is democracy?",
    "Why do leaves fall in autumn?",
    "What is the boiling point of water?",
    "Name two rivers in Africa.",
    "What is a friend?",
    "How do I make tea?",
    "What are stars?",
    "Where do penguins live?",
    "What is chess?",
    "Tell me a fact about the ocean.",
)
# Asked when all is done; none of them was trained.
PLAIN_QUESTIONS = ("What is the capital of France?", "What do cows eat?", "Why is the sea salty?")


@dataclass(frozen=True)
class Scene:
    """What a picture shows: the scan by its index, and the three facts by their words."""

    scan: int
    digit: str
    ink: str
    paper: str

    @property
    def is_new(self) -> bool:
        """Whether no training picture has this combination."""
        return is_held_out(DIGITS.index(self.digit), self.ink, self.paper)

    def tell(self, ask: Ask) -> str:
        """The right answer."""
        return ask.answer.format(digit=self.digit, ink=self.ink, paper=self.paper)


def is_held_out(digit: int, ink: str, paper: str) -> bool:
    """Whether this combination appears in held-out pictures only."""
    return (list(INKS).index(ink) + list(PAPERS).index(paper) + digit) % HELD_OUT_EVERY == 0


def read_facts(text: str, ask: Ask) -> dict[str, str | None]:
    """What a sentence says about the facts that ``ask`` asks for; None where it is silent or says several things.

    Words are looked for, not the sentence that was taught.
    """
    words = re.findall(r"[a-z]+", text.lower())
    known = {"digit": DIGITS, "ink": INKS, "paper": PAPERS}
    found = {fact: {word for word in words if word in known[fact]} for fact in ask.facts}
    return {fact: said.pop() if len(said) == 1 else None for fact, said in found.items()}


def score(text: str, ask: Ask, scene: Scene) -> dict[str, bool]:
    """Which of the facts asked for are right, and whether the answer is the whole taught sentence ("sentence")."""
    right = {fact: word == getattr(scene, fact) for fact, word in read_facts(text, ask).items()}
    return right | {"sentence": text.strip() == scene.tell(ask)}


def draw(scan: np.ndarray, ink: str, paper: str, rng: np.random.Generator, hand: Hand) -> Image.Image:
    """RGB picture of one scan, written in one colour on another, each a little off."""
    from PIL import ImageOps

    grey = ImageOps.autocontrast(draw_number([scan], rng, HEIGHTS, hand).convert("L"))
    pen, ground = (
        tuple(min(255, max(0, channel + int(rng.integers(-STRAY, STRAY + 1)))) for channel in COLOURS[name])
        for name in (ink, paper)
    )
    return ImageOps.colorize(grey, black=pen, white=ground)


def make_data(
    out: str | Path, llm: str | Path, first: int, second: int, held_out: int, talk: int, repeat: int, seed: int = 0
) -> Path:
    """All data of the tour: pictures, and ``talk`` questions without one, ``repeat`` times each, in stage 2."""
    folder = make_pictures(out, first, second, held_out, seed)
    add_talk(folder, answer_plain(llm, TALK_QUESTIONS[:talk]), repeat)
    return folder


def make_pictures(out: str | Path, first: int, second: int, held_out: int, seed: int = 0) -> Path:
    """Write pictures, annotations and manifests of both stages and the held-out side; returns ``out``.

    Same arguments, same bytes.
    """
    import numpy as np

    if min(first, second, held_out) < 1:
        raise ConfigError(f"first {first}, second {second}, held_out {held_out}: each must be at least 1")
    folder, scans = Path(out), load_scans()
    stocks = split_scans(scans.labels, 0.2, np.random.default_rng((seed, 0)))
    sides = (("first", first, stocks[0], SHAKY), ("second", second, stocks[0], SHAKY))
    for number, (side, count, stock, hand) in enumerate((*sides, ("held_out", held_out, stocks[1], STEADY)), start=1):
        root = folder / "pictures" / side
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob("*.png"):  # of an earlier, larger run
            stale.unlink()
        rng = np.random.default_rng((seed, number))
        deck, lines = Deck(stock, rng), []
        for index in range(count):
            new = side == "held_out" and index % 2 == 1
            scene = _draw_scene(deck.deal(1)[0], scans.labels, new, rng)
            ask = ASKS[int(rng.choice(len(ASKS), p=[ask.share for ask in ASKS]))]
            picture = draw(scans.pixels[scene.scan], scene.ink, scene.paper, rng, hand)
            picture.save(root / f"{index:05d}.png")
            lines.append(_line(f"{side}/{index:05d}.png", picture.size, ask, scene))
        _write_set(folder, side, lines)
    return folder


def _draw_scene(scan: int, labels: np.ndarray, new: bool, rng: np.random.Generator) -> Scene:
    digit = int(labels[scan])
    pairs = [pair for pair in PAIRS if is_held_out(digit, *pair) == new]
    ink, paper = pairs[int(rng.integers(len(pairs)))]
    return Scene(scan, DIGITS[digit], ink, paper)


def _line(picture: str, size: tuple[int, int], ask: Ask, scene: Scene) -> dict[str, Any]:
    """Annotation of one picture; the keys that training does not read are for the evaluation."""
    return {
        "image": picture, "width": size[0], "height": size[1],
        "conversations": conversation(f"{IMAGE_PLACEHOLDER}\n{ask.question}", scene.tell(ask)),
        "ask": ASKS.index(ask), "scene": vars(scene),
    }  # fmt: skip


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    """One exchange in the InternVL format, the short system message in front."""
    turns = (("system", SYSTEM), ("human", question), ("gpt", answer))
    return [{"from": who, "value": text} for who, text in turns]


def add_talk(data: str | Path, talk: Sequence[tuple[str, str]], repeat: int) -> Path:
    """Add each (question, answer), without a picture, ``repeat`` times to the data of stage 2."""
    folder = Path(data)
    lines: list[dict[str, Any]] = [json.loads(line) for line in (folder / "second.jsonl").read_text().splitlines()]
    plain = [{"conversations": conversation(*pair)} for pair in talk]
    return _write_set(folder, "second", [*lines, *plain * repeat])


def answer_plain(llm: str | Path, questions: Sequence[str], whole: bool = True) -> list[tuple[str, str]]:
    """Questions and the language model's own greedy answers: training on them keeps it as it is.

    ``whole``: answers are cut behind their last whole sentence, and left out where there is none.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from internvl_chat.data.template import get_template
    from internvl_chat.model.tokenizer import load_tokenizer

    form, tokenizer = get_template("internvl2_5"), load_tokenizer(llm)
    model: Any = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32, local_files_only=True).eval()
    stop = tokenizer.convert_tokens_to_ids(form.stop)
    start, end = f"{form.system_prefix}{SYSTEM}{form.system_suffix}{form.user_prefix}", form.user_suffix
    texts = [f"{start}{question}{end}{form.assistant_prefix}" for question in questions]
    prompts = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    with torch.inference_mode():
        rows = model.generate(
            input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"], max_new_tokens=TALK_TOKENS,
            do_sample=False, eos_token_id=stop, pad_token_id=stop,
        )[:, prompts["input_ids"].shape[1] :]  # fmt: skip
    pairs = []
    for question, ids in zip(questions, rows.tolist(), strict=True):
        answer = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        if whole and stop not in ids:
            answer = answer[: max(answer.rfind(". "), answer.rfind(".\n")) + 1]
        if answer:
            pairs.append((question, answer))
    return pairs


def _write_set(folder: Path, name: str, lines: Sequence[dict[str, Any]]) -> Path:
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    entry = {"root": "pictures/", "annotation": f"{name}.jsonl", "length": len(lines)}
    manifest = folder / f"{name}.json"
    manifest.write_text(json.dumps({name: entry}, indent=2) + "\n", encoding="utf-8")
    return manifest
