"""Connected regions, against a flood fill."""

import numpy as np
import pytest

from plg_utils.regions import components, connected

SIDES = [(0, 1), (0, -1), (1, 0), (-1, 0)]
CORNERS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]


def flooded(values, steps):
    """The number of the first cell of each cell's region, one cell after the other."""
    found = np.full(values.shape, -1)
    for number, start in enumerate(np.ndindex(values.shape)):
        left = [start] if found[start] < 0 else []
        while left:
            row, column = left.pop()
            found[row, column] = number
            for down, right in steps:
                near = row + down, column + right
                inside = 0 <= near[0] < values.shape[0] and 0 <= near[1] < values.shape[1]
                if inside and found[near] < 0 and values[near] == values[start]:
                    left.append(near)
    return found


def maps():
    """Maps of one to three values, among them regions whose ends are far apart."""
    rng = np.random.default_rng(0)
    snake = np.zeros((7, 9), dtype=bool)
    snake[::2], snake[1::4, -1], snake[3::4, 0] = True, True, True
    spiral = np.array(
        [[sign == "#" for sign in row] for row in ("######", ".....#", "####.#", "#..#.#", "#....#", "#####.")]
    )
    yield from (snake, spiral, np.zeros((7, 9), bool), np.ones((7, 9), bool), np.zeros((0, 4), bool))
    yield from (rng.integers(0, number, rng.integers(1, 9, 2)) for number in (2, 2, 3) for _ in range(40))


@pytest.mark.parametrize("corners", [False, True])
def test_regions_are_those_of_a_flood_fill(corners):
    for values in maps():
        expected = flooded(values, SIDES + CORNERS * corners)
        np.testing.assert_array_equal(connected(values, corners=corners), expected)
        if corners:
            np.testing.assert_array_equal(components(values == 1), (expected + 1) * (values == 1))
