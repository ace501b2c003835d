"""Two ranks under ZeRO-2, killed ten times at random moments, end as if nothing had happened: to the last bit."""

from __future__ import annotations

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from internvl_chat.train.state import (
    MARKER,
    SAVING,
    DataState,
    begin_saving,
    clear_old_run,
    clear_unfinished,
    complete_checkpoints,
    find_resume,
    finish_saving,
    keep_newest,
)
from tests.train import warm
from tests.train.runs import environment, flags, log_of

STEPS = 44
SHARED = {
    "use_packed_ds": True,
    "max_packed_tokens": 400,
    "max_steps": STEPS,
    "drop_path_rate": 0.1,
    "weight_decay": 0.05,
    "deepspeed": "zero2",
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
}
SEED = int(os.environ.get("INTERNVL_CHAOS_SEED", "20261122"))
PATIENCE = 180.0


@dataclass(frozen=True)
class Kill:
    """When: ``delay`` seconds after the start, after a checkpoint was complete, or after its saving has begun.

    ``steps``: how many steps after the newest complete checkpoint, at most the last. ``first``: the rank that dies, the
    others are killed when they have noticed or after a while; None: all at once.
    """

    after: str
    delay: float
    steps: int = 1
    first: int | None = None


def draw_kills(seed: int) -> list[Kill]:
    """Ten and one: six in the middle of a save (in two of them one rank alone), three between, one while starting; and
    one at the end.

    Just after a save the oldest checkpoint is deleted; at the end the model is written.
    """
    draw = random.Random(seed)
    kills = [Kill("saving", 0.0, draw.randint(1, 3)) for _ in range(3)]
    kills += [Kill("saving", draw.uniform(0, 0.05), draw.randint(1, 3))]
    kills += [Kill("saving", draw.uniform(0, 0.01), draw.randint(1, 3), first=rank) for rank in (0, 1)]
    kills += [Kill("saved", draw.uniform(0, limit), draw.randint(1, 3)) for limit in (0.002, 0.2)]
    kills += [Kill("saved", draw.uniform(0, 0.2), draw.randint(1, 3), first=draw.randint(0, 1))]
    kills += [Kill("start", draw.uniform(0, 2.0))]
    draw.shuffle(kills)
    return [*kills, Kill("saved", draw.uniform(0, 0.1), steps=STEPS)]


def complete(out: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(path.parent.name.split("-")[1]) for path in out.glob(f"checkpoint-*/{MARKER}"))


def broken(out: Path) -> list[str]:
    """Names of the checkpoints that are being written, or were when the run died."""
    return [path.name for path in out.glob("checkpoint-*") if (path / SAVING).exists() and not (path / MARKER).exists()]


def is_new(file: Path, before: float) -> bool:
    """Whether a file was written by this run, and not left behind by the one that was killed before."""
    try:
        return file.stat().st_mtime > before
    except FileNotFoundError:
        return False


def strike(kill: Kill, ranks: warm.Ranks, out: Path, reached: int, before: float) -> None:
    """Wait for the moment, kill, and return when no rank is left. ``before``: time of day before the start."""
    deadline = time.monotonic() + PATIENCE
    checkpoint = out / f"checkpoint-{min(reached + kill.steps, STEPS)}"
    awaited = {"start": None, "saving": checkpoint / SAVING, "saved": checkpoint / MARKER}[kill.after]
    turn = 0
    while awaited is not None and not is_new(awaited, before):
        turn += 1
        if turn % 200 == 0:
            assert ranks.codes() == [None, None], f"a rank ended by itself: {ranks.output()[-4000:]}"
            assert time.monotonic() < deadline, ranks.output()[-4000:]
        time.sleep(0.0005)
    time.sleep(kill.delay)
    if kill.first is None:
        ranks.kill()
    else:
        ranks.kill(kill.first)
        other = 1 - kill.first
        waited = time.monotonic() + 3
        while ranks.codes()[other] is None and time.monotonic() < waited:
            time.sleep(0.02)
        assert ranks.codes()[other] != 0, "the other rank took the run for finished"
    ranks.end()


def first_step(log: Path) -> int | None:
    """The first step that a run reports."""
    match = re.search(r"\bstep (\d+)/", log.read_text(errors="replace"))
    return int(match[1]) if match else None


