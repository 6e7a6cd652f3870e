"""Limits, disks and variables: what is a problem, what is a note, and what is nothing."""

import doctor_facts as of
import pytest
from doctor_facts import by_level, healthy, without_gpu

from tst_megatron.nodes.doctor.facts import Disk, Image
from tst_megatron.recipe.environment import VARIABLES, strange_values


def notes(facts, profile="bf16"):
    return by_level(facts, profile, "note")


def problems(facts, profile="bf16"):
    return by_level(facts, profile, "problem")


# --- limits ---------------------------------------------------------------------------------------


def test_soft_limit_of_files_counts_up_to_the_hard_one():
    assert notes(of.with_limits(healthy(), nofile=(1024, 65536))) == []
    (finding,) = notes(of.with_limits(healthy(), nofile=(1024, 2048)))
    assert finding.found == "1024, at most 2048"
    assert finding.needed.startswith("4096 or more open files")


def test_limits_that_large_jobs_may_meet_are_notes():
    (finding,) = notes(of.with_limits(healthy(), nproc=(2048, -1)))
    assert finding.found == "2048, at most unlimited"
    (finding,) = notes(of.with_machine(healthy(), most_tasks_of_container=2048))
    assert "--pids-limit=-1" in finding.fix


def test_locked_memory_matters_with_infiniband_and_without_the_capability():
    low = of.with_limits(healthy(), memlock=(65536, 65536))
    assert len(problems(low)) == 1
    assert problems(of.with_machine(low, infiniband=())) == []
    assert problems(of.with_machine(low, may_lock_memory=True)) == []
    on_cpu = of.with_limits(without_gpu(), memlock=(65536, 65536))
    assert problems(on_cpu, "cpu") == []
    assert "limit memlock" in {each.check for each in notes(on_cpu, "cpu")}


def test_address_space_is_a_note_on_the_cpu():
    facts = of.with_limits(without_gpu(), **{"as": (2**34, -1)})
    assert problems(facts, "cpu") == []
    assert "limit as" in {each.check for each in notes(facts, "cpu")}


def test_core_files_are_a_note():
    (finding,) = notes(of.with_limits(healthy(), core=(-1, -1)))
    assert finding.found == "unlimited" and finding.fix == "ulimit -c 0"


# --- variables ------------------------------------------------------------------------------------


def with_variables(facts=None, **environment):
    return of.with_machine(facts or healthy(), environment=environment)


@pytest.mark.parametrize(
    "value", ["eth0", "eth", "=eth0", "bond0,ib", "^lo,docker", "^=lo", "=bond0,eth0"]
)
def test_interfaces_that_exist_are_fine(value):
    assert problems(with_variables(GLOO_SOCKET_IFNAME=value)) == []


@pytest.mark.parametrize("value", ["bond0", "=eth", "^lo,eth,ib", "^=lo,eth0,ib0"])
def test_interfaces_that_do_not_exist_are_a_problem(value):
    (finding,) = problems(with_variables(GLOO_SOCKET_IFNAME=value))
    assert finding.check == "GLOO_SOCKET_IFNAME" and value in finding.found


@pytest.mark.parametrize("name", ["CUDA_LAUNCH_BLOCKING", "NCCL_P2P_DISABLE", "PYTHONOPTIMIZE"])
def test_variables_that_hurt_are_notes(name):
    (finding,) = notes(with_variables(**{name: "1"}))
    assert (finding.check, finding.found, finding.fix) == (name, "1", f"unset {name}")
    assert notes(with_variables(**{name: "0"})) == []


def test_choice_of_attention_by_variables_is_a_note():
    (finding,) = notes(with_variables(NVTE_FLASH_ATTN="0"))
    assert "ends if they differ" in finding.needed and finding.fix == "unset NVTE_FLASH_ATTN"


def test_variable_of_the_profile_with_a_strange_value_is_a_note():
    (finding,) = notes(with_variables(CUDA_DEVICE_MAX_CONNECTIONS="8"))
    assert (finding.found, finding.needed) == ("8", "32 or 1, as the recipe decides")
    for value in ("1", "32"):
        assert notes(with_variables(CUDA_DEVICE_MAX_CONNECTIONS=value)) == []
    on_cpu = with_variables(without_gpu(), CUDA_DEVICE_MAX_CONNECTIONS="8")
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in {each.check for each in notes(on_cpu, "cpu")}


def test_values_that_recipes_want_are_not_strange():
    assert strange_values({variable.key: variable.value for variable in VARIABLES}) == {}
    assert strange_values({}) == {}


def test_hub_is_a_note_where_there_is_often_no_network():
    assert notes(with_variables()) == []
    (finding,) = notes(with_variables(SLURM_JOB_ID="1", HF_HUB_OFFLINE="1"))
    assert finding.found == "HF_HUB_OFFLINE: 1, TRANSFORMERS_OFFLINE: not set"
    assert finding.fix.startswith("export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1")
    assert len(notes(of.with_packages(healthy(), image=Image()))) == 1
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    assert notes(with_variables(SLURM_JOB_ID="1", **offline)) == []


# --- compilers ------------------------------------------------------------------------------------


def test_nothing_is_compiled_on_the_cpu():
    facts = of.with_machine(without_gpu(), compiler=None, has_python_headers=False)
    cache = Disk(name="Triton's cache", path="/root", problem="denied", is_of_compilers=True)
    facts = of.with_machine(facts, disks=(*facts.machine.disks[:1], cache))
    assert problems(facts, "cpu") == []
    assert len(problems(facts, "bf16")) == len(problems(without_gpu(), "bf16")) + 3


# --- user -----------------------------------------------------------------------------------------


def test_user_without_a_name_may_give_the_cache_a_place():
    variables = {"TORCHINDUCTOR_CACHE_DIR": "/tmp/x"}
    facts = of.with_machine(healthy(), user=None, environment=variables)
    assert problems(facts) == []


@pytest.mark.parametrize("profile", ["cpu", "bf16"])
def test_user_without_a_name_is_a_problem_whatever_the_profile_and_compiler(profile):
    facts = without_gpu() if profile == "cpu" else healthy()
    facts = of.with_machine(facts, user=None, compiler=None)
    (finding,) = [each for each in problems(facts, profile) if each.check == "user"]
    assert "torch.compile" in finding.needed and finding.fix == "export USER=NAME"


# --- shared memory and disks ----------------------------------------------------------------------


def test_small_shared_memory_is_a_note_on_the_cpu_and_none_a_problem():
    small = of.without_shared_memory(without_gpu())
    assert problems(small, "cpu") == []
    assert "shared memory" in {each.check for each in notes(small, "cpu")}
    denied = Disk(name="shared memory", path="/dev/shm", problem="Permission denied")
    (finding,) = problems(of.with_machine(small, shared_memory=denied), "cpu")
    assert finding.check == "shared memory"


def test_folder_that_cannot_be_made_is_not_told_to_free_space():
    disk = Disk(name="run folder", path="/proc/x", problem="not there, and /proc takes no files")
    (finding,) = problems(of.with_machine(healthy(), disks=(disk,)))
    assert "free space" not in finding.fix
    assert finding.fix.startswith("choose a folder that this user may write to")
