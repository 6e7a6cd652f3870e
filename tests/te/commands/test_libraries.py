"""The locked packages have what Transformer Engine's libraries ask for, when we import them."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import te_host

te_host.skip_without_transformer_engine()

PACKAGES = Path(sysconfig.get_path("purelib"))
FOLDER = PACKAGES / "transformer_engine" / "wheel_lib"
LIBRARIES = [FOLDER / "libtransformer_engine.so", *FOLDER.glob("transformer_engine_torch*.so")]
"""Those that an import loads. ``libnccl_ep.so`` is for a dispatcher that needs a newer NCCL."""
OF_THE_SYSTEM = re.compile(r".*@@?(GLIBC|GLIBCXX|CXXABI|GCC)_.*|_?Py.*|__cxa_.*")
"""Symbols of libc, libstdc++ and the interpreter."""


def symbols(library: Path, kind: str) -> set[str]:
    done = subprocess.run(
        ["nm", "-D", f"--{kind}-only", str(library)], capture_output=True, text=True, check=False
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    # Weak ones may be missing.
    return {row[-1] for row in rows if kind == "defined" or row[-2] == "U"}


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm, which is in binutils")
def test_every_symbol_is_in_a_locked_package():
    """Symbols are looked for when they are first called, so an import alone proves nothing."""
    folders = (PACKAGES / "nvidia", PACKAGES / "torch" / "lib", FOLDER)
    defined = set()
    for folder in folders:
        for library in folder.rglob("*.so*"):
            defined |= {name.partition("@")[0] for name in symbols(library, "defined")}
    assert len(LIBRARIES) == 2 and "cublasLtMatmul" in defined
    for library in LIBRARIES:
        needed = {
            name for name in symbols(library, "undefined") if not OF_THE_SYSTEM.fullmatch(name)
        }
        assert needed
        assert {name for name in needed if name.partition("@")[0] not in defined} == set()


IMPORTS = {
    "training": "import tst_megatron.megatron.loop",
    "the doctor": "from tst_megatron.nodes.doctor.probe import PROBES; "
    "PROBES['transformer engine']()",
}


@pytest.mark.parametrize("program", IMPORTS.values(), ids=IMPORTS)
def test_our_imports_come_in_an_order_that_transformer_engine_bears(program):
    """Imported before torch it does not find NCCL, which torch has loaded."""
    words = [sys.executable, "-c", f"{program}\nimport transformer_engine.pytorch"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
