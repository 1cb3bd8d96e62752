"""Power laws: what is known is found, and how sure the fit is, it says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.transfer.power_law import crossing, envelope, equivalent, fit, interpolated

SIZES = (1000, 2000, 4000, 8000, 16000)


def law(coefficient, slope, seed=None, noise=0.1, repeats=1):
    x = np.tile(SIZES, repeats).astype(float)
    y = coefficient * x**slope
    return x, y if seed is None else y * np.exp(noise * np.random.default_rng(seed).normal(size=len(x)))


@given(st.floats(1e-3, 1e3), st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_an_exact_law_is_found_exactly(coefficient, slope):
    found = fit(*law(coefficient, slope), draws=20)
    assert found.slope.value == pytest.approx(slope, abs=1e-9)
    assert found.at(1e6).value == pytest.approx(coefficient * 1e6**slope, rel=1e-8)
    assert found.slope.high - found.slope.low < 1e-9


@pytest.mark.parametrize("repeats", [1, 3])
def test_intervals_of_slope_and_crossing_cover_the_truth_nineteen_times_in_twenty(repeats):
    steep, flat = (5.0, -0.6), (0.35, -0.3)
    true = (5.0 / 0.35) ** (1 / 0.3)
    inside = []
    for seed in range(200):
        a = fit(*law(*steep, 2 * seed, repeats=repeats), draws=400)
        b = fit(*law(*flat, 2 * seed + 1, repeats=repeats), draws=400)
        found = crossing(a, b)
        inside.append((a.slope.low < -0.6 < a.slope.high, found.low < true < found.high))
    covered = np.mean(inside, axis=0)
    assert (covered > 0.9).all(), covered
    assert covered[0] < 1  # intervals that hold everything would say nothing


def test_lines_that_are_parallel_or_diverge_meet_nowhere():
    flat, steep = fit(*law(1, -0.3)), fit(*law(9, -0.6))
    assert crossing(steep, flat).value == pytest.approx(9 ** (1 / 0.3))
    assert math.isinf(crossing(flat, steep).value)
    assert math.isinf(crossing(steep, fit(*law(1, -0.6))).value)


def test_the_data_that_reach_the_same_error_follow_from_both_laws():
    transfer, scratch = fit(*law(1, -0.25)), fit(*law(10, -0.5))
    found = equivalent(transfer, scratch, 1e4)  # 0.1 = 10 / √x
    assert found.value == pytest.approx(1e4)
    assert found.low == pytest.approx(found.high)
    for slope in (0.1, -1e-5):
        assert math.isinf(equivalent(transfer, fit(*law(10, slope)), 1e3).value)


def test_three_points_have_a_slope_and_no_interval():
    found = fit((1e3, 1e4, 1e5), (1.0, 0.5, 0.3))
    assert math.isnan(found.slope.low)
    assert math.isnan(crossing(found, found).high)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ((1, 1), (1, 2), "found 1 different x"),
        ((1, 2), (0, 1), "positive"),
        ((1, 2), (1, np.nan), "positive"),
    ],
)
def test_numbers_without_a_power_law_are_refused(x, y, said):
    with pytest.raises(ValueError, match=said):
        fit(x, y)


def test_the_envelope_holds_the_points_that_nothing_cheaper_beats():
    cost, error = (1, 2, 2, 3, 4), (5.0, 4.0, 3.0, 3.5, 1.0)
    assert envelope(cost, error) == [0, 2, 4]


def test_an_error_between_two_sizes_is_reached_between_them():
    x, y = (100, 1000, 10000), (1.0, 0.1, 0.01)
    assert interpolated(x, y, 0.05) == pytest.approx(2000)
    assert interpolated(x, y, 2.0) == 100
    assert math.isinf(interpolated(x, y, 0.001))
