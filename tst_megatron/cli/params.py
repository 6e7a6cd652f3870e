"""``tst-megatron params``: how many parameters a recipe's model has, part by part."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tst_megatron.cli.shared import Overrides, RecipePath
from tst_megatron.recipe.recipe import load_recipe


def params(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Count the parameters of a recipe's model, part by part; takes no data, memory or GPU."""
    from tst_megatron.megatron.cpu import host

    # Counting is CPU work also on a machine that has a GPU; before Megatron is imported.
    host.install(even_with_gpu=True)
    from tst_megatron.recipe.parameters import EMBEDDINGS, OUTPUT_LAYER, TIED, count_parameters

    count = count_parameters(load_recipe(recipe, overrides or []))
    table = Table("part", "parameters", "active")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in count.parts:
        table.add_row(part.name, f"{part.total:,}", f"{part.active:,}")
    table.add_section()
    table.add_row("all", f"{count.total:,}", f"{count.active():,}")
    console = Console()
    console.print(table)
    for text, number in (
        ("total", count.total),
        ("active, both tables", count.active()),
        ("active, output layer but no input embeddings", count.active(EMBEDDINGS)),
        ("active, neither table", count.active(EMBEDDINGS, OUTPUT_LAYER, TIED)),
    ):
        console.print(f"{text}: {number:,}", highlight=False)
    if count.padding:
        warning = f"warning: {count.padding}"
        console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
