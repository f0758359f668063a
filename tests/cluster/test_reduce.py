"""The tree: one shape, whatever the order of arrival."""

from __future__ import annotations

import itertools
import random

import pytest

from datainf_ray.cluster.reduce import Tree


def grown(leaves: int, order: list[int]) -> str:
    tree = Tree(leaves, lambda k, left, right: f"({left}{right})")
    for leaf in order:
        tree.add(leaf, [str(leaf)])
    return tree.result()[0]


@pytest.mark.parametrize("leaves", range(1, 7))
def test_every_order_gives_the_same_tree(leaves: int) -> None:
    assert len({grown(leaves, list(order)) for order in itertools.permutations(range(leaves))}) == 1


def test_neighbours_are_joined_first() -> None:
    assert grown(5, [4, 2, 0, 3, 1]) == "(((01)(23))4)"


def test_few_rows_are_held() -> None:
    random.seed(0)
    tree = Tree(1000, lambda k, left, right: left + right)
    most = 0
    order = list(range(1000))
    for start in range(0, 1000, 4):  # four workers, each a little out of step
        random.shuffle(order[start : start + 4])
    for leaf in order:
        tree.add(leaf, [1])
        most = max(most, len(tree.waiting))
    assert tree.result() == [1000]
    assert most <= 14
