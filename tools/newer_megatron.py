"""What a newer Megatron-Core would touch: of the names that this project takes, which changed?

    python tools/newer_megatron.py                   # the newest version on the package index
    python tools/newer_megatron.py --version 0.20.0  # this one, which may be older too

The sources of both versions are compared, and none is imported. Exit status 1 means that a newer
version is there. tests/megatron/megatron/test_upstream_contract.py tells what of it breaks.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tst_megatron"
RELEASES = "https://github.com/NVIDIA/Megatron-LM/releases"
_TARGET = re.compile(r"megatron(?:\.\w+)+:[\w.]+")


@dataclass(frozen=True, order=True)
class Use:
    """A name of Megatron's that a file of ours takes.

    Attributes:
        name: with the module, as in ``megatron.training.training.train_step``.
        file: ours, relative to the checkout.
        line: the first line there that takes it.
    """

    name: str
    file: str
    line: int


def uses(package: Path = PACKAGE) -> list[Use]:
    """Every name of Megatron's that the files of a package take, once for each file."""
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))
    }
    exported = {
        alias: name
        for path, tree in trees.items()
        if path.name == "names.py"
        for name, alias, _ in _imported(tree)
    }
    found: dict[tuple[str, str], int] = {}
    for path, tree in trees.items():
        file = str(path.relative_to(package.parent))
        for name, line in (
            *_named(tree, exported),
            *((name, at) for name, _, at in _imported(tree)),
        ):
            found[name, file] = min(line, found.get((name, file), line))
    return sorted(Use(name, file, line) for (name, file), line in found.items())


def _imported(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """(name, how it is called here, line) of what is imported from Megatron."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron."):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", alias.asname or alias.name, node.lineno


def _named(tree: ast.AST, exported: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Names behind ``names.``, those that ``wrap`` replaces, and those of stand-ins."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = _chain(node, exported)
            if chain is not None:
                yield chain, node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "wrap":
            owner, name = node.args[:2]
            chain = _chain(owner, exported)
            if chain is not None and isinstance(name, ast.Constant):
                yield f"{chain}.{name.value}", node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if _TARGET.fullmatch(node.value):
                yield node.value.replace(":", "."), node.lineno


def _chain(node: ast.AST, exported: dict[str, str]) -> str | None:
    """The name of Megatron's that ``names.a.b`` means."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if (
        not isinstance(node, ast.Name)
        or node.id != "names"
        or not parts
        or parts[0] not in exported
    ):
        return None
    return ".".join((exported[parts[0]], *parts[1:]))


class Source:
    """The sources of one version of Megatron-Core, in the folder that holds ``megatron/``."""

    def __init__(self, folder: Path):
        """Read nothing yet."""
        self.folder = folder
        self._trees: dict[str, ast.Module | None] = {}

    def text(self, name: str, hops: int = 3) -> str | None:
        """The source of a name without its comments; None where it is not.

        A module that is used as a whole has no text of its own: what matters are its names.
        """
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            tree = self._tree(".".join(parts[:cut]))
            if tree is None:
                continue
            if cut == len(parts):
                return "a module"
            return self._find(tree, parts[cut:], parts[:cut], hops)
        return None

    def _tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            place = self.folder / module.replace(".", "/")
            file = next(
                (
                    path
                    for path in (place.with_suffix(".py"), place / "__init__.py")
                    if path.is_file()
                ),
                None,
            )
            empty = ast.Module([], []) if place.is_dir() else None
            self._trees[module] = ast.parse(file.read_text(encoding="utf-8")) if file else empty
        return self._trees[module]

    def _find(self, tree: ast.AST, parts: list[str], module: list[str], hops: int) -> str | None:
        """The definition of the first part, and in it of the others."""
        for node in ast.walk(tree):
            if parts[0] in _defines(node):
                if isinstance(node, ast.ImportFrom):
                    return self._elsewhere(node, parts, module, hops)
                if len(parts) > 1 and isinstance(node, ast.ClassDef):
                    # A class may have it from its base, which is a name of its own.
                    return self._find(node, parts[1:], module, hops) or ast.unparse(node)
                return ast.unparse(node)
        return None

    def _elsewhere(
        self, node: ast.ImportFrom, parts: list[str], module: list[str], hops: int
    ) -> str | None:
        """Follow an import to another module of Megatron's."""
        alias = next(each for each in node.names if (each.asname or each.name) == parts[0])
        # Of a package, the first dot means itself.
        up = node.level - (self.folder.joinpath(*module) / "__init__.py").is_file()
        package = module[: len(module) - up] if node.level else []
        origin = ".".join((*package, *(node.module or "").split("."))).strip(".")
        name = ".".join((origin, alias.name, *parts[1:]))
        if hops and name.startswith("megatron."):
            return self.text(name, hops - 1)
        return ast.unparse(node)


def _defines(node: ast.AST) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {each.id for each in targets if isinstance(each, ast.Name)}


def touched(old: Source, new: Source, used: list[Use]) -> list[tuple[str, str]]:
    """(what happened, name and places here) of each name that is not the same in both versions."""
    places: dict[str, list[str]] = {}
    for use in used:
        places.setdefault(use.name, []).append(f"{use.file}:{use.line}")
    result = []
    for name, where in places.items():
        before, after = old.text(name), new.text(name)
        if before is not None and before != after:
            what = "gone" if after is None else "changed"
            result.append((what, f"{name} ({', '.join(where)})"))
    return sorted(result, reverse=True)


def _install(requirement: str, folder: str) -> str:
    """Put a version of Megatron-Core into a folder; return which."""
    # `uv run` says where it is.
    words = [os.environ.get("UV", "uv"), "pip", "install", "--quiet", "--no-deps"]
    # There uv does not see this project's own constraints.
    done = subprocess.run(
        [*words, "--python", sys.executable, "--target", folder, requirement],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"newer_megatron.py: {requirement}: {done.stderr.strip()}", file=sys.stderr)
        raise SystemExit(2)
    (found,) = importlib.metadata.distributions(name="megatron-core", path=[folder])
    return found.version


def main() -> int:
    """Compare, print, and tell by the exit status whether there is a newer version."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--version", help="compare with this version instead of the newest")
    wanted = parser.parse_args().version
    here = importlib.metadata.version("megatron-core")
    with tempfile.TemporaryDirectory(prefix="tst-megatron-newer-") as folder:
        there = _install(f"megatron-core=={wanted}" if wanted else "megatron-core", folder)
        installed = Path(str(importlib.metadata.distribution("megatron-core").locate_file("")))
        used = uses()
        changes = touched(Source(installed), Source(Path(folder)), used)
    if there == here:
        print(f"Megatron-Core {here} is the newest")
        return 0
    print(
        f"Megatron-Core {there} against {here}: of {len({use.name for use in used})} names that "
        f"this project takes, {len(changes)} are not the same. What else it brings: {RELEASES}"
    )
    for what, name in changes:
        print(f"  {what:8}{name}")
    return int(Version(there) > Version(here))


if __name__ == "__main__":
    sys.exit(main())
