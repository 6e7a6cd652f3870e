"""The rank of a process, by the variables that torchrun, srun and a person's shell have."""

import pytest

from tst_megatron.system.processes.ranks import number_of, variables_of_a_rank

MET = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MET}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
}
SHELL = {**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def rank(environment):
    variables, problems = variables_of_a_rank(environment)
    assert problems == []
    return tuple(variables.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, ("3", "8", "1")),
        (STEP | MET, ("3", "4", "1")),
        # A version of Slurm that does not say how many tasks the step has.
        ({name: STEP[name] for name in STEP if "STEP_NUM" not in name} | MET, ("3", "4", "1")),
        # torchrun, or --nproc, in a shell that srun has started.
        (STEP | TORCHRUN, ("3", "8", "1")),
        # One task that was told an address: by a job script, or by hand.
        (SHELL | MET | {"SLURM_STEP_NUM_TASKS": "1"}, ("0", "1", "0")),
        (TORCHRUN | {"RANK": "03"}, ("3", "8", "1")),
    ],
)
def test_rank_is_taken_from_one_source(environment, expected):
    assert rank(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # srun --pty bash.
        SHELL | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        # A shell of salloc that is a step: the number of tasks is the whole job's.
        SHELL | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},
        # A shell of salloc on the login node; a batch script, which Slurm gives a SLURM_PROCID.
        {name: SHELL[name] for name in ("SLURM_PROCID", "SLURM_NTASKS")},
        {"RANK": "", "WORLD_SIZE": "", "SLURM_STEP_ID": ""},
        # Stray, and nothing says that this is a rank.
        {"WORLD_SIZE": "8", **MET},
    ],
)
def test_shell_in_a_job_is_no_rank(environment):
    assert rank(environment) == (None, None, None)


@pytest.mark.parametrize("value", ["abc", "-1", "1.0", "1e3", " 1", "1_0", "٣", "9" * 30, "1\n"])
@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
def test_variable_that_is_no_number_is_named_with_its_rule(name, value):
    _, (problem,) = variables_of_a_rank(TORCHRUN | {name: value})
    assert problem.startswith(f"{name}={value[:1]!r}"[:-1])
    assert "must be a whole number from" in problem and f"unset {name}" in problem
    assert len(problem) < 300 and "\n" not in problem


@pytest.mark.parametrize("name", [name for name in STEP if name != "SLURM_STEP_ID"])
def test_variable_of_slurms_is_named_as_slurm_does(name):
    _, problems = variables_of_a_rank(STEP | MET | {name: "x"})
    # The number of the job's tasks does not matter where the step's is known.
    assert [problem.split("=")[0] for problem in problems] == [name] * (name != "SLURM_NTASKS")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: not set"),
        ({"RANK": "8"}, "RANK=8 of WORLD_SIZE=8: ranks count from 0, so the last is 7"),
        ({"WORLD_SIZE": "0"}, "must be a whole number from 1"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: not set"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR and MASTER_PORT: not set"),
        ({"MASTER_PORT": "70000"}, "the highest port is 65535"),
    ],
)
def test_variables_that_do_not_go_together_are_refused(change, said):
    _, (problem,) = variables_of_a_rank(TORCHRUN | change)
    assert said in problem


def test_all_wrong_variables_are_named_at_once():
    wrong = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"), "x")
    _, problems = variables_of_a_rank(MET | wrong)
    assert [problem.split("=")[0] for problem in problems] == list(wrong)
    # Also outside of a job, where it can only be a mistake.
    _, problems = variables_of_a_rank({"WORLD_SIZE": "x"})
    assert len(problems) == 1


def test_number_of_an_empty_variable_is_none():
    assert number_of({"WORLD_SIZE": ""}, "WORLD_SIZE") is None
    assert number_of({}, "WORLD_SIZE") is None
