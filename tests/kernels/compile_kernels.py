"""Compile every kernel for GPUs that are not here, and print as JSON what the PTX has.

A process of its own: kernels that Triton interprets cannot be compiled.
"""

import json
import re
import sys

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
    """The PTX of a kernel for arguments as the launchers give them."""
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
    return compile(source, target=target, options={"num_warps": num_warps}).asm["ptx"]


def facts(ptx):
    """Order and width of what reaches memory."""
    pattern = r"\b(ld\.global\S*|st\.global\S*|bar\.sync|atom\.\S+|red\.global\S*)"
    return [match.group(1) for match in re.finditer(pattern, ptx)]


def all_kernels(architecture):
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        block = multi_hot.BLOCK_BYTES // size
        for num_slots, slots in ((1, 1), (6, 8), (16, 16)):
            for weighted in (False, True):
                bag = {"NUM_SLOTS": num_slots, "IS_WEIGHTED": weighted}
                if not weighted:
                    bag["slot_weights"] = None
                rows = {**bag, "SLOTS": slots, "BLOCK": block, "NUM_COLUMNS": 151936}
                name = f"{dtype} K={num_slots} {'weighted' if weighted else 'uniform'}"
                warps = multi_hot.NUM_WARPS
                yield (
                    f"statistics {name}",
                    compiled(
                        multi_hot._statistics_kernel,
                        architecture,
                        dtype,
                        warps,
                        SPAN=151936,
                        **rows,
                    ),
                )
                yield (
                    f"gradient {name}",
                    compiled(
                        *(multi_hot._gradient_kernel, architecture, dtype, warps),
                        **rows,
                    ),
                )
                if dtype == "fp32":
                    yield (
                        f"loss {name}",
                        compiled(
                            *(multi_hot._loss_kernel, architecture, dtype, 2),
                            NUM_PARTS=8,
                            ROWS=multi_hot.LOSS_ROWS,
                            **bag,
                        ),
                    )
        for num_slots in (1, 6, 16):
            bag = {"NUM_SLOTS": num_slots, "BLOCK": bag_embedding.MAX_BLOCK}
            segment = {**bag, "SEGMENT": bag_embedding.SEGMENT}
            name = f"{dtype} K={num_slots}"
            yield f"mean {name}", compiled(bag_embedding._mean_kernel, architecture, dtype, **bag)
            yield (
                f"segment {name}",
                compiled(bag_embedding._segment_kernel, architecture, dtype, **segment),
            )
            for adds in (False, True):
                yield (
                    f"row {name} adds={adds}",
                    compiled(bag_embedding._row_kernel, architecture, dtype, ADDS=adds, **segment),
                )


found = {name: facts(ptx) for name, ptx in all_kernels(int(sys.argv[1]))}
print(json.dumps(found))
