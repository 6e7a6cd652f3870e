"""Megatron, and what stands in for CUDA: the only room that knows Megatron's unstable names.

``names`` imports them, in silence. ``loop`` says in our words what Megatron's training does,
``single_step`` takes steps without its loop, ``whole_setup`` builds what its start builds,
``optimizer`` changes parameters in every copy, ``writers`` has the writers of curves. ``repairs/``
has every workaround with the condition for its removal, ``distributed_checkpoint/`` reads and
writes checkpoints, ``cpu/`` is Megatron without a GPU.
``test_upstream_contract.py`` pins each signature that is relied on, so a new Megatron fails there
first, with a readable message.

Importing most of these modules imports Megatron, so on a machine without CUDA ``cpu.host`` is
imported and installed first.
"""
