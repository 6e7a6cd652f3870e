import pytest

from tst_megatron.schedule import Phase, Schedule, paper_schedule, resolve_phases


def schedule(*entries: tuple[int, float | int], num_steps: int) -> Schedule:
    return Schedule(
        phases=resolve_phases(entries, num_steps=num_steps),
        num_latent_positions=128,
        global_batch_size=16,
    )


def test_share_of_steps_floors_and_recovery_takes_the_rest():
    assert resolve_phases([(4, 0.3), (1, 0.7)], num_steps=101) == (
        Phase(bag_size=4, first_step=0, num_steps=30),
        Phase(bag_size=1, first_step=30, num_steps=71),
    )


@pytest.mark.parametrize(("share", "num_steps", "expected"), [(0.29, 100, 29), (0.57, 100, 57)])
def test_decimal_share_is_meant_exactly_where_floats_fall_short(share, num_steps, expected):
    assert int(share * num_steps) < expected
    assert resolve_phases([(4, share), (1, None)], num_steps=num_steps)[0].num_steps == expected


def test_steps_of_the_paper_s_10b_run_are_stated_and_not_a_share():
    entries = paper_schedule(bag_size=16, superposition_fraction=0.0, superposition_steps=12_483)
    assert resolve_phases(entries, num_steps=49_983)[0].num_steps == 12_483
    assert resolve_phases([(16, 0.25), (1, 0.75)], num_steps=49_983)[0].num_steps == 12_495


def test_bag_size_1_is_one_phase_of_ordinary_training():
    entries = paper_schedule(bag_size=1, superposition_fraction=0.3, superposition_steps=None)
    assert resolve_phases(entries, num_steps=10) == (Phase(bag_size=1, first_step=0, num_steps=10),)


def test_switch_is_the_first_step_with_bag_size_1():
    plan = schedule((4, 0.4), (1, 0.6), num_steps=10)
    assert [plan.phase_at(step).bag_size for step in range(10)] == [4] * 4 + [1] * 6
    assert plan.switch_step == 4
    assert [phase.name for phase in plan.phases] == ["superposition", "recovery"]


def test_tokens_before_a_step_count_every_step_once():
    plan = schedule((4, 3), (2, 2), (1, 4), num_steps=9)
    raw_tokens = 0
    for step in range(plan.num_steps):
        assert plan.raw_tokens_before(step) == raw_tokens
        assert plan.latent_positions_before(step) == step * 16 * 128
        raw_tokens += 16 * 128 * plan.phase_at(step).bag_size
    assert plan.raw_tokens_before(plan.num_steps) == raw_tokens


@pytest.mark.parametrize(
    ("inputs", "targets", "read", "needed"),
    [
        ("bags", "bags", 4 * 128, 4 * 128 + 4),
        ("bags", "tokens", 4 * 128, 4 * 128 + 1),
        ("tokens", "bags", 128, 128 + 4),
    ],
)
def test_switches_decide_what_a_sequence_reads_and_predicts(inputs, targets, read, needed):
    phases = resolve_phases([(4, 3), (1, 5)], num_steps=8, inputs=inputs, targets=targets)
    plan = Schedule(phases=phases, num_latent_positions=128, global_batch_size=16)
    assert plan.raw_tokens_before(3) == 3 * 16 * read
    assert plan.raw_tokens_before(8) == 3 * 16 * read + 5 * 16 * 128
    assert [plan.raw_tokens_per_sample(phase) for phase in phases] == [needed, 128 + 1]


def test_step_outside_the_run_is_refused():
    with pytest.raises(ValueError, match="step 10: this run has the steps 0 to 9"):
        schedule((1, 1.0), num_steps=10).phase_at(10)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "the schedule is empty"),
        ([(4, 0.5)], "the last bag size is 4"),
        ([(4, 0.5), (1, 0.2), (1, 0.3)], "bag size 1 stands before the end"),
        ([(0, 0.5), (1, 0.5)], "bag size 0: a bag holds 1 token or more"),
        ([(4, -3), (1, 0.5)], "-3 steps for bag size 4: must be above 0"),
        ([(4, 1.5), (1, 0.5)], "1.5 is a share of steps and must be at most 1"),
        ([(4, 10), (1, None)], "bag size 1 gets no step: 10 of 10 steps are taken"),
        ([(4, 0.01), (1, 0.99)], "bag size 4 gets no step"),
        ([(4, 1.0), (1, None)], "bag size 1 gets no step: 10 of 10 steps are taken"),
        ([(4, 4), (1, 5)], "bag size 1 is given 5 steps, and 6 of 10 are left for it"),
        ([(4, 2), (4, 2), (1, None)], "bag size 4 stands twice in a row. Give it once"),
        ([(4, 0.4), (1, 0.5)], "the shares of steps add up to 0.9. Make them 1"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_rule(entries, message):
    with pytest.raises(ValueError, match=message):
        resolve_phases(entries, num_steps=10)
