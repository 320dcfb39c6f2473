"""The adaptive cadence, on made-up series of values and costs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.probes.pace import FEWEST, FIRST, PRODUCT, Pace


def _state(step: int, steps: int, per_epoch: int = 1, train: int = 100) -> Any:
    task = SimpleNamespace(train=SimpleNamespace(inputs=range(train)))
    return SimpleNamespace(step=step, steps=steps, task=task, steps_per_epoch=per_epoch)


def _run(pace: Pace, value: Any, products: Any, steps: int, **about: int) -> list[int]:
    """Steps at which it measures, the first and the last among them."""
    taken: list[int] = []
    for step in range(steps + 1):
        if step >= pace.next_step or step in (0, steps):
            pace.begin(step)
            pace.take("λ₁", value(step), products(len(taken)), _state(step, steps, **about), None)
            taken.append(step)
    return taken


@given(
    share=st.floats(0.05, 1.0),
    products=st.lists(st.integers(1, 30), min_size=20, max_size=20),
    moves=st.floats(0, 0.3),
)
def test_it_costs_no_more_than_its_share_whatever_moves(
    share: float, products: list[int], moves: float
) -> None:
    steps = 20_000
    taken = _run(
        Pace(share, longest=10),
        lambda step: (1 + moves) ** (step % 7),
        lambda number: products[number % 20],
        steps,
    )
    # after the cold start and before the last, which is measured whatever it costs
    spent = sum(PRODUCT * products[k % 20] for k in range(10, len(taken) - 1))
    # the mean lags by eight measurements of at most 30 products, and intervals by their rounding
    slack = 8 * PRODUCT * 30
    at_most_a_tenth = (steps / FEWEST) * share / PRODUCT >= max(products)
    if at_most_a_tenth:
        assert spent <= share * (taken[-1] - taken[10]) + slack


def test_it_measures_more_often_where_the_value_moves() -> None:
    taken = np.array(
        _run(
            Pace(share=2.0, longest=100),
            lambda step: 1.0 if step < 2000 else 1.01 ** (step - 2000),
            lambda _: 2,
            4000,
        )
    )
    still, moving = np.diff(taken[taken < 2000])[-5:], np.diff(taken[taken > 2200])[:-1]
    assert still.min() >= 100
    assert moving.max() <= 11  # 1.01^11 is a change of more than a tenth, which halves it


def test_intervals_are_odd_so_both_sides_of_an_oscillation_are_seen() -> None:
    taken = _run(Pace(0.25, 100), lambda step: 20 + (-1.0) ** step, lambda _: 4, 3000)
    assert all(gap % 2 for gap in np.diff(taken)[:-1])
    sides = [step % 2 for step in taken]
    assert abs(sum(sides) / len(sides) - 0.5) < 0.05


def test_few_measurements_of_a_short_run_are_made_whatever_they_cost() -> None:
    taken = _run(Pace(0.25, 100), lambda _: 1.0, lambda _: 50, 400)
    # intervals grow up to a tenth of the run, which is made odd
    assert np.diff(taken)[1:-1].max() == 400 / FEWEST - 1
    first = Pace(0.25, 100)
    first.begin(0)
    first.take("λ₁", 1.0, 1000, _state(0, 400), None)
    assert first.next_step == FIRST + 1  # a cold start says nothing of what follows


def test_a_dear_measurement_comes_soon_to_its_share() -> None:
    """Of 8 products a step at the share .1 the interval is 240; it is there after 4 measurements."""
    taken = np.diff(_run(Pace(0.1, 50), lambda step: float(step), lambda _: 8, 20_000))
    assert taken[:4].tolist() == [11, 45, 181, 241]  # fourfold each, and odd
    assert set(taken[3:-1].tolist()) == {241}


@pytest.mark.parametrize("steps", [*range(10, 130), 3000])
def test_no_run_of_ten_steps_or_more_has_fewer_than_ten_measurements(steps: int) -> None:
    taken = _run(Pace(0.01, 50), lambda _: 1.0, lambda _: 50, steps)
    assert len(taken) >= FEWEST
    assert max(np.diff(taken)[1:]) <= steps / FEWEST


def test_a_time_at_which_nothing_is_taken_does_not_make_the_later_ones_cheap() -> None:
    """As before Adam's edge is known: 8 products at the share .2 are 120 updates, from then on."""
    pace, steps, taken = Pace(0.2, 50), 20_000, list[int]()
    for step in range(2000):
        if step >= pace.next_step:
            pace.begin(step)
            if step == 0 or step > 20:  # a cold start, then nothing, then the edge, cold too
                what, products = ("the edge's", 8 if taken[1:] else 100) if step else ("λ₁", 100)
                pace.take(what, float(step), products, _state(step, steps), None)
                taken.append(step)
    assert np.diff(taken).tolist() == [22, 11, 45] + [121] * (len(taken) - 4)


