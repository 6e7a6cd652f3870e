"""Real Megatron under the CPU host, which has to come before any import of Megatron."""

from tst_megatron.host import cpu

cpu.install()
