"""Plans of the made-up runs of ``status_folders``: 8 GPUs that do 20% of 2,000 TFLOP/s each."""

from status_folders import NUM_STEPS, RAW_TOKENS_PER_STEP, SWITCH

STEP_SECONDS = 2.0
FLOPS_PER_STEP = STEP_SECONDS * 8 * 0.2 * 2e15
PHASES = ((4, SWITCH), (1, NUM_STEPS - SWITCH))


def made_plan(*, phases=PHASES, memory=None, **cost):
    """Return the keys of a plan that the run of ``Folder`` follows; ``cost`` changes some."""
    planned = {
        "gpu": "b200",
        "gpus": 8,
        "peak flops per gpu": 2e15,
        "mfu": 0.2,
        "mfu range": [0.1, 0.25],
        "dollars per gpu hour": 9.0,
        "this run": _arm("this run", phases),
        **cost,
    }
    return {"recipe": "tst.yaml", "cost": planned, **({"memory": memory} if memory else {})}


def _arm(name, phases):
    steps = sum(num_steps for _, num_steps in phases)
    return {
        "name": name,
        "steps": steps,
        "flops": FLOPS_PER_STEP * steps,
        "gpu hours": STEP_SECONDS * steps * 8 / 3600,
        "raw tokens by phase": [
            {"bag size": k, "steps": n, "raw tokens": k * n * RAW_TOKENS_PER_STEP}
            for k, n in phases
        ],
    }


def made_facts(*, gpus=8, flops=FLOPS_PER_STEP, peak=2000.0, device="NVIDIA B200"):
    """Return the ``facts.json`` of a run as the plan wants it; the arguments change some."""
    return {
        "stream": {},
        "held-out": {},
        "parameters": {},
        "FLOPs per step": flops,
        "world size": gpus,
        "device": device,
        "peak TFLOP/s per device": peak,
    }
