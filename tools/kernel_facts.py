"""Compile every kernel for GPUs that are not here, and print as JSON what became of it.

Run: kernel_facts.py 90 (Hopper) or 100 (Blackwell), without TRITON_INTERPRET: kernels that Triton
interprets cannot be compiled. PTX comes from Triton, machine code from the assembler that it
ships.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from tst_megatron.model.kernels import bag_embedding, multi_hot

POINTERS = {
    "targets": "*i64",
    "tokens": "*i64",
    "positions": "*i64",
    "keys": "*i32",
    "starts": "*i32",
    "slot_weights": "*fp32",
    "statistics": "*fp32",
    "parts": "*fp32",
    "losses": "*fp32",
    "log_sum_exps": "*fp32",
    "sums": "*fp32",
}
OF_THE_DATA = ("logits", "gradient", "table", "means", "upstream")
NOT_MULTIPLES_OF_16 = ("first_row", "length", "batch")


def compiled(kernel, architecture, dtype, num_warps=4, **constants):
    """A kernel for arguments as the launchers give them."""
    names = kernel.arg_names
    signature = {}
    for name in names:
        if name in constants:
            signature[name] = "constexpr"
        elif name == "upstream" and kernel is multi_hot._gradient_kernel:
            signature[name] = "*fp32"
        elif name in OF_THE_DATA:
            signature[name] = f"*{dtype}"
        else:
            signature[name] = POINTERS.get(name, "i32")
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind != "constexpr" and name not in NOT_MULTIPLES_OF_16
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    target = GPUTarget("cuda", architecture, 32)
    return compile(source, target=target, options={"num_warps": num_warps})


def facts(kernel, block):
    """What reaches memory, in the order of the PTX, and what the machine code takes and does."""
    pattern = r"\b(ld\.global\S*|st\.global\S*|bar\.sync|atom\.\S+|red\.global\S*)"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = said_by("cuobjdump", "--dump-resource-usage", file.name)
        code = said_by("nvdisasm", "-c", file.name)
    names = ("REG", "STACK", "LOCAL")
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in names)
    return {
        "steps": [match.group(1) for match in re.finditer(pattern, kernel.asm["ptx"])],
        "instructions": Counter(re.findall(r"\b((?:LD|ST)[GL]\S*|MUFU\.EX2|ATOM\S*|RED\S*)", code)),
        "warps": kernel.metadata.num_warps,
        "registers": registers,
        "shared bytes": kernel.metadata.shared,
        "spilled bytes": stack + local,
        "block": block,
    }


def said_by(tool, *arguments):
    """What one of the tools that Triton ships says about machine code."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def all_kernels(architecture):
    """Each kernel with its name, and the columns of a row that one pass of its loop covers."""
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        block = multi_hot.BLOCK_BYTES // size
        for num_slots, slots in ((1, 1), (6, 8), (16, 16)):
            for weighted in (False, True):
                bag = {"NUM_SLOTS": num_slots, "IS_WEIGHTED": weighted}
                if not weighted:
                    bag["slot_weights"] = None
                rows = {**bag, "SLOTS": slots, "BLOCK": block, "NUM_COLUMNS": 151936}
                name = f"{dtype} K={num_slots} {'weighted' if weighted else 'uniform'}"
                of = (architecture, dtype, multi_hot.NUM_WARPS)
                read = compiled(multi_hot._statistics_kernel, *of, SPAN=151936, **rows)
                yield f"statistics {name}", read, block
                yield f"gradient {name}", compiled(multi_hot._gradient_kernel, *of, **rows), block
                if dtype == "fp32":
                    parts = {"NUM_PARTS": 8, "ROWS": multi_hot.LOSS_ROWS, **bag}
                    loss = compiled(multi_hot._loss_kernel, architecture, dtype, 2, **parts)
                    yield f"loss {name}", loss, multi_hot.LOSS_ROWS
        block = bag_embedding.MAX_BLOCK
        for num_slots in (1, 6, 16):
            bag = {"NUM_SLOTS": num_slots, "BLOCK": block}
            segment = {**bag, "SEGMENT": bag_embedding.SEGMENT}
            name, of = f"{dtype} K={num_slots}", (architecture, dtype)
            yield f"mean {name}", compiled(bag_embedding._mean_kernel, *of, **bag), block
            yield f"segment {name}", compiled(bag_embedding._segment_kernel, *of, **segment), block
            for adds in (False, True):
                row = compiled(bag_embedding._row_kernel, *of, ADDS=adds, **segment)
                yield f"row {name} adds={adds}", row, block


if __name__ == "__main__":
    found = {name: facts(*rest) for name, *rest in all_kernels(int(sys.argv[1]))}
    print(json.dumps(found))
