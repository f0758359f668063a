"""The tree: one shape, whatever the order of arrival, and whatever was put back or lost on the way."""

from __future__ import annotations

import itertools
import random

import pytest

from datainf_ray.cluster.reduce import Tree


def tree_of(leaves: int) -> Tree:
    return Tree(leaves, lambda node, left, right: [f"({left[0]}{right[0]})"])


def grown(leaves: int, order: list[int]) -> str:
    tree = tree_of(leaves)
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
    tree = Tree(1000, lambda node, left, right: [left[0] + right[0]])
    most = 0
    order = list(range(1000))
    for start in range(0, 1000, 4):  # four workers, each a little out of step
        random.shuffle(order[start : start + 4])
    for leaf in order:
        tree.add(leaf, [1])
        most = max(most, len(tree.waiting))
    assert tree.result() == [1000]
    assert most <= 14


@pytest.mark.parametrize("leaves", [1, 2, 5, 6, 11])
def test_what_was_held_may_be_put_back_at_any_moment(leaves: int) -> None:
    order = random.Random(leaves).sample(range(leaves), leaves)
    for cut in range(leaves + 1):
        before, after = tree_of(leaves), tree_of(leaves)
        for leaf in order[:cut]:
            before.add(leaf, [str(leaf)])
        for node, row in before.waiting.items():
            after.put(node, row)
        assert after.waiting == before.waiting
        for leaf in order[cut:]:
            after.add(leaf, [str(leaf)])
        assert after.result() == [grown(leaves, order)]


@pytest.mark.parametrize("leaves", [2, 5, 11])
def test_a_row_that_is_lost_takes_along_what_it_has_gone_into(leaves: int) -> None:
    for lost in range(leaves):
        tree = tree_of(leaves)
        for leaf in range(leaves):
            tree.add(leaf, [str(leaf)])
        dropped = tree.drop((0, lost))
        assert dropped is not None
        assert list(tree.leaves(dropped)) == list(range(leaves))  # all had been joined
        assert tree.drop((0, lost)) is None
        for leaf in reversed(range(leaves)):
            tree.add(leaf, [str(leaf)])
        assert tree.result() == [grown(leaves, list(range(leaves)))]


def test_a_row_that_is_lost_takes_along_no_other() -> None:
    tree = tree_of(6)
    for leaf in (0, 1, 2, 4, 5):
        tree.add(leaf, [str(leaf)])
    assert tree.drop((0, 1)) == (1, 0)
    assert set(tree.waiting) == {(0, 2), (2, 1)}
