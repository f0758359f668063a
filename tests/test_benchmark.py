"""The benchmark at its smallest: that it measures what it says. How fast anything is, is never asserted here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import reference

Run = Callable[..., dict[str, dict[str, Any]]]

#: Beside the repository, where it is developed.
PEERS = Path(__file__).parents[2] / "shared" / "peers"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """jobs/benchmark.py; the number of threads, which it sets, is put back."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "jobs"))
    import benchmark

    threads = torch.get_num_threads()
    yield benchmark
    torch.set_num_threads(threads)


@pytest.fixture
def figures(benchmark: ModuleType, tmp_path: Path) -> Run:
    """Runs tables at their smallest: the JSON's figures by table, case and name, each of them sane."""

    def run(*arguments: str) -> dict[str, dict[str, Any]]:
        file = tmp_path / "figures.json"
        benchmark.main(["--small", "--repeats", "2", "--scratch", str(tmp_path), "--json", str(file), *arguments])
        document = json.loads(file.read_text())
        assert document["command"][:2] == ["jobs/benchmark.py", "--small"]
        assert document["machine"]["versions"]["torch"] == torch.__version__
        for figure in document["figures"]:
            if figure["note"].endswith("bergson was not run"):
                assert figure["value"] is None
                continue
            assert figure["value"] is not None, figure
            assert math.isfinite(figure["value"])
            assert figure["value"] > 0
        assert list(tmp_path.iterdir()) == [file]  # nothing else is left
        return {f"{f['table']}: {f['case']}: {f['name']}": f for f in document["figures"]}

    return run


def test_the_sweep_is_compared_with_training_for_both_adapters(figures: Run) -> None:
    found = figures("sweep")
    assert set(found) == {
        "sweep: hidden 32, r=8 on q,v: first sweep / training step",
        "sweep: hidden 32, r=8 on all linear: first sweep / training step",
    }
    for figure in found.values():
        sweeping, training = figure["runs"]["first sweep"], figure["runs"]["training"]
        assert len(sweeping) == len(training) == 2
        assert figure["value"] == pytest.approx(sum(training) / sum(sweeping), rel=1e-9)
        assert figure["aim"] == ["≥", 0.95]
        assert figure["met"] == (figure["value"] >= 0.95)


def test_other_kinds_of_adapters_are_compared_with_training_too(figures: Run) -> None:
    found = figures("capture", "--repeats", "1")
    kinds = ("q,v", "all linear", "DoRA on all linear", "q,v and experts", "q,v and a saved embedding")
    assert set(found) == {f"capture: hidden 32, r=8, {kind}: first sweep / training step" for kind in kinds}
    for figure in found.values():
        (sweeping,), (training,) = figure["runs"]["first sweep"], figure["runs"]["training"]
        assert figure["value"] == pytest.approx(training / sweeping, rel=1e-9)


def test_pictures_are_compared_with_training_of_diffusers(figures: Run) -> None:
    (figure,) = figures("pictures").values()
    assert figure["name"] == "first sweep / training step"
    sweeping, training = figure["runs"]["first sweep"], figure["runs"]["training"]
    assert figure["value"] == pytest.approx(sum(training) / sum(sweeping), rel=1e-9)


