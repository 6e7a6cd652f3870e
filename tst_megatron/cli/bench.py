"""``tst-megatron bench``: what this project adds, timed against the other ways to do it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import Overrides, RecipePath, outside_runs

if TYPE_CHECKING:
    import torch

    from tst_megatron.bench.comparing import Settings
    from tst_megatron.bench.results import Result

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Time what this project adds against the other ways to do it, in turns in one process.",
)

Rounds = Annotated[int, typer.Option(min=1, help="How often each way is timed.")]
Seed = Annotated[int, typer.Option(help="Of the inputs, and of the order within a round.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the results. Default: benchmarks/results/DEVICE.", callback=outside_runs
    ),
]


@bench_app.command()
def loss(rounds: Rounds = 30, seed: Seed = 1, device: Device = None, output: Output = None) -> None:
    """Loss of bags, alone and with the output layer, against K cross-entropies and other ways."""
    place = _host(device)
    from tst_megatron.bench import linear_loss
    from tst_megatron.bench import loss as loss_alone

    settings = _settings(place, rounds, seed)
    for compare in (loss_alone.compare, linear_loss.compare):
        _show(compare(settings), output)


@bench_app.command()
def embedding(
    rounds: Rounds = 30, seed: Seed = 1, device: Device = None, output: Output = None
) -> None:
    """Embedding of bags, forward and backward into the fp32 gradient, against other ways."""
    place = _host(device)
    from tst_megatron.bench.embedding import compare

    _show(compare(_settings(place, rounds, seed)), output)


@bench_app.command()
def step(
    recipe: RecipePath,
    overrides: Overrides = None,
    bag_size: Annotated[
        list[int] | None, typer.Option(min=2, help="Bag sizes; may be repeated. Default: 4, 8, 16.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also show where the time goes, kernel by kernel.")
    ] = False,
    rounds: Rounds = 30,
    seed: Seed = 1,
    device: Device = None,
    output: Output = None,
) -> None:
    """A training step in superposition against one of the same latent shape at bag size 1.

    The recipe's model, optimizer and profile, as one rank and on random tokens; no data is needed.
    """
    place = _host(device)
    from tst_megatron.bench.comparing import Settings
    from tst_megatron.bench.step import compare
    from tst_megatron.recipe.recipe import load_recipe

    found = compare(
        load_recipe(recipe, overrides or []),
        # It makes its own process group, as a rank of a job does.
        Settings(device=place, rounds=rounds, seed=seed, on_case=_say),
        bag_sizes=bag_size or [4, 8, 16],
        profiles=profile,
    )
    _show(found, output)


@bench_app.command()
def loader(
    prepared: Annotated[
        Path, typer.Argument(help="Folder made by `tst-megatron data prepare`.", show_default=False)
    ],
    workers: Annotated[
        list[int] | None, typer.Option(min=0, help="May be repeated. Default: 0, 1, 2, 4.")
    ] = None,
    bag_size: Annotated[int, typer.Option(min=1, help="Raw tokens of a latent position.")] = 16,
    seq_length: Annotated[int, typer.Option(min=1, help="Latent positions.")] = 4096,
    rounds: Rounds = 10,
    seed: Seed = 1,
    output: Output = None,
) -> None:
    """Raw tokens per second of the training loader, by number of workers."""
    _host("cpu")
    from tst_megatron.bench.loader import compare

    found = compare(
        prepared,
        workers=workers or [0, 1, 2, 4],
        bag_size=bag_size,
        num_latent_positions=seq_length,
        rounds=rounds,
        seed=seed,
    )
    _show(found, output)


def _host(device: str | None) -> torch.device:
    """The device, with the CPU host in place where it is a CPU: before Megatron is imported."""
    import torch

    from tst_megatron.megatron.cpu import host
    from tst_megatron.megatron.cpu.device import find

    place = torch.device(find(device))
    if place.type == "cpu":
        host.install(even_with_gpu=True)
    return place


def _settings(device: torch.device, rounds: int, seed: int) -> Settings:
    """With a process group of this process alone, for which Megatron's own ways ask."""
    from tst_megatron.bench.comparing import Settings
    from tst_megatron.megatron.distributed_checkpoint.model import start_alone

    start_alone("nccl" if device.type == "cuda" else "gloo")
    return Settings(device=device, rounds=rounds, seed=seed, on_case=_say)


def _say(title: str) -> None:
    Console(stderr=True).print(title, style="dim", highlight=False)


def _show(result: Result, output: Path | None) -> None:
    """Write a result, print its table and say where it is."""
    from tst_megatron.bench.results import markdown, slug, write

    folder = output or Path("benchmarks") / "results" / slug(result.device)
    paths = write(result, folder)
    console = Console()
    console.print(markdown(result.document()), highlight=False, markup=False, soft_wrap=True)
    names = ", ".join(str(path) for path in paths)
    console.print(f"written: {names}", highlight=False, markup=False, soft_wrap=True)
