"""Nothing in a checkpoint runs: each trick by which a pickle could is damage with a name."""

import argparse
import copyreg
import io
import os
import pickle
import random
import shutil
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import numpy
import pytest
import torch
from test_checkpoints import saved  # noqa: F401
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from tst_megatron.checkpoint.content.facts import read_facts, read_object
from tst_megatron.checkpoint.whole import problems
from tst_megatron.cli.app import main
from tst_megatron.system.pickles.inert_pickle import Placeholder, _Inert
from tst_megatron.system.pickles.metadata_file import read_description
from tst_megatron.system.pickles.restricted_unpickler import Refused, enum_of
from tst_megatron.system.pickles.torch_pickles import check_extra_state, load_archive


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call


def touch(file):
    return Calls(os.system, f"touch {file}")


def by_hand(module, name, arguments=b")", call=b"R"):
    """A pickle of protocol 0 that names something and calls it."""
    return f"c{module}\n{name}\n".encode() + arguments + call + b"."


SIZE = b"ctorch\nSize\n"
TEXT = b"(X\x04\x00\x00\x00true"
INDEX = b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\n"

TRICKS = {
    "a command": b"cposix\nsystem\n" + TEXT + b"tR.",
    "a command, newer": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "a command as a class": b"(X\x04\x00\x00\x00trueiposix\nsystem\n.",
    "a listed class in that way": b"(itorch.distributed.checkpoint.metadata\nMetadata\n.",
    "an object of what is listed": b"(" + SIZE + b"o.",
    "a command for a new object": b"\x80\x04cposix\nsystem\n)}\x92.",
    "keywords for a new object": b"\x80\x04" + INDEX + b")}\x92.",
    "arguments for a new object": b"\x80\x02" + INDEX + TEXT + b"t\x81.",
    "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x0dSize.__init__\x93.",
    "the way to all names": b"cbuiltins\ngetattr\n.",
    "the way to all modules": b"cbuiltins\n__import__\n.",
    "something beside a listed name": b"ctorch.serialization\nload\n.",
    "a module that a listed one has": b"ctorch.serialization\nos\n.",
    "a name that is no text": b"\x80\x04]\x8c\x06system\x93.",
    "a registered name": b"\x80\x02\x82\x01.",
    "a number as a function": b"K\x01)R.",
    "a call without a tuple": SIZE + b"]R.",
    "a change of a class": INDEX + b"N}X\x03\x00\x00\x00fqnK\x01s\x86b.",
    "a change of a function": SIZE + b"}X\x01\x00\x00\x00aK\x01sb.",
    "a change of a type": b"ctorch\nfloat32\n}X\x01\x00\x00\x00aK\x01sb.",
    "attributes that are no text": b"\x80\x02" + INDEX + b")\x81}K\x01K\x01sb.",
    "slots": b"\x80\x02" + INDEX + b")\x81N}X\x03\x00\x00\x00fqnK\x01s\x86b.",
    "another's object": b"Pother\n.",
    "another's object, newer": b"\x80\x02K\x01Q.",
    "memory": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "a buffer": b"\x80\x05\x97.",
    "a layout": b"ctorch.serialization\n_get_layout\n(X\x0c\x00\x00\x00torch._mkldntR.",
    "more after it": pickle.dumps({}) + b"cposix\nsystem\n.",
}


OF_PICKLE = ("another's", "a name that is no text")
"""Tricks that Python's own unpickler refuses."""


@pytest.fixture
def checkpoint(saved, tmp_path):  # noqa: F811
    folder = tmp_path / "run" / "checkpoints" / "iter_0000020"
    shutil.copytree(saved / folder.name, folder)
    return folder


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_in_a_description_are_damage(checkpoint, name, monkeypatch):
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("ran"))
    (checkpoint / ".metadata").write_bytes(TRICKS[name])
    monkeypatch.setitem(copyreg._inverted_registry, 1, ("posix", "system"))
    # What was once looked up there is not looked up again.
    monkeypatch.setitem(copyreg._extension_cache, 1, Metadata)
    for deep in (False, True):
        (problem,) = problems(checkpoint, deep=deep)
        # Refused for what it asks for, and not because nothing came of it.
        reason = "Refused" if not name.startswith(OF_PICKLE) else "UnpicklingError"
        assert problem.startswith(f".metadata cannot be read ({reason}: "), problem
    # No class of this process was changed either.
    assert MetadataIndex("x").fqn == "x" and not hasattr(MetadataIndex, "fqn")


