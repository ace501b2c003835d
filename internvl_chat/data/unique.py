"""JSON and YAML in which no name occurs twice: both libraries would keep the last one and drop the others unseen."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError

# What to do about a name that occurs twice.
Mend = Callable[[Hashable], str]


def parse_json(path: Path, text: str, mend: Mend) -> Any:
    """The content of a JSON file. Raises ConfigError for a name that occurs twice, ValueError for what is no JSON."""
    return json.loads(text, object_pairs_hook=lambda pairs: _unique(path, pairs, mend))


def parse_yaml(path: Path, text: str, mend: Mend) -> Any:
    """The content of a YAML file. Raises ConfigError with line and column for what is no YAML, or a name twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            self.flatten_mapping(node)
            pairs = [(self.construct_object(k, True), self.construct_object(v, True)) for k, v in node.value]
            return _unique(path, pairs, mend)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        how = "indent with spaces, not tabs" if "\\t" in problem else "check indentation, colons and quotes"
        raise ConfigError(f"{where}: not YAML ({problem}); {how}") from error
    except (TypeError, ValueError, RecursionError) as error:  # a list as a name, a date that does not exist
        raise ConfigError(f"{path}: cannot be used ({error})") from error


def _unique(path: Path, pairs: list[tuple[Hashable, Any]], mend: Mend) -> dict[Hashable, Any]:
    seen: dict[Hashable, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ConfigError(f"{path}: {key!r} occurs twice; {mend(key)}")
        seen[key] = value
    return seen
