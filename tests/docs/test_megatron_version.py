"""The version of Megatron-Core has one home, ``names.TESTED_MEGATRON``; all else agrees with it."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HOME = ROOT / "tst_megatron" / "megatron" / "names.py"
MENTION = re.compile(
    r"megatron(?:[-_]core)?[\"`*]*(?: |==|: \"| = \"|, version )v?(\d+\.\d+\.\d+\w*)", re.I
)
OF_A_PAST_VERSION = {
    "docs/log.md": "what was found, and in which version",
    "docs/measured.md": "the machine and the versions of a measurement",
    # Checkpoints that this version saved wrong stay wrong, whatever version reads them.
    "docs/operations.md": "checkpoints with a shifted optimizer state",
    "docs/resharding.md": "checkpoints with a shifted optimizer state",
    "tst_megatron/checkpoint/content/optimizer.py": "checkpoints with a shifted optimizer state",
}
"""Files whose versions stay as they are in an upgrade, and why. So do CHANGELOG.md and the results
of benchmarks; tests make up environments of their own."""


def tested():
    """Megatron is not imported for it: that takes seconds."""
    for node in ast.parse(HOME.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "TESTED_MEGATRON":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{HOME} has no TESTED_MEGATRON")


def files():
    for pattern in ("*.md", "*.toml", "Dockerfile", "Makefile"):
        yield from ROOT.glob(pattern)
    for folder in ("docs", "examples", "slurm", "tools", "tst_megatron"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".md", ".py", ".sh", ".yaml", ".sbatch", ".toml"):
                yield path


def mentions():
    """(file, line, version) of every mention of a version of Megatron-Core."""
    for path in sorted(set(files())):
        name = str(path.relative_to(ROOT))
        if name == "CHANGELOG.md":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for version in MENTION.findall(line):
                yield name, number, version


def test_every_mention_of_a_version_is_the_tested_one():
    found = list(mentions())
    assert {"README.md", "pyproject.toml"} <= {name for name, _, _ in found}
    other = [
        f"{name}:{number}: {version}"
        for name, number, version in found
        if version != tested() and name not in OF_A_PAST_VERSION
    ]
    assert other == [], f"not {tested()}: is what each line says still so in that version?"


def test_lock_file_has_the_tested_version():
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    (package,) = [each for each in lock["package"] if each["name"] == "megatron-core"]
    assert package["version"] == tested()


@pytest.mark.parametrize(
    "line",
    [
        '  "megatron-core==1.2.3",',
        "Python 3.12, megatron-core 1.2.3, torch 2.11.0",
        "as far as Megatron-Core 1.2.3 has them",
        "Megatron 1.2.3 refuses `te`",
        "`megatron-core` 1.2.3",
        '"megatron-core": "1.2.3"',
        "megatron_core==1.2.3",
    ],
)
def test_a_mention_is_found_in_every_spelling(line):
    assert MENTION.findall(line) == ["1.2.3"]
