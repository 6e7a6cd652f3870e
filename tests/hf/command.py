"""The command line as a user meets it, in this process."""

import sys

import pytest

from tst_megatron.cli.app import main


def run(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Exit status and everything printed, with line breaks as spaces."""
    monkeypatch.setattr(sys, "argv", ["tst-megatron", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    return caught.value.code or 0, " ".join((printed.out + printed.err).split())