def test_a_place_in_the_memo_far_behind_its_end_takes_no_memory(checkpoint):
    """One flipped bit makes such an instruction of the commonest one; in C it fills 64 GB."""
    (checkpoint / ".metadata").write_bytes(b"\x80\x04Nr\xff\xff\xff\xff.")
    (problem,) = problems(checkpoint)
    assert problem.startswith(".metadata cannot be read (")


@pytest.mark.parametrize("quick", [(), ("--quick",)])
def test_verify_runs_no_command_and_names_it(checkpoint, tmp_path, monkeypatch, capsys, quick):
    content = (checkpoint / ".metadata").read_bytes()
    command = pickle.dumps(touch(tmp_path / "touched"), protocol=0).removesuffix(b".") + b"0"
    (checkpoint / ".metadata").write_bytes(command + content)
    run = str(checkpoint.parents[1])
    monkeypatch.setattr(sys, "argv", ["tst-megatron", "checkpoint", "verify", *quick, run])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = click.unstyle(capsys.readouterr().out)
    assert "damaged: .metadata cannot be read (Refused: it names posix.system, which no" in said
    assert not (tmp_path / "touched").exists()


def edit(checkpoint, change):
    description = pickle.loads((checkpoint / ".metadata").read_bytes())
    change(description)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(description))


def move(name):
    def change(description):
        for place in description.storage_data.values():
            place.relative_path = name

    return change


def chunk_of(description):
    return description.state_dict_metadata["weight"].chunks[0]


WRONG = {
    "a file of another folder": (move("../other"), "is said to be in '../other'"),
    "a file by its whole path": (move("/etc/passwd"), "is said to be in '/etc/passwd'"),
    "a folder": (move(".."), "is said to be in '..'"),
    "no name": (move(""), "is said to be in ''"),
    "a number": (move(5), "is said to be in 5"),
    "an item that is not stored": (
        lambda d: d.state_dict_metadata.update(more=d.state_dict_metadata["weight"]),
        "more is not stored",
    ),
    "an item that is not described": (
        lambda d: d.state_dict_metadata.pop("bias"),
        "bias is stored and not described",
    ),
    "a part at another place": (
        lambda d: setattr(chunk_of(d), "offsets", torch.Size([1])),
        "weight has a part outside its shape",
    ),
    "a part that is lost": (
        lambda d: d.state_dict_metadata["weight"].chunks.clear(),
        "weight has other parts than those that are stored",
    ),
    "a part of more axes": (
        lambda d: setattr(chunk_of(d), "sizes", torch.Size([1, 5000])),
        "",
    ),
    "no place": (
        lambda d: [vars(p).pop("offset") for p in d.storage_data.values()],
        "offset",
    ),
    "a packed item": (
        lambda d: [setattr(p, "transform_descriptors", ["zstd"]) for p in d.storage_data.values()],
        "is packed in a way",
    ),
    "a list": (lambda d: vars(d).update(storage_data=[]), "it is no description"),
}


@pytest.mark.parametrize("name", WRONG)
def test_description_that_does_not_agree_with_itself_is_damage(checkpoint, name):
    change, words = WRONG[name]
    edit(checkpoint, change)
    for deep in (False, True):
        (problem,) = problems(checkpoint, deep=deep)
        assert problem.startswith(".metadata cannot be read (") and words in problem


def test_no_flipped_bit_of_a_description_is_an_error_of_its_own(checkpoint):
    draw, content = random.Random(5), (checkpoint / ".metadata").read_bytes()
    for _ in range(300):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (checkpoint / ".metadata").write_bytes(flipped)
        assert all("\n" not in problem for problem in problems(checkpoint))


# --- archives ------------------------------------------------------------------------------------