@pytest.fixture
def whole(tiny: Path, mixed_data: Path, tmp_path: Path) -> Iterator[Path]:
    """The undisturbed run."""
    out = tmp_path / "whole"
    ranks = warm.start([flags(tiny, mixed_data, out, **SHARED)], 2, tmp_path / "log-whole", environment())
    codes = ranks.wait(PATIENCE)
    ranks.end()
    assert codes == [0, 0], ranks.output()[-6000:]
    yield out


@pytest.mark.slow
def test_killed_ten_times(whole: Path, tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    words = flags(tiny, mixed_data, out, **SHARED)
    kills = draw_kills(SEED)
    story = [f"INTERNVL_CHAOS_SEED={SEED}"]
    killed = in_a_save = seen_to_resume = 0
    for number, kill in enumerate([*kills, None]):
        reached = max(complete(out), default=0)
        before = time.time()
        ranks = warm.start([words], 2, tmp_path / f"log{number}", environment())
        try:
            if kill is None:
                assert ranks.wait(PATIENCE) == [0, 0], ranks.output()[-6000:]
            else:
                strike(kill, ranks, out, reached, before)
        except AssertionError as error:
            raise AssertionError("\n".join([*story, f"then {kill}, from step {reached}"])) from error
        finally:
            ranks.end()
        killed += -9 in ranks.codes()
        left = broken(out)
        in_a_save += bool(left)
        story.append(f"{kill}: from step {reached} to {complete(out)}, broken: {left}")
        step = first_step(ranks.logs[0])
        if step is not None:
            assert step == reached + 1, "\n".join(story)
            seen_to_resume += reached > 0
    text = "\n".join(story)
    assert killed >= 10, text
    assert in_a_save >= 3, text
    assert seen_to_resume >= 7, text
    assert [(r["step"], r["loss"]) for r in log_of(out) if "loss" in r] == [
        (r["step"], r["loss"]) for r in log_of(whole) if "loss" in r
    ], text
    assert len(log_of(whole)) >= STEPS
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes(), text
    left = sorted(path.name for path in out.glob("checkpoint-*"))
    assert left == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"], f"something was left behind: {left}\n{text}"


# -- every moment of a save, one by one ------------------------------------------------------------------------------


class PowerCut(BaseException):
    pass


def cut_after(calls: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the action was stopped just after its n-th change of the disk."""
    left = calls

    def cutting(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal left
            result = function(*args, **options)
            left -= 1
            if left == 0:
                raise PowerCut
            return result

        return call

    with monkeypatch.context() as patch:
        for module, name in ((io, "open"), (os, "mkdir"), (os, "replace"), (os, "unlink"), (os, "rmdir")):
            patch.setattr(module, name, cutting(getattr(module, name)))
        try:
            action()
        except PowerCut:
            return True
    return False


def save(out: Path, step: int) -> None:
    checkpoint = out / f"checkpoint-{step}"
    begin_saving(checkpoint)
    for name in ("a.bin", "internvl.bin", "z.bin"):
        (checkpoint / name).write_bytes(b"x")
    (checkpoint / "global_step").mkdir()
    (checkpoint / "global_step" / "shard.pt").write_bytes(b"x")
    finish_saving(checkpoint, DataState(step=step, history=[], plan="", data={}, num_steps=9, world_size=1))
    keep_newest(out, 2)


@pytest.mark.parametrize("before", [0, 2])
def test_save_that_is_cut_short_anywhere(before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resumed from the newest complete checkpoint, and nothing else is left; the next save goes well."""
    cuts = 0
    while True:
        out = tmp_path / str(cuts)
        for step in range(1, before + 1):
            save(out, step)
        cut = cut_after(cuts + 1, lambda out=out: save(out, before + 1), monkeypatch)  # type: ignore[misc]
        found = find_resume(out, overwrite=False, requested=None)
        reached = max(complete(out), default=0)
        assert (found[1].step if found else 0) == reached, f"after change {cuts + 1}"
        assert reached in (before, before + 1)
        if found is None:
            clear_old_run(out, overwrite=False)
        else:
            clear_unfinished(out)
        assert sorted(out.glob("*")) == sorted(complete_checkpoints(out)), f"after change {cuts + 1}"
        for checkpoint in complete_checkpoints(out):
            assert (checkpoint / "global_step" / "shard.pt").exists(), f"half a checkpoint after change {cuts + 1}"
        save(out, reached + 1)
        assert complete(out)[-1] == reached + 1
        if not cut:
            break
        cuts += 1
    assert cuts > (8 if before == 0 else 14)
