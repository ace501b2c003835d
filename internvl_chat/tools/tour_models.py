"""Models of ``internvl tour``: where the tower begins, what a model answers, and what of it is right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internvl_chat.infer.load import Loaded

# The tower: 4 x 4 patches of 14 pixels, merged by two to four tokens a picture. The language model's tokens cost nearly
# all the time, the tower's next to nothing.
START: dict[str, Any] = {
    "image_size": 56,
    "vision_hidden": 192,
    "vision_layers": 3,
    "llm_hidden": 128,
    "llm_layers": 2,
    "vocab_size": 420,
    "max_dynamic_patch": 1,
}
POSITIONS = "vision_model.embeddings.position_embedding"


def make_start(out: str | Path, seed: int = 0) -> Path:
    """Write a random chat model of two million parameters around the random tower, for the tower to learn to see.

    Its tokenizer has learnt the sentences of the data, so that samples are short.
    """
    from safetensors.torch import load_file, save_file

    from internvl_chat.tools.tiny import make_tiny
    from internvl_chat.tools.tour_data import ASKS, DIGITS, PAIRS, SYSTEM, Scene

    scenes = [Scene(0, digit, *pair) for digit in DIGITS for pair in PAIRS]
    texts = [scene.tell(ask) for ask in ASKS for scene in scenes[::3]]
    texts += ["system\n", "user\n", "assistant\n", SYSTEM, *(f"\n{ask.question}" for ask in ASKS)] * 20
    folder = make_tiny(out, "qwen2", **START, seed=seed, extra_texts=texts)
    # As large as the patches: one colour over all patches would drown them, and where a stroke is matters.
    weights = load_file(folder / "model.safetensors")
    weights[POSITIONS] /= weights[POSITIONS].std()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def evaluate(model: Path, data: Path) -> list[dict[str, Any]]:
    """Greedy answers to all held-out questions, with what is right in each."""
    from internvl_chat.infer.batch import batch_answer
    from internvl_chat.tools.tour_data import ASKS, Scene, score

    lines = [json.loads(line) for line in (data / "held_out.jsonl").read_text().splitlines()]
    items = [(line["conversations"][1]["value"], [data / "pictures" / line["image"]]) for line in lines]
    predictions = batch_answer(_load(model), items, batch_size=50, max_new_tokens=24)
    answers = []
    for line, (question, pictures), prediction in zip(lines, items, predictions, strict=True):
        scene = Scene(**line["scene"])
        facts = score(prediction, ASKS[line["ask"]], scene)
        if "digit" in facts and scene.is_new:
            facts["new digit"] = facts["digit"]
        answers.append(
            {
                "images": [str(picture) for picture in pictures],
                "question": question,
                "answer": line["conversations"][2]["value"],
                "prediction": prediction,
                "facts": facts,
                "right": all(right for fact, right in facts.items() if fact != "sentence"),
            }
        )
    return answers


def tally(answers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Right and total per fact."""
    from internvl_chat.tools.tour_data import FACTS

    table = {fact: {"right": 0, "total": 0} for fact in (*FACTS, "new digit", "sentence")}
    for answer in answers:
        for fact, right in answer["facts"].items():
            table[fact]["right"] += right
            table[fact]["total"] += 1
    return table


def ask_plain(model: Path, questions: Sequence[str]) -> list[str]:
    """Answers of the chat model to questions without a picture."""
    from internvl_chat.infer.batch import batch_answer

    return batch_answer(_load(model), [(question, []) for question in questions], max_new_tokens=48)


def has_bf16_units() -> bool:
    """Whether the CPU multiplies bfloat16 (AVX-512 BF16 or AMX): 2.5 times as fast as float32, elsewhere slower."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _load(model: Path) -> Loaded:
    from internvl_chat.infer.load import load

    return load(model, device="cpu", dtype="bfloat16" if has_bf16_units() else "float32")