def test_a_share_of_almost_nothing_makes_the_fewest() -> None:
    assert len(_run(Pace(1e-320, 50), lambda _: 1.0, lambda _: 50, 400)) <= 2 * FEWEST


def test_a_product_over_few_examples_of_a_large_set_costs_few_updates() -> None:
    """A product on 10 of 100 examples, in updates of 20, is as dear as 3 · (10/100) · 5 of them."""
    pace = Pace(share=0.1, longest=1)
    for step in (0, 11, 22):
        pace.begin(step)
        pace.take("λ₁", 2.0**step, 1.0, _state(step, 10**6, per_epoch=5), 10)
    assert pace.next_step == step + 17  # 1.5 updates in 15, odd and no less often than asked


def test_the_quantity_of_the_edge_decides_where_two_are_measured() -> None:
    pace = Pace(share=100, longest=100)
    for step, first, second in ((0, 1.0, 1.0), (11, 2.0, 1.0)):
        pace.begin(step)
        pace.take("λ₁", first, 1, _state(step, 1000), None)
        pace.take("λ₁(P⁻¹H)", second, 1, _state(step, 1000), None)
    assert pace.next_step == 11 + 23  # the second stood still


def test_where_nothing_is_taken_the_interval_stays() -> None:
    pace = Pace(0.25, 100)
    for step in (0, 10, 20):
        pace.begin(step)
        assert pace.next_step == step + 10


@pytest.mark.parametrize("at", [0, 3, 17])
def test_a_restored_pace_goes_on_alike(at: int) -> None:
    def steps_of(pace: Pace, start: int) -> list[int]:
        taken = []
        for step in range(start, 1000):
            if step >= pace.next_step:
                pace.begin(step)
                pace.take("λ₁", 1.03**step, 1 + step % 5, _state(step, 1000), None)
                taken.append(step)
        return taken

    whole = steps_of(Pace(0.25, 50), 0)
    begun, resumed = Pace(0.25, 50), Pace(0.25, 50)
    for step in whole[: at + 1]:
        begun.begin(step)
        begun.take("λ₁", 1.03**step, 1 + step % 5, _state(step, 1000), None)
    resumed.load_state_dict(begun.state_dict())
    assert steps_of(resumed, whole[at] + 1) == whole[at + 1 :]


@pytest.mark.parametrize("share", [0.05, 0.25, 2.0])
@pytest.mark.parametrize(("steps", "per_epoch"), [(400, 1), (2500, 1), (3000, 40)])
@pytest.mark.parametrize("moves", [0.0, 0.05])
def test_how_often_it_measures_is_foretold(
    share: float, steps: int, per_epoch: int, moves: float
) -> None:
    """From the first measurement on, of a quantity that moves by what does not change the interval."""
    pace, products = Pace(share, longest=50), 6
    taken = _run(
        pace, lambda step: (1 + moves) ** (step % 2), lambda _: products, steps, per_epoch=per_epoch
    )
    worth = PRODUCT * products * per_epoch
    begun = Pace(share, longest=50)
    begun.begin(0)
    begun.take("λ₁", 1.0, 41, _state(0, steps, per_epoch), None)
    foretold = begun.left(0, steps, worth)
    # a quantity that stands still is measured up to `longest` apart, which nobody can know
    if moves:
        # intervals are odd, and grow to a cost that the mean knows later
        assert foretold == pytest.approx(len(taken) - 1, rel=0.15, abs=2)
    else:
        assert len(taken) - 2 <= foretold
    half = next(i for i, step in enumerate(taken) if step >= steps / 2)
    again = Pace(share, longest=50)
    for step in taken[: half + 1]:
        again.begin(step)
        again.take("λ₁", (1 + moves) ** (step % 2), products, _state(step, steps, per_epoch), None)
    left = len(taken) - 1 - half
    assert again.left(taken[half], steps, None) == pytest.approx(left, rel=0.1, abs=1)


def test_where_no_cost_is_known_the_interval_that_is_counts() -> None:
    pace = Pace(0.25, longest=50)
    pace.begin(0)
    assert pace.left(0, 110, None) == 11  # at 10, 21, … 109, since intervals are odd, and 110