def test_what_is_timed_is_the_curvature_of_every_row_and_a_step_that_trains(benchmark: ModuleType) -> None:
    from bench.models import TARGETS, Shape, adamw, curvature_inputs, first_sweep, pair, token_rows, train
    from bench.sweep import padded

    from datainf_ray.influence.folds import COUNT

    rows = token_rows([5, 9, 7, 20, 6], 64, 1)
    batches = padded(rows, 40)
    assert sorted(int(i) for batch in batches for i in batch.rows) == [0, 1, 2, 3, 4]
    replica, trained = pair(Shape(32, 1, vocabulary=64), TARGETS["all linear"])
    twin = dict(trained.named_parameters())
    assert len(replica.blocks) == 14
    assert all(torch.equal(p, twin[name]) for name, p in replica.model.named_parameters())  # one model, twice

    found = first_sweep(replica, batches, len(rows), curvature_inputs(replica, 3))
    for block in replica.blocks:
        assert found[block.name]["moments"][COUNT] == len(rows)
        assert found[block.name]["sums"].shape == (2, 3, block.size)
        assert found[block.name]["sums"].abs().sum() > 0

    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    train(trained, batches, adamw(trained))
    changed = {name for name, p in trained.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


def test_the_closed_form_equals_the_papers_loops(figures: Run) -> None:
    found = {name.rsplit(": ", 1)[1]: figure for name, figure in figures("closed-form").items()}
    assert set(found) == {
        "time / one product of the same operations",
        "speed over the paper's way, loops over rows and blocks",
        "difference from the paper's way",
    }
    assert found["difference from the paper's way"]["value"] < 1e-5


def test_the_papers_loops_are_the_papers_sums(benchmark: ModuleType) -> None:
    from bench.closed_form import _apart, by_loops

    generator = torch.Generator().manual_seed(0)
    g, v = ({k: torch.randn(n, d, generator=generator) for k, d in (("a", 16), ("b", 24))} for n in (9, 3))
    wanted = reference.datainf(*({k: x.double() for k, x in state.items()} for state in (g, v)))
    assert reference.worst(by_loops(_apart(g), _apart(v)), wanted) < 1e-5


@pytest.mark.cluster
@pytest.mark.slow
def test_the_gpus_whole_runs_can_be_had_without_a_gpu_and_a_killed_worker_changes_no_bit(figures: Run) -> None:
    found = figures("gpu-right", "gpu-whole", "--size", "tiny")
    errors = [figure["value"] for name, figure in found.items() if name.endswith("float32 / float64")]
    assert len(errors) == 2
    assert max(errors) < 1e-5
    (killed,) = (figure for name, figure in found.items() if name.endswith("same bits"))
    assert killed["value"] == 1
    assert killed["note"] in (
        "workers killed: 1",
        "workers killed: 2",
    )  # a run may be over before its second worker is seen at work
    names = {name.rsplit(": ", 1)[1] for name in found if name.startswith("gpu-whole")}
    assert names == {"inside the sweeps / training step", "all but start-up / training step"}


def test_the_gpu_table_can_be_had_without_a_gpu(figures: Run) -> None:
    found = figures("gpu", "--size", "tiny")
    names = {name.rsplit(": ", 1)[1] for name in found}
    assert {"first sweep", "training", "one row at a time", "share of the matrix product's rate"} <= names


def test_one_row_at_a_time_gives_the_fold_the_same(benchmark: ModuleType) -> None:
    from bench.gpu import one_by_one
    from bench.models import TARGETS, Shape, curvature_inputs, first_sweep, full_batch, pair

    replica, trained = pair(Shape(32, 1, vocabulary=64), TARGETS["q,v"])
    batches = [full_batch(3, 8, 64, first, torch.device("cpu")) for first in (0, 3)]
    inputs = curvature_inputs(replica, 2)
    together, alone = first_sweep(replica, batches, 6, inputs), one_by_one(trained, batches, inputs, replica)
    for block in replica.blocks:
        for name, wanted in together[block.name].items():
            assert (alone[block.name][name] - wanted).norm() < 1e-4 * wanted.norm(), (block.name, name)


def test_what_cannot_be_measured_here_says_so(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    skipped = benchmark.main(["peers", "gpu", "--small"])
    assert [(f.table, f.name, f.value, f.met) for f in skipped] == [
        ("peers", "skipped", None, None),
        ("gpu", "skipped", None, None),
    ]
    assert "--peers" in skipped[0].note
    assert "no GPU" in skipped[1].note


def test_things_take_turns_and_the_first_round_is_thrown_away(benchmark: ModuleType) -> None:
    from bench.measure import interleaved

    turns: list[str] = []
    things = {name: lambda name=name: turns.append(name) or len(turns) for name in ("a", "b")}
    assert interleaved(things, 2) == {"a": [3, 5], "b": [4, 6]}
    assert turns == ["a", "b"] * 3


def test_a_command_that_fails_is_told_by_its_last_line_and_the_other_tables_are_made(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "workload.py").write_text("raise SystemExit('no such thing')")
    peers, *others = benchmark.main(["peers", "closed-form", "--small", "--repeats", "1", "--peers", str(tmp_path)])
    assert (peers.name, peers.value, peers.note) == ("failed", None, "no such thing")
    assert len(others) == 3


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(not PEERS.is_dir(), reason=f"the peers' fixed workload is not there: {PEERS}")
def test_the_peers_table_has_its_figures(figures: Run) -> None:
    found = figures("peers", "--repeats", "1", "--peers", str(PEERS))
    cases = ("keep, 1 worker × 2", "recompute, 1 worker × 2")  # folders of the runs too: no name's alphabet stops a run
    assert {case for _, case, _ in (name.split(": ", 2) for name in found)} == {"the peers' workload", *cases}
    for case in cases:
        assert found[f"peers: {case}: difference from the formula in float64"]["value"] < 1e-4
        assert found[f"peers: {case}: inside the sweeps / limit"]["aim"]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_whole_run_is_compared_with_training_on_the_same_tokens(figures: Run) -> None:
    found = figures("whole", "--repeats", "1")
    inside, outside = found.values()
    assert outside["value"] < inside["value"]
    assert inside["runs"]["run.json"][0] < inside["runs"]["run"][0]


@pytest.mark.slow
@pytest.mark.cluster
def test_the_tables_of_whole_runs_have_their_figures(figures: Run) -> None:
    (two,) = figures("workers", "--repeats", "1").values()
    assert set(two["runs"]) == {"one", "two"}
    cpu, wall = figures("queue").values()
    assert (cpu["unit"], wall["unit"]) == ("ms", "ms")
    driver, worker = figures("memory").values()
    for figure in (driver, worker):
        assert min(figure["runs"]["resident"]) > 50 * 2**20
        assert all(o < r for o, r in zip(figure["runs"]["private"], figure["runs"]["resident"], strict=True))
