"""Hold the layout of the code: who may import whom, and how large files and functions may get.

    python tools/check_house.py            every offender with the rule that it breaks
    python tools/check_house.py --table    the same in numbers

`make lint` runs it. An import counts wherever it stands: in a function, and under TYPE_CHECKING.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tst_megatron"
LAYERS = (
    {"system", "schedule"},
    {"megatron", "data"},
    {"recipe"},
    {"model", "checkpoint", "nodes"},
    {"hf", "plan"},
    {"training"},
    {"bench", "compare", "sweep"},
    {"audit"},
    {"cli"},
)
"""From the bottom: a room imports from itself and from layers below its own."""
ROOT_FILES = {"__init__.py", "__main__.py", "schedule.py"}
MOST_CHILDREN = 13
"""Files and folders in one folder, beside its ``__init__.py``."""
MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 60
LAZY = ("cli", "bench")
"""Rooms whose ``__init__.py`` says why their functions import: a command must start at once."""


@dataclass(frozen=True, slots=True)
class Import:
    """One name that a module imports from another module of the package."""

    source: str
    target: str
    line: int
    is_in_function: bool
    has_reason: bool


@dataclass(slots=True)
class House:
    """The package as its source files say it is."""

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    """By module, without the package's name."""
    trees: dict[str, ast.Module] = field(default_factory=dict)
    imports: list[Import] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> House:
        house = cls(root)
        for path in sorted((root / PACKAGE).rglob("*.py")):
            parts = path.relative_to(root / PACKAGE).with_suffix("").parts
            module = ".".join(parts).removesuffix("__init__").removesuffix(".")
            house.files[module] = path
            house.trees[module] = ast.parse(path.read_text(encoding="utf-8"))
        for module, path in house.files.items():
            lines = path.read_text(encoding="utf-8").splitlines()
            house.imports += imports_of(module, house.trees[module], lines, house.files.keys())
        return house

    def place(self, module: str, line: int | None = None) -> str:
        path = self.files[module].relative_to(self.root)
        return f"{path}:{line}" if line else str(path)


def imports_of(
    module: str, tree: ast.Module, lines: Sequence[str], modules: Iterator[str]
) -> Iterator[Import]:
    """What a module imports from the package, wherever it does so."""
    known = set(modules)
    in_function = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        reason = "#" in lines[node.lineno - 1] or lines[node.lineno - 2].lstrip().startswith("#")
        for name in names:
            if name.partition(".")[0] != PACKAGE:
                continue
            target = name.removeprefix(PACKAGE).removeprefix(".")
            if target not in known:
                target = target.rpartition(".")[0]
            yield Import(module, target, node.lineno, id(node) in in_function, reason)


def room(module: str) -> str:
    return module.partition(".")[0]


def upward(house: House) -> Iterator[str]:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for each in house.imports:
        source, target = room(each.source), room(each.target)
        if source not in level or target not in level or source == target:
            continue  # The package's own files: its version, and the start of the command.
        if level[target] >= level[source]:
            yield (
                f"{house.place(each.source, each.line)} imports {each.target}: {source} may import "
                f"{', '.join(sorted(set().union(*LAYERS[: level[source]]))) or 'nothing'}"
            )


def circles(house: House) -> Iterator[str]:
    """Circles of files, and of the folders that hold them, at each depth."""
    for depth in (None, 1, 2, 3):
        graph: dict[str, set[str]] = {}
        for each in house.imports:
            ends = [each.source, each.target]
            if depth is not None:
                ends = [folder_at(name, depth, house) for name in ends]
            if ends[0] != ends[1]:
                graph.setdefault(ends[0], set()).add(ends[1])
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            way = " <- ".join(name or PACKAGE for name in error.args[1])
            yield f"{way}: no circle of {'files' if depth is None else 'folders'}"


def folder_at(module: str, depth: int, house: House) -> str:
    """The folder of a module, cut at a depth; a file that lies higher is its own."""
    parts = module.split(".")
    if len(parts) <= depth and not house.files[module].name.startswith("__init__"):
        return module
    return ".".join(parts[:depth])


