"""Repair what Megatron's wheel gets wrong: one file per fault, each with its removal condition.

``apply.repair_wheel`` puts the repairs in place. The others are used where they are needed:
``no_cuda`` by the CPU host, ``gpt_config`` by whoever builds a model.
"""
