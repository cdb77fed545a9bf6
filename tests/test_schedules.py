"""Schedules: values by hand, and what they hold at the ends."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_gibbs as kg
from keras_gibbs.schedules import as_schedule

EXAMPLES = [
    kg.Constant(0.9),
    kg.Linear(0.0, 0.8, begin=0.25, end=0.75),
    kg.Geometric(1, 1e4, end=0.64),
    kg.Geometric(100.0, 0.1, begin=0.1, end=0.9),
    kg.Polynomial(0.0, 0.9, end=0.5),
    kg.Polynomial(0.2, 0.9, begin=0.1, end=0.5, power=1.0),
]
MOVING = [schedule for schedule in EXAMPLES if schedule.span]
every_example = pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
every_moving = pytest.mark.parametrize("schedule", MOVING, ids=repr)


@pytest.mark.parametrize(
    "schedule, progress, value",
    [
        (kg.Constant(3), 0.3, 3.0),
        (kg.Linear(0.0, 0.9, begin=0.1, end=0.5), 0.3, 0.45),
        (kg.Linear(2.0, 1.0), 0.25, 1.75),
        (kg.Geometric(1, 1e4, end=0.64), 0.32, 100.0),
        (kg.Geometric(1, 16), 0.75, 8.0),
        (kg.Polynomial(0.0, 0.8), 0.5, 0.7),  # 0.8 - 0.8 / 8
        (kg.Polynomial(0.0, 0.8, power=2), 0.5, 0.6),
        (kg.Polynomial(1.0, 0.0, begin=0.5, power=1), 0.75, 0.5),
    ],
)
def test_values_by_hand(schedule, progress, value):
    assert schedule(progress) == pytest.approx(value, rel=1e-12)


@every_moving
def test_a_schedule_holds_its_start_before_begin_and_its_stop_after_end(schedule):
    for progress in (0.0, schedule.begin / 2, schedule.begin):
        assert schedule(progress) == pytest.approx(schedule.start, rel=1e-12)
    for progress in (schedule.end, (schedule.end + 1) / 2, 1.0):
        assert schedule(progress) == schedule.stop


@given(st.sampled_from(MOVING), st.floats(0, 1), st.floats(0, 1))
def test_a_schedule_goes_one_way_and_stays_in_its_bounds(schedule, one, other):
    earlier, later = schedule(min(one, other)), schedule(max(one, other))
    low, high = schedule.bounds
    slack = 1e-12 * high
    assert low - slack <= earlier <= high + slack
    assert (later - earlier) * (schedule.stop - schedule.start) >= -slack


@pytest.mark.parametrize("cls", [kg.Linear, kg.Geometric, kg.Polynomial])
def test_a_schedule_that_begins_and_ends_at_once_is_a_step(cls):
    step = cls(1.0, 2.0, begin=0.5, end=0.5)
    assert [step(progress) for progress in (0.0, 0.49, 0.5, 1.0)] == [1.0, 1.0, 2.0, 2.0]
    assert cls(1.0, 2.0, begin=0.0, end=0.0)(0.0) == 2.0


def test_beta_is_the_authors_grid_up_to_its_last_point():
    grid = np.logspace(0, 4, 128)  # one beta an epoch, over 128 of 200 epochs: it reaches 1e4 in epoch 127
    beta = kg.Gibbs(0.9).schedules()["beta"]
    ours = np.array([beta(epoch / 200) for epoch in range(129)])
    assert np.allclose(ours[:128] ** (128 / 127), grid, rtol=1e-9)
    assert ours[128] == 1e4 == grid[127]
    coupled = kg.Gibbs(0.9, structure=kg.Filter()).schedules()["beta"]
    assert (coupled.start, coupled.stop, coupled.end) == (10**-2.5, 1.0, 0.64)


def test_polynomial_is_the_cubic_of_zhu_and_gupta():
    start, stop = 0.1, 0.9
    for step, steps in ((0, 10), (3, 10), (10, 10)):
        assert kg.Polynomial(start, stop)(step / steps) == pytest.approx(stop + (start - stop) * (1 - step / steps) ** 3)


@every_example
def test_a_schedule_survives_keras_serialization(schedule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again == schedule and type(again) is type(schedule)
    assert type(schedule).from_config(schedule.get_config()) == schedule


def test_a_number_becomes_the_schedule_that_never_moves():
    assert as_schedule(0.5) == kg.Constant(0.5)
    assert as_schedule(2)(0.7) == 2.0
    assert as_schedule(np.float32(0.5)).span is None
    moving = kg.Linear(0, 1)
    assert as_schedule(moving) is moving


@pytest.mark.parametrize("begin, end", [(0.6, 0.5), (-0.1, 0.5), (0.0, 1.5), (10, 20)])
@pytest.mark.parametrize("cls", [kg.Linear, kg.Geometric, kg.Polynomial])
def test_a_schedule_that_ends_before_it_starts_or_counts_steps_is_refused(cls, begin, end):
    with pytest.raises(ValueError, match=f"begin={begin!r}, end={end!r}"):
        cls(1.0, 2.0, begin=begin, end=end)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    for make in (
        lambda: kg.Linear(value, 1.0),
        lambda: kg.Polynomial(0.0, value),
        lambda: kg.Constant(value),
        lambda: kg.Linear(0, 1, end=value),
    ):
        with pytest.raises(ValueError, match="finite"):
            make()


def test_geometric_refuses_zero_and_polynomial_a_power_of_zero():
    with pytest.raises(ValueError, match="start=0"):
        kg.Geometric(0, 1)
    with pytest.raises(ValueError, match="stop=-1"):
        kg.Geometric(1, -1)
    with pytest.raises(ValueError, match="power=0"):
        kg.Polynomial(0, 1, power=0)


def test_schedules_cannot_be_changed():
    with pytest.raises(AttributeError):
        kg.Linear(0, 1).start = 2
