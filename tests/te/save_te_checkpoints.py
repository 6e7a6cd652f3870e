"""Save small checkpoints of Transformer Engine's layers from two ranks; run by hf_checkpoints.py.

Usage: save_te_checkpoints.py FOLDER, with RANK in the environment. FOLDER/tokenizer.model must
exist. Layouts and weights are those of ``save_checkpoints.py``.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "megatron")]

import save_checkpoints
import te_host

LOCAL = (
    *("--transformer-impl", "local", "--attention-backend", "unfused"),
    *("--no-persist-layer-norm", "--no-masked-softmax-fusion", "--no-bias-dropout-fusion"),
    *("--no-bias-swiglu-fusion", "--no-rope-fusion"),
)
FP8 = ("--fp8-format", "hybrid", "--fp8-recipe", "delayed")
LAYOUTS = ("ep2", "tp2_tied_mixed", "pp2_bf16", "vpp2", "tp2_qwen3", "pp2_llama_tied")
GROUPED = ("ep2", "pp2_bf16")
"""Layouts whose experts are one grouped product; those of the others are one by one."""


def flags_of(name: str, tokenizer: Path) -> list[str]:
    """Megatron's command line of a layout, of Transformer Engine's layers in bf16."""
    text = f"{save_checkpoints.COMMON} {save_checkpoints.LAYOUTS[name]}"
    words = [word for word in text.format(tokenizer=tokenizer).split() if word not in LOCAL]
    grouped = ["--moe-grouped-gemm"] if name in GROUPED else []
    bf16 = [] if "--bf16" in words else ["--bf16"]
    return [*words, "--transformer-impl", "transformer_engine", *bf16, *FP8, *grouped]


def main() -> None:
    """Save every layout."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    te_host.install()
    from torch import distributed

    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for number, name in enumerate(LAYOUTS, start=1):
        flags = flags_of(name, folder / "tokenizer.model")
        save_checkpoints.save(
            *(folder / name, flags),
            iteration=3,
            seed=10 * number + rank,
            prepare=lambda model: te_host.as_in_fp8(model, "DelayedScaling"),
        )


if __name__ == "__main__":
    main()
