"""Write ``tst_megatron/recipe/keys/table.json`` from the parser of the installed Megatron.

Run it after changing Megatron's version: ``uv run python tools/update_keys.py``.
"""

from __future__ import annotations

import json

from tst_megatron.megatron.cpu import host
from tst_megatron.recipe.keys.table import TABLE, table_of


def main() -> None:
    """Write the table, an option on each line."""
    if host.is_needed():
        host.install()
    from tst_megatron.megatron import arguments

    lines = (json.dumps(option) for option in table_of(arguments.argument_parser()))
    TABLE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{TABLE} is written")


if __name__ == "__main__":
    main()
