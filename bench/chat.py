"""First token and tokens per second of ``Chat`` and of batches, against plain transformers, in one run.

One tiny model with random weights, float32, greedy; the same weights in both layouts. Baseline: what its users write,
``AutoModelForImageTextToText`` with its image processor (Pillow; the one that needs no torchvision) and tokenizer, the
chat template, ``TextIteratorStreamer``, one question after the other. Both turn a picture file into text; both make the
same number of new tokens. The two take turns, medians count.

    text            one question without a picture
    picture         one picture of several tiles
    second round    the next question about it; the baseline sends pictures and history again
    batch           many questions with a picture each: ours in batches of 8, the baseline one by one

python bench/chat.py            # 3 minutes on two cores; --save writes bench/results/chat_<device>.json
python bench/chat.py --device cuda --dtype bfloat16 --hidden 2048 --layers 24 --save
python bench/chat.py --hidden 64 --layers 2 --repeats 1 --questions 4 --tokens 4
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from PIL import Image
from train_common import RESULTS, machine, table
from transformers import AutoModelForImageTextToText, AutoTokenizer, TextIteratorStreamer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from internvl_chat.constants import IMG_CONTEXT, IMG_END, IMG_START
from internvl_chat.folder import write_folder
from internvl_chat.infer.batch import answers
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import load
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.questions import question_of
from internvl_chat.tools.tiny import make_tiny

QUESTION, AGAIN = "What do you see? Please describe the image in detail.", "And what is behind it?"


class Plain:
    """The exported folder, asked with nothing but transformers."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str, tokens: int) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = GotOcr2ImageProcessorPil.from_pretrained(folder)
        self.count = json.loads((folder / "processor_config.json").read_text())["image_seq_length"]
        self.length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def stream(self, messages: list[dict[str, Any]], pictures: list[Path]) -> Any:
        """Pieces of the answer; pictures are read, cut and encoded on the way."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs: dict[str, Any] = {}
        if pictures:
            opened = [Image.open(picture).convert("RGB") for picture in pictures]
            cut = self.images(opened, return_tensors="pt")
            inputs["pixel_values"] = cut["pixel_values"].to(self.model.device, self.model.dtype)
            for patches in cut["num_patches"]:
                context = IMG_CONTEXT * self.count * int(patches)
                text = text.replace(IMG_CONTEXT, f"{IMG_START}{context.replace(IMG_CONTEXT, '<|c|>')}{IMG_END}", 1)
            text = text.replace("<|c|>", IMG_CONTEXT)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.model.device)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        thread = Thread(target=self.model.generate, kwargs={**ids, **inputs, **self.length, "streamer": streamer})
        thread.start()
        yield from streamer
        thread.join()


def asked(question: str, pictures: int) -> dict[str, Any]:
    parts = [{"type": "image"}] * pictures
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def clocked(pieces: Any) -> tuple[float, float, str]:
    """Seconds to the first piece, seconds in all, and the text."""
    start = time.perf_counter()
    first, text = 0.0, ""
    for piece in pieces:
        if piece and not text:
            first = time.perf_counter() - start
        text += piece
    return first, time.perf_counter() - start, text


def turn_about(repeats: int, ways: dict[str, Callable[[], tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Medians of (first, whole) of each way; they take turns, after one turn that does not count."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            taken = way()
            if number:
                found[name].append(taken)
    return {
        name: (statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))
        for name, times in found.items()
    }


def measure(ours: Loaded, plain: Plain, pictures: list[Path], tokens: int, repeats: int) -> list[dict[str, Any]]:
    """A row per case."""
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}

    def chat_once(number: int) -> tuple[float, float]:
        chat = Chat(ours)
        if number == 2:
            chat.ask(QUESTION, pictures[:1], **length)
            return clocked(chat.ask(AGAIN, stream=True, **length))[:2]
        return clocked(iter_late(lambda: chat.ask(QUESTION, pictures[:number], stream=True, **length)))[:2]

    def plain_once(number: int) -> tuple[float, float]:
        if number == 2:
            answer = clocked(plain.stream([asked(QUESTION, 1)], pictures[:1]))[2]
            said = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}, asked(AGAIN, 0)]
            return clocked(plain.stream([asked(QUESTION, 1), *said], pictures[:1]))[:2]
        return clocked(plain.stream([asked(QUESTION, number)], pictures[:number]))[:2]

    rows = []
    for number, name in enumerate(("text", "picture", "second round")):
        found = turn_about(repeats, {"ours": lambda n=number: chat_once(n), "plain": lambda n=number: plain_once(n)})
        rows.append(row(name, found, tokens, 1))

    def batches() -> tuple[float, float]:
        start = time.perf_counter()
        asking = [question_of(QUESTION, [picture], None, ours.tiles) for picture in pictures]
        for _ in answers(ours, asking, 8, **length):
            pass
        return 0.0, time.perf_counter() - start

    def one_by_one() -> tuple[float, float]:
        return 0.0, sum(clocked(plain.stream([asked(QUESTION, 1)], [picture]))[1] for picture in pictures)

    rows.append(row("batch", turn_about(repeats, {"ours": batches, "plain": one_by_one}), tokens, len(pictures)))
    return rows


def iter_late(start: Callable[[], Any]) -> Any:
    """What ``ask`` does before its first piece belongs to the time as well."""
    yield from start()


def row(name: str, found: dict[str, tuple[float, float]], tokens: int, answered: int) -> dict[str, Any]:
    ours, plain = found["ours"], found["plain"]
    rates = {who: answered * tokens / times[1] for who, times in found.items()}
    first = {who: 1000 * times[0] for who, times in found.items()}
    return {
        "case": name,
        "first_token_ms": round(first["ours"], 1) or None,
        "first_token_ms_plain": round(first["plain"], 1) or None,
        "first_token_ratio": round(plain[0] / ours[0], 2) if ours[0] else None,
        "tokens_per_s": round(rates["ours"], 1),
        "tokens_per_s_plain": round(rates["plain"], 1),
        "speed_ratio": round(rates["ours"] / rates["plain"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of each answer")
    parser.add_argument("--questions", type=int, default=16, help="of the batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    disable_progress_bar()
    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        make_tiny(
            root / "ours", "qwen2", image_size=112, vision_hidden=args.hidden // 2, vision_layers=args.layers,
            llm_hidden=args.hidden, llm_layers=args.layers,
        )  # fmt: skip
        ours = load(root / "ours", device=args.device, dtype=dtype)
        write_folder(ours.model, ours.tokenizer, root / "hf", layout="hf")
        plain = Plain(root / "hf", dtype, args.device, args.tokens)
        rng = np.random.default_rng(0)
        pictures = []
        for number in range(args.questions):
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            pictures.append(root / f"{number}.jpg")
            small.resize((640, 480)).save(pictures[-1])
        rows = measure(ours, plain, pictures, args.tokens, args.repeats)
        counts = {"tiles": len(cut(ours, pictures[0])), "parameters": sum(p.numel() for p in ours.model.parameters())}
    print(table(list(rows[0]), [["" if value is None else value for value in line.values()] for line in rows]))
    if args.save:
        result = {"machine": machine(), "arguments": vars(args), "model": counts, "rows": rows}
        path = RESULTS / f"chat_{args.device.split(':')[0]}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(f"wrote {path}")


def cut(ours: Loaded, picture: Path) -> torch.Tensor:
    from internvl_chat.infer.pictures import cut_pictures

    return cut_pictures([picture], ours.tiles).pixels


if __name__ == "__main__":
    main()
