"""What docs/branching.md says may change is what the code lets change."""

import re
from pathlib import Path

from tst_megatron.recipe.keys.kinds import KINDS, RUN
from tst_megatron.training.branch.changes import MAY_CHANGE
from tst_megatron.training.run.identity import OF_THE_PHASES

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "branching.md").read_text()
TABLE = DOCUMENT.partition("| key | as long as |")[2].partition("\n\n")[0]
KEYS = {
    key
    for row in TABLE.splitlines()
    if row.startswith("| `")
    for key in re.findall(r"`([^`]+)`", row.split("|")[1])
}


def test_table_has_every_key_that_may_change():
    assert {key for key in KEYS if not key.startswith("tst.")} == set(MAY_CHANGE)
    assert {f"tst.{key}" for key in OF_THE_PHASES} <= KEYS


def test_every_key_that_may_change_is_of_the_run():
    """All others may change at any start, and need no place in the table."""
    assert {KINDS[key] for key in MAY_CHANGE} == {RUN}
