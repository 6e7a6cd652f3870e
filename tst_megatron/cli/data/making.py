"""Make training text: ``data tokenizer``, ``data prepare``, ``data adopt`` and ``data merge``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import outside_runs
from tst_megatron.system.exit_status import FAILED
from tst_megatron.system.progress import say_warning

if TYPE_CHECKING:
    from tst_megatron.data.manifest import Manifest

HeldOutFraction = Annotated[
    float, typer.Option(help="Share of documents kept for validation, 0-1.")
]
TestFraction = Annotated[
    float, typer.Option(help="Share of documents kept for one test after the last step, 0-1.")
]
EodToken = Annotated[
    str | None,
    typer.Option(help="Special token that ends documents. Default: the tokenizer's EOS."),
]

# Options of `data prepare` alone.
TextFiles = Annotated[
    list[str],
    typer.Argument(help="Files, folders or patterns: .jsonl, .json (also .gz, .zst), .parquet."),
]
Tokenizer = Annotated[
    Path, typer.Option(help="SentencePiece model, or folder of a Hugging Face tokenizer.")
]
Prepared = Annotated[
    Path, typer.Option(help="Folder for .bin, .idx and manifest.json.", callback=outside_runs)
]
SpecialTokensInText = Annotated[
    bool,
    typer.Option(
        "--special-tokens-in-text",
        help="Text that spells a special token becomes its id; else it stays text.",
    ),
]
MaxRejectedFraction = Annotated[
    float,
    typer.Option(help="Share of lines, 0-1, that may hold no document and are left out."),
]
MaxChangedFraction = Annotated[
    float,
    typer.Option(help="Share of documents, 0-1, whose tokens may not give their text again."),
]
Deduplicate = Annotated[
    bool, typer.Option("--deduplicate", help="Leave out exact copies of earlier documents.")
]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="Encode by gigatoken, checked against the tokenizer."),
]
ShardOfFiles = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Prepare part I (from 0) of N of the files alone, to merge later.",
    ),
]
AllowEmptySplits = Annotated[
    bool,
    typer.Option("--allow-empty-splits", help="To merge later: a split may have no document."),
]

data_app = typer.Typer(no_args_is_help=True, help="Make a tokenizer and prepare training text.")


@data_app.command("tokenizer")
def data_tokenizer(
    inputs: Annotated[
        list[str], typer.Argument(help="Texts to learn from, as `data prepare` takes them.")
    ],
    output: Annotated[
        Path, typer.Option(help="Where the SentencePiece model goes.", callback=outside_runs)
    ],
    vocab_size: Annotated[int, typer.Option(help="Pieces, special ones included.")],
    text_key: Annotated[str, typer.Option(help="Key or column of the text.")] = "text",
) -> None:
    """Train a SentencePiece tokenizer."""
    from tst_megatron.data.text.documents import texts
    from tst_megatron.data.tokenizer.train import train_sentencepiece

    train_sentencepiece(texts(inputs, text_key=text_key), output, vocab_size=vocab_size)
    typer.echo(f"{output}: {vocab_size} pieces")


@data_app.command("prepare")
def data_prepare(
    inputs: TextFiles,
    tokenizer: Tokenizer,
    output: Prepared,
    text_key: Annotated[str, typer.Option(help="Key or column of the text.")] = "text",
    held_out_fraction: HeldOutFraction = 0.01,
    test_fraction: TestFraction = 0.0,
    eod_token: EodToken = None,
    special_tokens_in_text: SpecialTokensInText = False,
    max_rejected_fraction: MaxRejectedFraction = 0.0,
    max_changed_fraction: MaxChangedFraction = 0.01,
    deduplicate: Deduplicate = False,
    fast: Fast = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that tokenise; default: one per core.")
    ] = None,
    shard: ShardOfFiles = None,
    allow_empty_splits: AllowEmptySplits = False,
) -> None:
    """Tokenise text once, into the form that a recipe's data: block names."""
    from tst_megatron.data.prepare.prepare import prepare
    from tst_megatron.data.text.inputs import shard_named
    from tst_megatron.hf.export_warnings import tokenizer_warnings

    # Before the work: another tokenizer makes another text.
    _warn(tokenizer_warnings(tokenizer))
    try:
        manifest = prepare(
            inputs,
            tokenizer,
            output,
            eod_token=eod_token,
            special_tokens_in_text=special_tokens_in_text,
            text_key=text_key,
            held_out_fraction=held_out_fraction,
            test_fraction=test_fraction,
            max_rejected_fraction=max_rejected_fraction,
            max_changed_fraction=max_changed_fraction,
            deduplicate=deduplicate,
            fast=fast,
            workers=workers,
            shard=None if shard is None else shard_named(shard),
            allow_empty_splits=allow_empty_splits,
            console=Console(),
        )
    except (RuntimeError, ImportError) as error:
        # A worker that was killed, or a fast encoder that is not there or is wrong.
        typer.echo(str(error), err=True)
        raise typer.Exit(FAILED) from None
    # A folder that is to be merged is judged when it is.
    _say_what_is_there(output, manifest, "is prepared", is_whole=not allow_empty_splits)


