"""Plans of epochs -> the steps of a run: what each rank loads for each micro-batch, also when a run changes its shape.

A run that was stopped and goes on with other settings (another number of ranks, other budgets) keeps the steps it has
done; what is left of the epoch it stood in is planned anew, then whole epochs follow. So every entry of every epoch is
seen exactly once, however often that happens.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from internvl_chat.data.plan.cost import idle_share, parts_of_step
from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings
from internvl_chat.data.plan.sizes import Sizes, SizesOfSome
from internvl_chat.data.plan.store import Planner, plan_in_memory

# Beyond so many planned samples or epochs the length of a run in epochs is estimated.
EXACT_SAMPLES, EXACT_EPOCHS = 4_000_000, 64
_KEPT_PLANS = 3


@dataclass(frozen=True)
class Segment:
    """Steps that a run has done with the same settings."""

    steps: int
    settings: PlanSettings

    def as_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "settings": self.settings.as_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Segment:
        """Raises TypeError or KeyError for what ``as_json`` did not write."""
        return cls(int(values["steps"]), PlanSettings.from_json(values["settings"]))


@dataclass(frozen=True, eq=False)
class _Leg:
    """``steps`` steps, from step ``first`` of the run on, of a plan of ``planned``, ``begin`` (0..1) into its epoch.

    ``rest``: the entries that are planned, where an epoch had begun with other settings; None: all.
    """

    first: int
    steps: int
    planned: int
    epoch: int
    begin: float
    settings: PlanSettings
    rest: np.ndarray | None

    def part_done(self, steps: int) -> float:
        """Share (0..1) of its epoch that is done after so many of its steps."""
        return self.begin + (1 - self.begin) * steps / max(1, self.planned)


class Schedule:
    """All steps of a run, over as many epochs as it takes. Plans are made when first asked for.

    ``done``: what the run did before with other settings, oldest first.
    """

    def __init__(
        self,
        sizes: Sizes,
        settings: PlanSettings,
        done: Sequence[Segment] = (),
        planner: Planner = plan_in_memory,
    ) -> None:
        self.settings = settings
        self.done = tuple(done)
        self._sizes = sizes
        self._planner = planner
        self._legs: list[_Leg] = []
        self._plans: dict[int, EpochPlan] = {}  # of the legs used last
        self._digests: dict[int, str] = {}

    def history(self, step: int) -> tuple[Segment, ...]:
        """What was done after ``step`` steps of the run, for whoever goes on from there."""
        kept, left = [], step
        for segment in (*self.done, Segment(step, self.settings)):
            steps = min(segment.steps, left)
            if steps:
                kept.append(Segment(steps, segment.settings))
            left -= steps
        return tuple(kept)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step within its plan) of a step counted from 0 over the whole run."""
        leg = self._leg(step)
        return leg.epoch, step - leg.first

    def epoch_at(self, step: int) -> float:
        """Epochs completed after ``step`` optimizer steps, as a fraction."""
        if step == 0:
            return 0.0
        leg = self._leg(step - 1)
        return leg.epoch + leg.part_done(step - leg.first)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch is complete after ``step`` optimizer steps."""
        if step == 0:
            return False
        leg = self._leg(step - 1)
        return step - leg.first == leg.planned

    def about_epochs(self, step: int) -> float:
        """``epoch_at``, estimated from the epochs so far once many have been planned for it."""
        most = min(EXACT_EPOCHS, EXACT_SAMPLES // len(self._sizes))
        while not self._legs or (step > self._legs[-1].first + self._legs[-1].steps and len(self._legs) < most):
            self._leg_number(len(self._legs))
        last = self._legs[-1]
        known = last.first + last.steps
        if step <= known:
            return self.epoch_at(step)
        return self.epoch_at(known) + (step - known) / last.planned * (1 - last.begin)

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps in that many epochs from the run's start; a fraction counts part of the last, rounded up."""
        number, steps = 0, 0
        while True:
            leg = self._leg_number(number)
            end = leg.epoch + leg.part_done(leg.steps)
            if end >= epochs or leg.epoch >= epochs:
                break
            number, steps = number + 1, leg.first + leg.steps
        share = (epochs - leg.epoch - leg.begin) / (1 - leg.begin)
        part = max(0.0, share) * leg.planned
        return steps + int(np.ceil(part - 1e-9 * (1 + part)))  # 1.1 - 1 is more than 0.1

    def packs(self, step: int, share: int, shares: int, ranks: int | None = None) -> tuple[int, list[np.ndarray]]:
        """(epoch, packs) of one of ``shares`` equal parts of a step: part ``micro * ranks + rank`` belongs to a rank.

        ``ranks`` None: as many as parts. Each pack is an array of entries. Raises ValueError if the packs of a step
        cannot be dealt to so many parts.
        """
        ranks = ranks or shares
        epoch, local = self.locate(step)
        plan = self.plan_at(step)
        chosen = parts_of_step(plan.steps[local], ranks, shares // ranks)[share // ranks, share % ranks]
        return epoch, [np.asarray(plan.pack(int(number))) for number in chosen if number >= 0]

    def idle_share(self, step: int, ranks: int, accumulation: int, each_micro_batch: bool = False) -> float:
        """Share (0..1) of the ranks' time that a step spends waiting, by the plan's costs; see ``cost.idle_share``."""
        plan = self.plan_at(step)
        local = self.locate(step)[1]
        return idle_share(plan.step_costs(slice(local, local + 1)), ranks, accumulation, each_micro_batch)

    def plan_at(self, step: int) -> EpochPlan:
        """The plan that a step belongs to."""
        return self._plan_of(self._number_of_leg(step))

    def digest(self, step: int) -> str:
        """Hash of the plan that a step belongs to, to know it again."""
        number = self._number_of_leg(step)
        if number not in self._digests:
            plan = self._plan_of(number)
            arrays = (plan.entries, plan.starts, plan.steps)
            self._digests[number] = "-".join(f"{zlib.crc32(np.ascontiguousarray(one).data):08x}" for one in arrays)
        return self._digests[number]

    def describe(self) -> str:
        """What a step is made of, with the fill of the budgets in the plan that comes first, for the log."""
        step, settings = sum(segment.steps for segment in self.done), self.settings
        plan, (epoch, _) = self.plan_at(step), self.locate(step)
        packs = max(1, len(plan.starts) - 1)
        if not settings.packed:
            return f"{settings.packs_per_step} x {settings.batch_size} samples"
        tokens, tiles = total_sizes(self._sizes, np.asarray(plan.entries), epoch)
        each = f"{len(plan.entries) / packs:.1f} samples in a pack"
        fill = [
            100 * have / packs / most for have, most in ((tokens, settings.max_tokens), (tiles, settings.max_tiles))
        ]
        return (
            f"{settings.packs_per_step} pack{'s' * (settings.packs_per_step > 1)} ({each}, {fill[0]:.1f} % of its "
            f"tokens and {fill[1]:.1f} % of its tiles filled)"
        )

    def _leg(self, step: int) -> _Leg:
        return self._legs[self._number_of_leg(step)]

    def _number_of_leg(self, step: int) -> int:
        number = max(0, bisect_right(self._legs, step, key=lambda leg: leg.first) - 1)
        while step >= (leg := self._leg_number(number)).first + leg.steps:
            number += 1
        return number

    def _leg_number(self, number: int) -> _Leg:
        while len(self._legs) <= number:
            self._legs.append(self._next_leg())
        return self._legs[number]

    def _next_leg(self) -> _Leg:
        number, before = len(self._legs), self._legs[-1] if self._legs else None
        first = before.first + before.steps if before else 0
        settings, end = self._settings_at(first)
        epoch, begin, rest = before.epoch + 1 if before else 0, 0.0, None
        if before is not None and before.steps < before.planned:
            epoch, begin = before.epoch, before.part_done(before.steps)
            rest = self._entries_left(number - 1)
        leg = _Leg(first, 0, 0, epoch, begin, settings, rest)
        planned = len(self._make(leg, number).steps)
        return replace(leg, steps=min(planned, end - first), planned=planned)

    def _plan_of(self, number: int) -> EpochPlan:
        plan = self._plans.get(number)
        return self._make(self._legs[number], number) if plan is None else plan

    def _make(self, leg: _Leg, number: int) -> EpochPlan:
        """The plan of a leg; the last few are kept. (Each that is on disk keeps files open.)"""
        if leg.rest is None:
            plan = self._planner(self._sizes, leg.settings, leg.epoch, "")
        else:
            name = f"rest {len(leg.rest)} {zlib.crc32(leg.rest.tobytes())}"
            part = self._planner(SizesOfSome(self._sizes, leg.rest), leg.settings, leg.epoch, name)
            plan = EpochPlan(leg.rest[part.entries], part.starts, part.steps, part.costs)
        self._plans[number] = plan
        while len(self._plans) > _KEPT_PLANS:
            self._plans.pop(next(iter(self._plans)))
        return plan

    def _entries_left(self, number: int) -> np.ndarray:
        """What a leg has left of its epoch, sorted."""
        leg, plan = self._legs[number], self._plan_of(number)
        packs = plan.steps[leg.steps :].ravel()
        packs = packs[packs >= 0]
        counts = plan.starts[packs + 1] - plan.starts[packs]
        places = np.repeat(plan.starts[packs] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return np.sort(plan.entries[places])

    def _settings_at(self, step: int) -> tuple[PlanSettings, int]:
        """Settings of a step, and the first step that has others."""
        end = 0
        for segment in self.done:
            end += segment.steps
            if step < end:
                return segment.settings, end
        return self.settings, 2**62


def total_sizes(sizes: Sizes, entries: np.ndarray, epoch: int, piece: int = 2**20) -> tuple[int, int]:
    """Tokens and tiles of some entries together."""
    pieces = [sizes.take(entries[start : start + piece], epoch) for start in range(0, len(entries), piece)]
    return sum(int(tokens.sum()) for tokens, _ in pieces), sum(int(tiles.sum()) for _, tiles in pieces)
