"""Which nodes least time compares: everybody as often as the others, and nobody always with the same ones."""

import random
from collections import Counter
from itertools import islice, pairwise

import pytest

from clientlb.policy.draws import MANY, draws

THOUSANDS = [MANY, MANY + 1, 1_440, 2_003, 10_000, 50_000]


def compared(count, first, steps):
    """The positions of the nodes of a draw."""
    return {(first - step) % count for step in (0, *steps)}


def rounds(count, number, rng):
    return [draw for _ in range(number) for draw in draws(count, rng)]


@pytest.mark.parametrize("count", [2, 3, 4, 7, 127, MANY - 1])
def test_few_are_drawn_for_ever_and_equally_often(count):
    made = list(islice(draws(count, random.Random(1)), 40 * count))
    drawn = Counter(first for first, _ in made)
    assert drawn == dict.fromkeys(range(count), 40)
    assert all(0 <= step < count for _, steps in made for step in steps)


@pytest.mark.parametrize("count", THOUSANDS)
def test_in_a_round_each_of_thousands_comes_first_once(count):
    made = list(draws(count, random.Random(2)))
    assert sorted(first for first, _ in made) == list(range(count))


@pytest.mark.parametrize("count", THOUSANDS)
def test_no_draw_leaves_the_list_or_compares_a_node_with_itself(count):
    for first, steps in draws(count, random.Random(3)):
        assert all(-count <= first - step < count for step in steps)
        assert len(compared(count, first, steps)) == (2 if steps[0] else 3)


@pytest.mark.parametrize("count", [MANY, 2_003])
def test_each_of_thousands_is_the_other_one_equally_often(count):
    number = 400
    others = Counter((first - steps[0]) % count for first, steps in rounds(count, number, random.Random(4)) if steps[0])
    expected = number * (1 - 4 / 127)
    spread = sum((others[position] - expected) ** 2 for position in range(count)) / count
    assert sum(others.values()) == pytest.approx(expected * count, rel=0.01)
    assert spread == pytest.approx(expected, rel=0.25), "as if each had been drawn by itself"


def test_a_node_meets_hundreds_of_others():
    count = 2_003
    met = {(first - steps[0]) % count for first, steps in rounds(count, 2_000, random.Random(5)) if first == 77}
    assert len(met) > 0.4 * count


@pytest.mark.parametrize("count", THOUSANDS)
def test_neighbours_do_not_come_first_one_after_the_other(count):
    firsts = [first for first, _ in draws(count, random.Random(6))]
    assert all(abs(one - two) >= 10 for one, two in pairwise(firsts))


def test_one_in_thirty_two_looks_for_who_has_to_be_tried_again():
    made = list(draws(10_000, random.Random(7)))
    assert sum(not steps[0] for _, steps in made) / len(made) == pytest.approx(1 / 32, rel=0.05)


def test_clients_do_not_march_in_step():
    began = [next(draws(10_000, random.Random(seed)))[0] for seed in range(200)]
    widths = set()
    for seed in range(200):
        (one, _), (two, _) = islice(draws(10_000, random.Random(seed)), 2)
        widths.add(two - one)
    assert len(set(began)) > 100
    assert len(widths) > 12
