"""No module can load a checkpoint in a process that has not put ``read_checked`` in place.

A checkpoint comes from other people, and what torch and Megatron do with it could run a command
out of it. So a module that calls something which loads calls ``read_checked`` when it is imported.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent.parent / "tst_megatron"
LOADS = {
    # Of Megatron, each with all that calls it.
    *("names.training.pretrain", "names.training.setup_model_and_optimizer"),
    *("load_checkpoint", "load_args_from_checkpoint"),
    *("load_common_state_dict", "load_tensors_metadata", "load_sharded_metadata"),
    *("load_plain_tensors", "dist_checkpointing.load", "dist_serialization.load"),
    # Of torch.
    *("FileSystemReader", "state_dict_loader.load", "checkpoint.load", "dcp.load"),
}
"""How what loads is called, from the right: ``a.b`` stands for ``x.a.b(...)`` too."""
HARMLESS = ("weights_only=True", "sys.stdin.buffer")
"""Torch's own reader of weights, which runs nothing; the pipe of a parent that is this project."""
UNPICKLE = {"torch.load", "pickle.load", "pickle.loads", "Unpickler"}


def calls(tree):
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def is_one_of(call, known):
    return any(call == each or call.endswith(f".{each}") for each in known)


def trees():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def loads(tree):
    return any(is_one_of(call, LOADS) for call in calls(tree))


def is_checked_when_imported(tree):
    return any(
        isinstance(node, ast.Expr) and ast.unparse(node.value) == "read_checked()"
        for node in tree.body
    )


def test_every_module_that_loads_is_checked_when_it_is_imported():
    loading = {name: tree for name, tree in trees() if loads(tree)}
    assert {
        "megatron/loop.py",
        "megatron/single_step.py",
        "megatron/setup_without_values.py",
        "megatron/distributed_checkpoint/model.py",
    } <= set(loading)
    assert [name for name, tree in loading.items() if not is_checked_when_imported(tree)] == []


def test_nothing_is_unpickled_but_by_listed_names():
    """``system/pickles`` has the lists of names."""
    found = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in trees()
        if not name.startswith("system/pickles/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and is_one_of(ast.unparse(node.func), UNPICKLE)
        and not any(harmless in ast.unparse(node) for harmless in HARMLESS)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "names.training.pretrain(cfg_container=container)",
        "state = dist_checkpointing.load_common_state_dict(folder)",
        "reader = FileSystemReader(folder)",
        "torch.distributed.checkpoint.load(state)",
    ],
)
def test_a_load_is_seen_in_a_function_too(line):
    tree = ast.parse(f"def load():\n    read_checked()\n    {line}\n")
    assert loads(tree) and not is_checked_when_imported(tree)
    assert is_checked_when_imported(ast.parse(f"read_checked()\n{line}\n"))
