"""Models of plans, without Megatron to count them: the numbers are those of examples/."""

from tst_megatron.plan.cost.model import Model
from tst_megatron.plan.gain.grids import point_of
from tst_megatron.schedule import Schedule, paper_schedule, resolve_phases


def made_schedule(num_steps, *, bag_size=1, steps=0, length=8192, batch=1024, inputs="bags"):
    entries = paper_schedule(
        bag_size=bag_size, superposition_fraction=0.0, superposition_steps=steps
    )
    phases = resolve_phases(entries, num_steps=num_steps, inputs=inputs)
    return Schedule(phases=phases, num_latent_positions=length, global_batch_size=batch)


def made_10b(num_steps=125_000, **schedule):
    return Model(
        parameters=10_489_144_832,
        active=1_196_074_496,
        size=1_429_448_192,
        is_moe=True,
        flops_per_position=11.969888256e9,
        flops_by_formula=12.0082e9,
        checkpoint_bytes=146_848_027_648,
        token_bytes=4,
        evaluation_share=4 / 1000 / 3,
        slot_weights="uniform",
        resets=(),
        schedule=made_schedule(num_steps, **schedule),
    )


def point(model):
    return point_of(model.schedule, parameters=model.size)
