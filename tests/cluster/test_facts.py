"""What a cluster is asked for."""

from __future__ import annotations

import pytest

from datainf_ray.cluster.facts import has_labels


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("spot", True), ("on-demand", False), ("!spot", False), ("!on-demand", True), ("in(spot, on-demand)", True),
        ("in(a,b)", False), ("!in(spot, b)", False), ("!in(a,b)", True),
    ],
)  # fmt: skip
def test_labels_are_selected_as_ray_does(wanted: str, fits: bool) -> None:
    assert has_labels({"market": "spot", "zone": "a"}, {"market": wanted}) is fits
    assert has_labels({"market": "spot"}, {"market": wanted, "zone": "a"}) is False


def test_a_node_without_the_label_is_none_of_those_values() -> None:
    assert has_labels({}, {"market": "!spot"})
    assert not has_labels({}, {"market": "spot"})
    assert has_labels({}, {})