@data_app.command("adopt")
def data_adopt(
    pair: Annotated[
        Path,
        typer.Argument(
            metavar="PREFIX", help="Common path of a .bin and .idx that another tool wrote."
        ),
    ],
    tokenizer: Annotated[
        Path, typer.Option(help="Tokenizer that made the tokens, as `data prepare` takes it.")
    ],
    output: Annotated[
        Path,
        typer.Option(help="Folder for links, indexes and manifest.json.", callback=outside_runs),
    ],
    held_out_fraction: HeldOutFraction = 0.01,
    test_fraction: TestFraction = 0.0,
    eod_token: EodToken = None,
    special_tokens_in_text: Annotated[
        bool,
        typer.Option(
            "--special-tokens-in-text",
            help="Text that spelled a special token became its id.",
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode; default: one per core.")
    ] = None,
) -> None:
    """Make a folder for tokens that another tool wrote (Megatron's .bin/.idx), not copying them."""
    from tst_megatron.data.adopt.adopt import adopt
    from tst_megatron.hf.export_warnings import tokenizer_warnings

    _warn(tokenizer_warnings(tokenizer))
    try:
        manifest = adopt(
            pair,
            tokenizer,
            output,
            eod_token=eod_token,
            special_tokens_in_text=special_tokens_in_text,
            held_out_fraction=held_out_fraction,
            test_fraction=test_fraction,
            workers=workers,
            console=Console(),
        )
    except RuntimeError as error:
        # A worker that was killed.
        typer.echo(str(error), err=True)
        raise typer.Exit(FAILED) from None
    _say_what_is_there(output, manifest, "is adopted")


@data_app.command("merge")
def data_merge(
    prepared: Annotated[
        list[Path],
        typer.Argument(help="Folders of `data prepare`, joined in this order.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder for the text of all of them.", callback=outside_runs)
    ],
) -> None:
    """Join prepared shards into the folder that preparing all their text at once makes."""
    from tst_megatron.data.prepare.merge import merge

    manifest = merge(prepared, output, console=Console())
    _say_what_is_there(output, manifest, "is merged")


def _say_what_is_there(
    output: Path, manifest: Manifest, verb: str, *, is_whole: bool = True
) -> None:
    from tst_megatron.data.verify.held_out_size import held_out_warnings

    verb = "is up to date" if manifest.reused else verb
    typer.echo(
        f"{output} {verb}: {manifest.train.tokens:,} tokens to train on, "
        f"{manifest.validation.tokens:,} held out"
        + (f"; {manifest.contents.round_trip}" if manifest.contents else "")
    )
    if is_whole:
        _warn(held_out_warnings(manifest))


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say_warning(Console(), warning)
