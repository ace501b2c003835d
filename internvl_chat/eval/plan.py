"""What is to be asked of a checkpoint: tasks with their items and every setting, decided before a weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DataError, InternVLError
from internvl_chat.eval.items import digest_of, find_layout, load_items, options_of
from internvl_chat.eval.score.thought import MAX_NEW_TOKENS
from internvl_chat.eval.task import Ask, Item, Task
from internvl_chat.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Wishes:
    """What a user sets; None: as the task has it, or the checkpoint.

    ``options``: NAME -> VALUE, for the tasks that have one of that name. ``generation``: arguments of ``generate``.
    ``shared``: settings of the model that are set by hand, by name.
    """

    root: Path = Path("data")
    max_tiles: int | None = None
    dynamic: bool | None = None
    max_new_tokens: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Job:
    """A task as it is asked now. ``there``: items that the data have; ``limit``: of these only the first.

    ``digests``: id -> hash of the item. ``changed``: settings that are not the defaults, by name.
    """

    task: Task
    ask: Ask
    items: Sequence[Item]
    generation: Mapping[str, Any]
    layout: str
    there: int
    digests: Mapping[str, str]
    limit: int | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of its folder: runs with other settings do not meet."""
        return "+".join([self.task.name, *(f"{name}={_short(value)}" for name, value in self.changed.items())])

    @property
    def odd_count(self) -> str | None:
        """What to say where there are more or fewer items than the public data set has."""
        if self.task.count in (None, self.there):
            return None
        return f"{self.task.name}: {self.there} items, the public data set has {self.task.count}"

    @property
    def whole(self) -> bool:
        """Whether these are all items of the public data set, as far as it is known how many it has."""
        return len(self.items) == self.there >= (self.task.count or 0)

    @property
    def data_hash(self) -> str:
        """sha256 over ids, hashes and golds of all items, in order."""
        text = json.dumps([[item.id, self.digests[item.id], item.gold] for item in self.items], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What the answers depend on beside items and checkpoint, as JSON."""
        return {
            "task": self.task.name,
            "max_tiles": self.ask.max_tiles if self.ask.dynamic else None,
            "dynamic": self.ask.dynamic,
            "options": dict(self.ask.options),
            "generation": dict(self.generation),
            "limit": self.limit,
        }


def _short(value: Any) -> str:
    text = str(value)
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)
    return plain if plain == text and len(plain) <= 40 else hashlib.sha256(text.encode()).hexdigest()[:8]


def plan_job(task: Task, wishes: Wishes, dynamic: bool) -> Job:
    """A task with its items, read and checked. ``dynamic``: whether the checkpoint cuts pictures into tiles.

    Raises DataError, ConfigError.
    """
    mine = {name: value for name, value in wishes.options.items() if name in task.options}
    options = options_of(task, mine)
    tiles = dynamic if wishes.dynamic is None else wishes.dynamic
    root = task.root or wishes.root
    ask = Ask(root, wishes.max_tiles or task.max_tiles, tiles, options)
    found = load_items(task, ask, wishes.limit)
    items, there = found[: wishes.limit], len(found)
    usual = {name: legal[0] for name, legal in task.options.items()}
    changed: dict[str, Any] = {name: value for name, value in options.items() if value != usual[name]}
    if tiles and ask.max_tiles != task.max_tiles:
        changed["max_tiles"] = ask.max_tiles
    if tiles != dynamic:
        changed["dynamic"] = tiles
    generation = generation_of(task, options, wishes)
    usual_generation = generation_of(task, options, Wishes())
    changed |= {name: value for name, value in generation.items() if value != usual_generation.get(name)}
    if generation["max_new_tokens"] < usual_generation.get("min_new_tokens", 0):
        del changed["min_new_tokens"]  # follows from the other
    changed |= wishes.shared
    if wishes.limit is not None:
        changed["limit"] = wishes.limit
    layout = find_layout(task, root).name
    digests = {item.id: digest_of(item) for item in items}
    return Job(task, ask, items, generation, layout, there, digests, wishes.limit, changed)


def _check_needs(task: Task) -> None:
    """Raise ConfigError where files of the task could not be written. While training none are."""
    if lacking := [name for name in task.needs if find_spec(name) is None]:
        raise ConfigError(f"{task.name}: its files need {', '.join(lacking)}; pip install {' '.join(lacking)}")


def generation_of(task: Task, options: Mapping[str, str], wishes: Wishes) -> dict[str, Any]:
    """Arguments of ``generate`` for a task: greedy, unless a temperature is given."""
    most = MAX_NEW_TOKENS if options.get("cot") == "on" else task.max_new_tokens
    given = {name: value for name, value in wishes.generation.items() if value is not None}
    most = wishes.max_new_tokens or most
    least = {} if task.min_new_tokens is None else {"min_new_tokens": min(task.min_new_tokens, most)}
    return {"max_new_tokens": most, **least, **given}


def plan_jobs(tasks: Sequence[Task], wishes: Wishes, dynamic: bool, skip_missing: bool = False) -> list[Job]:
    """The jobs of all tasks. What is wrong with their data or this machine is told at once, for all of them.

    ``skip_missing``: leave out, with a warning, the tasks that cannot be asked. Raises DataError, ConfigError.
    """
    known = {name for task in tasks for name in task.options}
    for name in wishes.options:
        if name not in known:
            raise ConfigError(
                f"option {name!r}: none of the tasks has it (options: {', '.join(sorted(known)) or 'none'})"
            )
    jobs: list[Job] = []
    wrong: list[InternVLError] = []
    for task in tasks:
        try:
            _check_needs(task)
            jobs.append(plan_job(task, wishes, dynamic))
        except (DataError, ConfigError) as error:
            wrong.append(error)
    if wrong and not (skip_missing and jobs):
        hint = "\n--skip_missing asks the other tasks" if jobs else ""
        if len(wrong) == 1 and not hint:
            raise wrong[0]
        raise DataError("\n".join(str(error) for error in wrong) + hint)
    for reason in wrong:
        logger.warning("left out: %s", reason)
    return jobs