def archive(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    stream.seek(0)
    return stream


def test_verify_names_a_command_in_an_object_and_runs_nothing(tmp_path):
    data = archive([touch(tmp_path / "touched")]).getvalue()
    (tmp_path / "shard").write_bytes(data)
    place = SimpleNamespace(relative_path="shard", offset=0, length=len(data))
    with pytest.raises(ValueError, match="names posix.system, which no checkpoint holds"):
        read_object(tmp_path, "rng_state/shard_0_1", place)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("in_list", [False, True])
def test_verify_names_a_command_in_the_state_of_a_layer(tmp_path, in_list):
    """Transformer Engine unpickles the bytes of these tensors."""
    command, harmless = (
        torch.frombuffer(bytearray(pickle.dumps(content)), dtype=torch.uint8)
        for content in (touch(tmp_path / "touched"), {"scale": torch.ones(2)})
    )
    name = "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_1"
    for state, is_wrong in ((command, True), (harmless, False), (torch.empty(0), False)):
        data = archive([state] if in_list else state).getvalue()
        (tmp_path / "shard").write_bytes(data)
        place = SimpleNamespace(relative_path="shard", offset=0, length=len(data))
        if is_wrong:
            with pytest.raises(ValueError, match=r"be read \(Refused: it names posix\.system"):
                read_object(tmp_path, name, place)
        else:
            read_object(tmp_path, name, place)
    assert not (tmp_path / "touched").exists()


def test_state_of_a_layer_on_a_gpu_is_looked_at_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    data = archive(torch.zeros(0, dtype=torch.uint8)).getvalue()
    (tmp_path / "shard").write_bytes(data)
    place = SimpleNamespace(relative_path="shard", offset=0, length=len(data))
    read_object(tmp_path, "linear_qkv._extra_state/shard_0_1", place)


def test_what_checkpoints_hold_is_read_as_torch_reads_it():
    numpy.random.seed(3)
    _, keys, *rest = numpy.random.get_state()
    content = {
        "args": argparse.Namespace(lr=1e-3, dtype=torch.bfloat16, names=["a"], path=Path("/x")),
        "tensors": [torch.arange(6.0).view(2, 3).t(), torch.ones(2, dtype=torch.bfloat16)],
        "numpy": (keys, *rest, numpy.float64(0.5), numpy.int32(-7), numpy.bool_(True)),
        "bytes": [b"", b"\x00\xff", io.BytesIO(b"state")],
        "sets": [{1, 2}, frozenset({3})],
        "none": [None, True, -(1 << 70), OrderedDict(a=1)],
        "device": torch.device("cpu"),
    }
    found = load_archive(archive(content))
    assert found["args"] == content["args"] and found["sets"] == content["sets"]
    for ours, theirs in zip(found["tensors"], content["tensors"], strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
    assert numpy.array_equal(found["numpy"][0], keys) and found["numpy"][0].dtype == keys.dtype
    assert found["numpy"][1:] == content["numpy"][1:]
    assert found["bytes"][:2] == content["bytes"][:2]
    assert found["bytes"][2].getvalue() == b"state"
    assert found["none"] == content["none"] and found["device"] == content["device"]


class Members(torch.utils.data.Dataset):
    pass


EMPTY_ARRAY = numpy._core.multiarray._reconstruct, numpy.ndarray, (0,), b"b"
SHORT = numpy.dtype("int16")

UNLISTED = {
    "a command": Calls(os.system, "true"),
    "a function of ours": Calls(eval, "1"),
    "objects in an array": numpy.array([{}], dtype=object),
    "a type of pointers": Calls(numpy.dtype, "O8", False, True),
    "fields in an array": numpy.zeros(2, dtype=[("a", "i4")]),
    "text in an array": numpy.array(["text"]),
    "numbers in another order of bytes": numpy.array([1], dtype=">i4"),
    "fewer bytes than an array has": Calls(*EMPTY_ARRAY, state=(1, (3,), SHORT, False, b"1234")),
    "an array of negative sizes": Calls(*EMPTY_ARRAY, state=(1, (-1, -2), SHORT, False, b"1234")),
    "an array's bytes as a list": Calls(*EMPTY_ARRAY, state=(1, (2,), SHORT, False, [1, 2, 3, 4])),
    "a class": Members,
    "an object": Members(),
    "a codec": Calls(__import__("_codecs").encode, "text", "zip"),
    "memory": Calls(bytes, 1 << 50),
    "a module": torch.nn.Linear(1, 1),
    "hooks": Calls(
        torch._utils._rebuild_tensor_v2, torch.zeros(1).storage(), 0, (1,), (1,), False, {"a": 1}
    ),
}


@pytest.mark.parametrize("name", UNLISTED)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_what_no_checkpoint_holds_is_refused_in_an_archive(name, monkeypatch):
    stream = archive([UNLISTED[name]])
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("ran"))
    with pytest.raises((Refused, TypeError)):
        load_archive(stream)


def test_a_tensor_outside_what_is_stored_of_it_is_refused():
    storage = torch.zeros(4).untyped_storage()
    rebuild = torch._utils._rebuild_tensor_v2
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    stream = archive(Calls(rebuild, typed, 0, (1 << 20,), (1,), False, OrderedDict()))
    with pytest.raises(RuntimeError, match="not resizable"):
        load_archive(stream)


def test_programs_and_plain_pickles_are_no_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("ran"))
    stream = archive([1])
    with zipfile.ZipFile(stream, "a") as file:
        file.writestr("archive/constants.pkl", b"")
    stream.seek(0)
    with pytest.raises(Refused, match="a program of TorchScript"):
        load_archive(stream)
    old = io.BytesIO()
    torch.save([1], old, _use_new_zipfile_serialization=False)
    for content in (old.getvalue(), pickle.dumps(touch(tmp_path / "touched"))):
        with pytest.raises(Refused, match=r"no archive of torch\.save"):
            load_archive(io.BytesIO(content))
    assert not (tmp_path / "touched").exists()


