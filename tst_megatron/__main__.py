"""``python -m tst_megatron``: the same as the ``tst-megatron`` command."""

from tst_megatron.cli.app import main

if __name__ == "__main__":
    main()
