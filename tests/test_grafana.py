"""jobs/grafana.json: what Grafana imports, and what it asks Prometheus for is what runs measure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from ray.util import metrics as ray_metrics

from datainf_ray.cluster.metrics import DriverMetrics, WorkerMetrics

#: A metric of ours, with its selector if it has one.
_METRIC = re.compile(r"\b(ray_datainf_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPED = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "jobs" / "grafana.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured() -> dict[str, set[str]]:
    """The tags of every metric that a run makes, by the name that Prometheus has for it."""
    made = [*vars(DriverMetrics("runs/a")).values(), *vars(WorkerMetrics("runs/a", "0")).values()]
    return {
        f"ray_{one.info['name']}" + "_total" * isinstance(one, ray_metrics.Counter): set(one.info["tag_keys"])
        for one in made
    }


def _shown(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels that show something: all but the rows that head them."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in _shown(dashboard) for target in panel["targets"]]


def test_it_has_the_shape_that_grafana_imports(dashboard: dict[str, Any]) -> None:
    assert dashboard["title"]
    assert re.fullmatch(r"[\w-]{1,40}", dashboard["uid"])
    assert dashboard["id"] is None  # a number would be one of somebody's Grafana
    assert dashboard["schemaVersion"] >= 36  # sources of data by type and uid
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in _shown(dashboard):
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"]
        assert len(panel["description"]) > 20
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["legendFormat"]


def test_panels_do_not_lie_on_each_other(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above


def test_variables_are_those_that_expressions_use(dashboard: dict[str, Any], measured: dict[str, set[str]]) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert set(variables) == {"datasource", "run", "window"}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["run"]["query"]["query"])
    assert asked is not None
    assert asked[2] in measured[asked[1]]
    assert variables["run"]["definition"] == variables["run"]["query"]["query"]
    used = {name for text in _expressions(dashboard) for name in re.findall(r"\$\{?(\w+)", text)}
    assert used == {"run", "window", "__range"}  # the last one is Grafana's own: the time shown


def test_every_metric_is_shown_and_no_other(dashboard: dict[str, Any], measured: dict[str, set[str]]) -> None:
    asked = {found[1] for text in _expressions(dashboard) for found in _METRIC.finditer(text)}
    assert asked == set(measured)


def test_labels_are_tags_of_the_metric(dashboard: dict[str, Any], measured: dict[str, set[str]]) -> None:
    for panel in _shown(dashboard):
        for target in panel["targets"]:
            text = target["expr"]
            metrics = list(_METRIC.finditer(text))
            tags = set.intersection(*(measured[found[1]] for found in metrics))
            for found in metrics:
                assert "run" in _LABEL.findall(found[2])  # every series is of the runs that were chosen
                assert set(_LABEL.findall(found[2])) <= measured[found[1]]
            grouped = {name.strip() for names in _GROUPED.findall(text) for name in names.split(",")}
            assert grouped <= tags
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped


def test_counters_are_asked_for_their_growth(dashboard: dict[str, Any]) -> None:
    for text in _expressions(dashboard):
        for found in _METRIC.finditer(text):
            growth = re.search(r"\b(rate|increase)\($", text[: found.start()]) is not None
            assert growth is found[1].endswith("_total"), text
            assert not growth or text[found.end() :].startswith(("[$window]", "[$__range]")), text
