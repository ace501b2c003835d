"""The rules of docs/architecture.md, held by walking the syntax tree of every file of the package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "internvl_chat"
FILES = sorted(PACKAGE.rglob("*.py"))
# Imports go down. Packages of one level are sisters that do not know each other.
LEVELS = {
    "constants": 0,
    "errors": 0,
    "log": 0,
    "page": 0,
    "launch": 1,
    "config": 1,
    "data": 2,
    "model": 2,
    "folder": 3,
    "infer": 4,
    "eval": 5,
    "train": 6,
    "tools": 7,
    "cli": 8,
}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
# Heavy, optional or picky about the machine: imported where they are used, never with the module.
LATE = {"deepspeed", "decord", "av", "fsspec", "aiohttp", "s3fs", "pyarrow", "yaml", "flash_attn", "liger_kernel"}
LATE |= {"openpyxl", "lmms_eval", "gradio", "fastapi", "uvicorn", "openai", "bitsandbytes", "petrel_client", "apex"}
MAY_PRINT = ("cli.py", "tools/", "infer/command.py", "infer/repl.py", "eval/command.py")
ENTRY_POINTS = ("__main__.py", "eval/__main__.py", "train/__main__.py", "train/torchrun.py")
SEEDED = ("default_rng", "Generator", "SeedSequence")
RANDOM_FUNCTIONS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "manual_seed", "seed"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(module: str) -> str | None:
    """``internvl_chat.data.plan.pack`` -> ``data``; None for other packages and for the package itself."""
    words = module.split(".")
    return words[1] if words[0] == "internvl_chat" and len(words) > 1 else None


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also late ones, those for types, and ``import_module("...")``."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: write the whole name of the module"
            module = str(node.module)
            if module == "internvl_chat":
                yield from ((node.lineno, f"internvl_chat.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            yield from ((node.lineno, str(name.value)) for name in node.args if isinstance(name, ast.Constant))


def each_file(test: Callable[[Path], None]) -> Callable[[Path], None]:
    decorated: Callable[[Path], None] = pytest.mark.parametrize("path", FILES, ids=name_of)(test)
    return decorated


@each_file
def test_imports_go_down_and_never_across(path: Path) -> None:
    if name_of(path) in ENTRY_POINTS:
        return  # a file that is run, not imported: it hands over to the command line
    own = name_of(path).split("/")[0].removesuffix(".py")
    level = LEVELS.get(own, 0)
    for line, module in imports_of(path):
        other = part_of(module)
        if other is None or other == own or other == "__version__":
            continue
        assert other in LEVELS, f"{name_of(path)}:{line}: {other} has no place in LEVELS"
        assert LEVELS[other] < level, f"{name_of(path)}:{line}: {own} must not import {module}"


def test_every_part_of_the_package_has_a_level() -> None:
    parts = {name_of(path).split("/")[0].removesuffix(".py") for path in FILES} - {"__init__", "__main__"}
    assert parts <= set(LEVELS)


@each_file
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{name_of(path)} has {lines} lines, more than {MAX_FILE_LINES}: split it"


@each_file
def test_a_function_can_be_seen_at_once(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = int(node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{name_of(path)}:{node.lineno}: {node.name} has {lines} lines"


@each_file
def test_every_module_says_what_it_is(path: Path) -> None:
    if path.name != "__init__.py" or tree_of(path).body:
        assert ast.get_docstring(tree_of(path)), f"{name_of(path)} has no docstring"


@each_file
def test_no_exception_is_swallowed_unseen(path: Path) -> None:
    """No bare ``except``; who catches everything raises, or hands the error on by its name."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            where = f"{name_of(path)}:{node.lineno}"
            assert node.type is not None, f"{where}: bare except"
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
            if caught & {"Exception", "BaseException"}:
                inside = [inner for statement in node.body for inner in ast.walk(statement)]
                raises = any(isinstance(inner, ast.Raise) for inner in inside)
                hands_on = any(isinstance(inner, ast.Name) and inner.id == node.name for inner in inside)
                assert raises or hands_on, f"{where}: catches everything and tells nobody"


@each_file
def test_only_the_command_line_prints(path: Path) -> None:
    if name_of(path).startswith(MAY_PRINT):
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "pprint"):
            raise AssertionError(f"{name_of(path)}:{node.lineno}: use the logger")


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import, those under ``if`` and ``try`` included, those for type checkers not."""
    pending = list(tree.body)
    while pending:
        node = pending.pop(0)
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            pending += node.body + node.orelse
        elif isinstance(node, ast.Try):
            pending += node.body + node.orelse + node.finalbody + [s for handler in node.handlers for s in handler.body]


@each_file
def test_optional_packages_are_imported_late(path: Path) -> None:
    for node in module_level(tree_of(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        heavy = {name.split(".")[0] for name in names} & LATE
        assert not heavy, f"{name_of(path)}:{node.lineno}: import {heavy} where it is used"


@each_file
def test_importing_a_module_does_nothing(path: Path) -> None:
    """No call for its effect at module level: no registration, no environment, no warnings filter."""
    if name_of(path) in ENTRY_POINTS:
        return
    for node in module_level(tree_of(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            raise AssertionError(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)[:80]} runs on import")


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p).startswith("data/")], ids=name_of)
def test_the_data_layer_draws_from_its_own_generators_only(path: Path) -> None:
    """``rng_for(seed, address)`` and generators made from a seed; never the global state of random, numpy or torch."""
    assert "random" not in {module for _, module in imports_of(path)}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            drawn = name.startswith(("np.random.", "numpy.random.")) and node.attr not in SEEDED
            drawn |= name in {f"torch.{function}" for function in RANDOM_FUNCTIONS}
            assert not drawn, f"{name_of(path)}:{node.lineno}: {name} is global state"


def test_the_rules_bite(tmp_path: Path) -> None:
    """A tree that breaks each rule is caught: the walkers above see what they are meant to see."""
    code = "try:\n    import decord\nexcept Exception:\n    pass\nif 1:\n    setup()\n"
    tree = ast.parse(code)
    statements = list(module_level(tree))
    assert any(isinstance(node, ast.Import) for node in statements)
    assert any(isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) for node in statements)
    assert part_of("internvl_chat.data.plan.pack") == "data"
    assert part_of("internvl_chat") is None
    assert part_of("torch.nn") is None


# -- the command line is light --------------------------------------------------------------------------------------


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run_python("-m", "internvl_chat", "--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "train" in done.stdout
    print(f"internvl --help: {min(seconds):.2f} s")
    assert min(seconds) < 1.5


def test_the_parser_of_all_commands_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; import internvl_chat.cli as cli; cli.make_parser(); "
        "print(sorted({'torch', 'transformers', 'numpy', 'PIL', 'deepspeed'} & set(sys.modules)))"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_package_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """As in the folder that holds the clone, which Python would take for a package without files."""
    (tmp_path / "internvl_chat").mkdir()
    code = "import internvl_chat; print(internvl_chat.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
