"""Ask questions that import something, each in a process of its own.

A crash or a hang of that process is an answer too.

``ask`` starts the process, ``answer`` is what runs in it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tst_megatron.nodes.doctor.facts import Probe

SECONDS = 180.0
"""After which a process hangs: importing Megatron takes half a minute on a busy machine, and
minutes from a file system that is ill."""

MOST_CHARACTERS = 400
"""Most characters of an error; some list every folder they searched."""

MODULES = {
    "torch": "torch",
    "megatron-core": "megatron.core",
    "transformer-engine": "transformer_engine",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "sentencepiece": "sentencepiece",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "nvidia-modelopt": "modelopt",
    "triton": "triton",
    "tst-megatron": "tst_megatron",
}
"""The module by which each distribution is imported, of those whose copies matter."""

TRAINING = "megatron.training"
APEX = "apex"
WGRAD = "fused_weight_gradient_mlp_cuda"
DEEP_EP = "deep_ep"


# --- in the process that asks ---------------------------------------------------------------------


def ask(name: str, *, seconds: float = SECONDS) -> Probe:
    """Start a process that answers a question, and wait for it.

    Args:
        name: of ``PROBES``.
        seconds: after which it is ended.
    """
    # The same folders in the same order, also where this process was started in another way.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from tst_megatron.nodes.doctor.probe import answer; answer({name!r})"
    )
    # In memory, for the temporary folder may be full, and pipes stay open in what it starts.
    with (
        os.fdopen(os.memfd_create("answers"), "w+b") as answers,
        os.fdopen(os.memfd_create("errors"), "w+b") as errors,
    ):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=answers,
            stderr=errors,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return Probe(problem=f"hung for {seconds:g} s")
        return _read(status, _text(answers), _text(errors))


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


def _read(status: int, output: str, errors: str) -> Probe:
    """The last line is the answer: packages print while they are imported."""
    if status < 0:
        return Probe(problem=f"the process was ended by {signal.Signals(-status).name}")
    try:
        said = json.loads(output.splitlines()[-1])
        return Probe(answers=said["answers"], problem=said["problem"])
    except (IndexError, ValueError, TypeError, KeyError):
        last = _in_one_line(errors.strip().splitlines()[-1] if errors.strip() else "no word")
        return Probe(problem=f"the process ended with status {status}: {last}")


def _in_one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_CHARACTERS else line[:MOST_CHARACTERS] + "..."


# --- in the process that answers ------------------------------------------------------------------


def answer(name: str) -> None:
    """Answer a question on standard output, as one line of JSON, and end this process."""
    said: dict[str, Any] = {"answers": {}, "problem": None}
    try:
        said["answers"] = PROBES[name]()
    except BaseException as error:  # noqa: BLE001 - whatever a broken package does is the answer
        said["problem"] = _in_one_line(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"\n{json.dumps(said)}\n")
    sys.stdout.flush()
    # Some libraries crash while they are taken down, which is no matter here.
    os._exit(0)


def _modules() -> dict[str, Any]:
    """Find where each module would be imported from, importing only the package that holds it."""
    names = (*MODULES.values(), TRAINING, APEX, WGRAD, DEEP_EP)
    return {name: found for name in names if (found := _origin(name)) is not None}


def _origin(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [])
    # A folder without __init__.py has no origin.
    return spec.origin or (places[0] if places else None)


def _helpers() -> dict[str, Any]:
    """Load the extension of Megatron's datasets alone, without Megatron and torch."""
    origin = _origin("megatron.core")
    assert origin is not None, "asked only where it is"
    folder = Path(origin).parent / "datasets"
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    files = [path for suffix in suffixes if (path := folder / f"helpers_cpp{suffix}").exists()]
    if not files:
        others = ", ".join(path.name for path in folder.glob("helpers_cpp*")) or "none"
        raise ImportError(f"{folder}: no helpers_cpp for this Python; there is {others}")
    spec = importlib.util.spec_from_file_location("helpers_cpp", files[0])
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return {"file": str(files[0])}


def _torch() -> dict[str, Any]:
    # It imports torch, which may crash: only the process that answers may do so.
    from tst_megatron.megatron.cpu import device

    return {**device.seen_by_torch(), "nccl_file": _loaded("libnccl.so")}


def _loaded(library: str) -> str | None:
    """The file that a library was loaded from."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(library):
            return path
    return None


def _transformer_engine() -> dict[str, Any]:
    # It needs torch's libraries in the process: NCCL, where that comes from a wheel.
    importlib.import_module("torch")
    importlib.import_module("transformer_engine.pytorch")
    return {}


def _wgrad() -> dict[str, Any]:
    # The same.
    importlib.import_module("torch")
    importlib.import_module(WGRAD)
    return {}


def _deep_ep() -> dict[str, Any]:
    return {"has_hybrid_ep": hasattr(importlib.import_module(DEEP_EP), "HybridEPBuffer")}


def _megatron() -> dict[str, Any]:
    # It imports torch, which may crash: only the process that answers may do so.
    from tst_megatron.megatron.cpu import host

    if host.is_needed():
        host.install()
    importlib.import_module("tst_megatron.megatron.loop")
    return {}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "modules": _modules,
    "helpers": _helpers,
    "torch": _torch,
    "transformer engine": _transformer_engine,
    "wgrad": _wgrad,
    "deep_ep": _deep_ep,
    "megatron": _megatron,
}
"""Functions that answer, by question. ``megatron`` imports all that training imports."""
