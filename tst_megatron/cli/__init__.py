"""The subcommands of ``tst-megatron`` that have subcommands of their own."""
