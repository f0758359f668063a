"""What a cluster is asked for."""

from __future__ import annotations

import pytest

from datainf_ray.cluster.facts import cluster_facts, has_labels, wants
from datainf_ray.config import ClusterConfig


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


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_cluster_grows_where_more_workers_are_wanted_than_have_room() -> None:
    """Then no memory is asked for: an autoscaler that does not know what its nodes have would bring none."""
    few = cluster_facts(ClusterConfig(gpus_per_worker=0, max_workers=1), local=False)
    many = cluster_facts(ClusterConfig(gpus_per_worker=0, max_workers=1000), local=False)
    gpus = cluster_facts(ClusterConfig(gpus_per_worker=1, max_workers=1), local=False)
    assert (few.grows, many.grows, gpus.grows) == (False, True, True)


def test_what_a_worker_takes_is_said_as_it_is_asked_for() -> None:
    config = ClusterConfig(cpus_per_worker=2, label_selector={"market": "spot"})
    assert wants(config, 0, 3 * 10**9) == "2 CPUs and 3.0 GB of memory on a node with market=spot"
    assert wants(config, 1, labels={"market": "other"}) == "2 CPUs and 1 GPU on a node with market=other"
