"""Draws: which nodes least time compares, as positions in the list.

A random number costs as much as the comparison of two nodes. So what is random is a pattern, drawn once: an order in
which the nodes come first, and steps from there to the others of a draw.

Thousands of nodes do not fit into the caches of the processor, and to wait for the memory costs more than all that a
pick computes. So there two are drawn instead of four, and the first ones are near each other in the memory: the order
goes through the list in laps of some thirty wide steps, each lap one node further than the last, until everybody has
come first once. So neighbours in the list, which may share a machine, come first a lap apart. The next round has
another width. The second one is any other. One that is still in the cache would cost less, but would often still have
the call that it was drawn for before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, cycle, repeat
from typing import TypeAlias

_DRAWN = 4
"""Nodes that a pick compares."""
MANY = 1000
"""Nodes from which on a pick compares two: one client cannot know so many well anyway."""
_PATTERNS = (127, 131)
"""Draws after which the steps repeat: the first of these primes that does not divide the number of nodes, so that every
node has a turn with all of them."""
_LOOK_EVERY = 32
"""One in so many picks looks whether a node has to be tried again. It bounds what the slowest nodes can cost a client
that calls so rarely that nothing is ever fresh."""
_LAP = (24, 40)
"""Draws of a lap among thousands, at least and at most. Of more, the places in memory at which the laps go on would not
stay in the caches; of fewer, neighbours would get their calls at nearly the same time."""

Steps: TypeAlias = tuple[int, int, int]
"""How far the second, the third and the fourth node of a draw are from the first one. 0 for the second means to look
for a node that has to be tried again, 0 for the third that two are enough."""
Draw: TypeAlias = tuple[int, Steps]
"""Where the first node of a draw is, and how far from it the others are. No step is longer than the list."""


def draws(count: int, rng: random.Random) -> Iterator[Draw]:
    """Draws among so many nodes, at least two. Every node is drawn as often as the others.

    They go on for ever, or among thousands until everybody has come first.
    """
    if count >= MANY:
        return _round(count, rng)
    order = rng.sample(range(count), count)
    return zip(cycle(order), cycle(_steps(count, rng)), strict=False)


def _steps(count: int, rng: random.Random) -> list[Steps]:
    """The steps of some draws among so many nodes, at least two."""
    made: list[Steps] = []
    for number in range(_pattern(count)):
        drawn = rng.sample(range(1, count), min(count - 1, _DRAWN - 1))
        drawn += drawn[-1:] * 2  # of two or three nodes, some are compared twice
        if number % _LOOK_EVERY == 0:
            made.append((0, drawn[0], drawn[1]))
        else:
            made.append((drawn[0], 0, 0) if count == 2 else (drawn[0], drawn[1], drawn[2]))
    return made


def _round(count: int, rng: random.Random) -> Iterator[Draw]:
    """Draws among thousands of nodes, each of which comes first once. Makes no list as long as theirs."""
    lap = rng.randint(*_LAP)
    width = count // lap
    began = rng.randrange(width)
    laps = map(range, chain(range(began, width), range(began)), repeat(count), repeat(width))
    steps = [(rng.randrange(1, count), 0, 0) for _ in range(_pattern(count))]
    for number in range(0, len(steps), _LOOK_EVERY):
        one, other = rng.sample(range(1, count), 2)
        steps[number] = (0, one, other)
    return zip(chain.from_iterable(laps), cycle(steps), strict=False)


def _pattern(count: int) -> int:
    return next(length for length in _PATTERNS if count % length)