def sizes(house: House) -> Iterator[str]:
    top = house.root / PACKAGE
    here = {path.name for path in top.glob("*.py")}
    if here != ROOT_FILES:
        yield f"{PACKAGE}/ has {', '.join(sorted(here))}: {', '.join(sorted(ROOT_FILES))} alone"
    for folder in sorted({path.parent for path in house.files.values()} - {top}):
        if len(children(folder)) > MOST_CHILDREN:
            yield (
                f"{folder.relative_to(house.root)}/ has {len(children(folder))} files and folders: "
                f"at most {MOST_CHILDREN}"
            )
    for module in house.files:
        if (number := num_lines(house, module)) > MOST_LINES:
            yield f"{house.place(module)} has {number} lines: at most {MOST_LINES}"
        for function in long_functions(house.trees[module]):
            yield (
                f"{house.place(module, function.lineno)} {function.name} has {length(function)} "
                f"lines: at most {MOST_LINES_OF_A_FUNCTION}"
            )


def children(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.name not in ("__init__.py", "__pycache__")
        and (path.suffix == ".py" or (path / "__init__.py").exists())
    ]


def num_lines(house: House, module: str) -> int:
    return house.files[module].read_text(encoding="utf-8").count("\n")


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def long_functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and length(node) > MOST_LINES_OF_A_FUNCTION
    ]


def without_reason(house: House) -> Iterator[str]:
    for each in house.imports:
        if each.is_in_function and not each.has_reason and room(each.source) not in LAZY:
            yield (
                f"{house.place(each.source, each.line)} imports {each.target} in a function: at "
                "the top, or with a comment above it that says why not"
            )


def tests_of_one_name(house: House) -> Iterator[str]:
    """Pytest imports a test file by its bare name, and collects one of each name."""
    found: dict[str, list[str]] = {}
    for path in sorted((house.root / "tests").rglob("*.py")):
        if path.name != "conftest.py":
            found.setdefault(path.name, []).append(str(path.relative_to(house.root)))
    for paths in found.values():
        if len(paths) > 1:
            yield f"{', '.join(paths)}: the files of tests have different names"


def table(house: House) -> Iterator[tuple[str, int]]:
    """What the goals are about, in numbers."""
    home = {module: path.parent for module, path in house.files.items()}
    arrows = {(home[each.source], home[each.target]) for each in house.imports}
    folders = {path.parent for path in house.files.values()}
    first = Counter(
        (ast.get_docstring(node) or "-").split()[0].strip("`,.:")
        for tree in house.trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lines = [line for path in house.files.values() for line in path.read_text().splitlines()]
    yield "files", len(house.files)
    yield "rooms (folders)", len(folders)
    yield "arrows between rooms", len({(a, b) for a, b in arrows if a != b})
    yield "imports that run up", len(list(upward(house)))
    yield "circles", len(list(circles(house)))
    yield "children of the root", len(children(house.root / PACKAGE))
    yield (
        "children of the largest other folder",
        max(len(children(folder)) for folder in folders - {house.root / PACKAGE}),
    )
    yield "files over 300 lines", sum(num_lines(house, m) > MOST_LINES for m in house.files)
    yield "functions over 60 lines", sum(len(long_functions(t)) for t in house.trees.values())
    yield "imports in functions", sum(each.is_in_function for each in house.imports)
    yield "lines", len(lines)
    yield "lines that are comments", sum(line.lstrip().startswith("#") for line in lines)
    yield "docstrings", sum(first.values()) - first["-"]
    for word in ("What", "Whether", "How", "Why", "Which", "Where"):
        yield f"docstrings that begin with {word}", first[word]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="numbers instead of offenders")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    options = parser.parse_args()
    house = House.read(options.root)
    if options.table:
        for name, number in table(house):
            print(f"| {name} | {number:,} |")
        return 0
    rules = (upward, circles, sizes, without_reason, tests_of_one_name)
    offenders = [each for rule in rules for each in rule(house)]
    for offender in offenders:
        print(offender)
    print(f"{len(house.files)} files, {len(offenders)} offenders against the rules of the house")
    return 1 if offenders else 0


if __name__ == "__main__":
    sys.exit(main())
