"""Hold all that knows Megatron's unstable names, and all that stands in for CUDA.

    names                    imports them, in one place
    arguments                parses and validates Megatron's arguments
    ranks                    tells a process its place in the job
    loop                     runs Megatron's training loop, watches it and stops it
    single_step              takes steps without that loop
    setup_without_values     builds all that a start builds, without memory for it
    initial_weights          draws each weight for its place in the model
    optimizer                changes parameters in every copy that an optimizer keeps
    writers                  starts and cuts the curves of TensorBoard and Weights & Biases
    silence                  keeps Megatron quiet
    repairs/                 has one file per fault of the wheel, with the condition for its removal
    distributed_checkpoint/  saves, loads and reads checkpoints
    cpu/                     runs Megatron without a GPU

``test_upstream_contract.py`` pins each signature that is relied on, so a new Megatron fails there
first, with a readable message.

Importing most of these modules imports Megatron. So on a machine without CUDA ``cpu.host`` is
imported and installed first.
"""
