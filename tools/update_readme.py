"""Write the generated part of README.md: the table of the ``tst:`` block.

Run: uv run python tools/update_readme.py (``--check`` only says whether it is up to date)
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from pathlib import Path

from tst_megatron.recipe import TSTConfig

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- tst flags: generated -->\n", "<!-- end of generated -->"


def table() -> str:
    """The keys of the ``tst:`` block with default and meaning, from the dataclass itself."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    meanings = field_docstrings(TSTConfig)
    for field in dataclasses.fields(TSTConfig):
        default = "none" if field.default is None else f"`{field.default}`"
        key = field.name.replace("_", "-")
        rows.append(f"| `tst.{key}` | {default} | {meanings[field.name]} |")
    return "\n".join(rows) + "\n"


def field_docstrings(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def updated(readme: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def main() -> int:
    readme = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        return int(updated(readme) != readme)
    README.write_text(updated(readme), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