def test_members_of_listed_enumerations_are_read_by_their_value():
    import signal

    stream = archive([signal.SIGTERM])
    names = {("signal", "Signals"): enum_of(signal.Signals)}
    assert load_archive(stream, names) == [signal.SIGTERM]
    stream.seek(0)
    with pytest.raises(Refused, match=r"signal\.Signals"):
        load_archive(stream)


def test_state_of_a_layer_is_looked_at_before_it_is_unpickled_by_others():
    check_extra_state(b"")
    state = {"scale": torch.ones(3), "extra_fp8_variables": {"num_gemms": 1}, "recipe": None}
    check_extra_state(pickle.dumps(state))
    recipe = b"\x80\x04\x8c\x22transformer_engine.common.recipe\x8c\x0eDelayedScaling\x93)\x81}b."
    check_extra_state(recipe.replace(b"\x22trans", b"\x20trans"))
    with pytest.raises(Refused, match=r"it names posix\.system"):
        check_extra_state(pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(Refused, match="is no pickle"):
        check_extra_state(b"\xff\xff")


def test_random_state_of_a_generator_is_read_as_torch_reads_it():
    """Runs with CUDA graphs keep their random state so."""
    generator = torch.Generator()
    generator.manual_seed(7)
    torch.rand(3, generator=generator)
    read = load_archive(archive({"default": generator}))["default"]
    assert torch.equal(read.get_state(), generator.get_state())
    assert read.initial_seed() == 7


@pytest.mark.parametrize("name", ["dataclass", "NamedTuple", "os", "__builtins__"])
def test_what_a_module_of_recipes_has_imported_is_no_recipe(name):
    with pytest.raises(Refused, match=f"names transformer_engine.common.recipe.{name}, which no"):
        check_extra_state(by_hand("transformer_engine.common.recipe", name))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("megatron.core.extensions.transformer_engine", "TEDelayedScaling"),
        ("transformer_engine.common.recipe", "DelayedScaling"),
        ("builtins", "tuple"),
    ],
)
def test_recipes_that_layers_keep_are_listed(module, name):
    check_extra_state(by_hand(module, name))


def test_description_of_an_older_megatron_is_read(checkpoint, monkeypatch):
    file = checkpoint / ".metadata"
    written = pickle.loads(file.read_bytes())
    module = ModuleType("megatron.core.dist_checkpointing.strategies.torch")
    old = type("MCoreMetadata", (Metadata,), {"__module__": module.__name__})
    module.MCoreMetadata = old
    monkeypatch.setitem(sys.modules, module.__name__, module)
    written.__class__ = old
    file.write_bytes(pickle.dumps(written))
    assert read_description(checkpoint).storage_data.keys() == written.storage_data.keys()


def test_inert_reading_changes_no_class_of_this_process():
    tell = b"(N}X\x03\x00\x00\x00tstX\x01\x00\x00\x00xstb."
    _Inert(io.BytesIO(b"cargparse\nNamespace\n" + tell)).load()
    with pytest.raises(TypeError):
        _Inert(io.BytesIO(b"ctorch\ndevice\n" + tell)).load()
    assert not hasattr(argparse.Namespace, "tst") and not hasattr(Placeholder, "tst")


def test_common_state_in_a_file_of_its_own_is_read(tmp_path):
    """As Megatron kept it before it was an item."""
    with pytest.raises(ValueError, match="names no common_state"):
        read_facts(tmp_path, {})
    torch.save({"iteration": 7, "args": argparse.Namespace(num_layers=2)}, tmp_path / "common.pt")
    facts = read_facts(tmp_path, {})
    assert facts.state["iteration"] == 7 and facts.argument("num_layers") == 2
    (tmp_path / "common.pt").write_bytes((tmp_path / "common.pt").read_bytes()[:-9])
    with pytest.raises(ValueError, match="common.pt is damaged"):
        read_facts(tmp_path, {})
