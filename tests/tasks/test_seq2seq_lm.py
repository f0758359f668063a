"""Encoder-decoders: examples, gradients against autograd in float64 row by row, and whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.corpus.rows import Row
from datainf_ray.corpus.tokens import EncoderSpec, Example
from datainf_ray.model.check import check
from datainf_ray.request.job import prepare
from tests import reference, tiny
from tests.model.compare import batch_of, captured, examples_of, is_right, rows_for
from tests.runs_of import attribute, scores

TASK = tiny.task("seq2seq-lm")
ARCHS = ("t5", "bart")


def encode(*fields: dict[str, Any], kind: str = "prompt-completion", max_length: int | None = None) -> list[Example]:
    spec = EncoderSpec(kind, tiny.tokenizer(), max_length, tiny.VOCABULARY)
    return TASK.encoder_for(spec).encode([Row(k, f"r{k}", f, None, None) for k, f in enumerate(fields)])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_equal_single_example_autograd(
    tmp_path: Path, arch: str, targets: str | None, reduction: str
) -> None:
    model = tiny.save_model(tmp_path, arch, targets)
    rows = rows_for(model, tmp_path)
    assert len({(len(row["input_ids"]), len(row["labels"])) for row in rows}) > 3
    replica = tiny.replica(model, reduction=reduction)
    assert (replica.path, replica.loss) == ("hooks", "chunked" if arch == "t5" else "whole")
    kinds = {block.name.split(".")[0 if arch == "t5" else 1] for block in replica.blocks}
    assert {"encoder", "decoder"} <= kinds
    is_right(replica, model, rows, sizes=(1, 3, 7))


@pytest.mark.parametrize("arch", ARCHS)
def test_sources_of_several_lengths_and_targets_with_gaps(tmp_path: Path, arch: str) -> None:
    """Sources are padded by themselves, and a label of -100 is read by the decoder as the model reads it."""
    model = tiny.save_model(tmp_path, arch)
    rows = [
        {"input_ids": [5, 6, 7, 8, 9, 10, 11], "labels": [4, 2]},
        {"input_ids": [5, 9], "labels": [4, -100, 8, -100, -100, 9, 2]},
        {"input_ids": [9, 0, 9], "labels": [-100, 7, 0, 7, -100]},  # the padding's own token counts where it is given
    ]
    replica = tiny.replica(model)
    is_right(replica, model, rows)
    replica.shortcut.whole = "for comparison"
    is_right(replica, model, rows)


@pytest.mark.parametrize("arch", ARCHS)
def test_losses_are_those_that_peft_gives_a_row_alone(tmp_path: Path, arch: str) -> None:
    model = tiny.save_model(tmp_path, arch)
    rows = rows_for(model, tmp_path)
    peft = reference.load(model, torch.float32)
    with torch.no_grad():
        want = [peft(input_ids=torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss for r in rows]
    replica = tiny.replica(model)
    _, losses = captured(replica, examples_of(rows), 7)
    torch.testing.assert_close(losses, torch.stack(want), rtol=1e-5, atol=0)
    verdict = check(replica, batch_of(examples_of(rows), [0, 1, 2], task=TASK))
    assert (verdict.path, verdict.loss, verdict.reason) == ("hooks", replica.loss, None)
    assert verdict.cosine == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_check_calls_the_model_without_masks(tmp_path: Path, arch: str) -> None:
    model = tiny.save_model(tmp_path, arch)
    replica = tiny.replica(model)
    given: list[set[str]] = []

    def look(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append({name for name, value in named.items() if isinstance(value, torch.Tensor)})

    replica.model.get_base_model().register_forward_pre_hook(look, with_kwargs=True)
    check(replica, batch_of(examples_of(rows_for(model, tmp_path)), [0, 1], task=TASK))
    assert given[:2] == [{"input_ids", "decoder_input_ids"}] * 2
    assert "attention_mask" in given[2]


def test_prompt_and_completion_are_a_source_and_a_target() -> None:
    one, empty, none = encode(
        {"prompt": "w1 w2", "completion": "w3"},
        {"prompt": "w1", "completion": ""},
        {"prompt": "w1", "completion": None},
    )
    assert one.values == {"input_ids": [1, 5, 6], "labels": [1, 7, 2]}
    assert (one.status, one.lengths, one.tokens, one.preview) == ("ok", (3, 3), 6, "w1 w2 ⟶ w3")
    assert (empty.status, empty.values["labels"]) == ("ok", [1, 2])
    assert none.status == "unreadable"


def test_both_are_cut() -> None:
    (cut,) = encode({"prompt": "w1 w2 w3 w4", "completion": "w1 w2 w3 w4"}, max_length=3)
    assert cut.values == {"input_ids": [1, 5, 6], "labels": [1, 5, 6]}
    (given,) = encode({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, kind="tokens", max_length=2)
    assert (given.status, given.detail) == ("no_target_tokens", "all of them lie beyond max_length 2")
    bad, longer = encode({"input_ids": [], "labels": [5]}, {"input_ids": [9], "labels": [5, 6]}, kind="tokens")
    assert (bad.status, bad.detail) == ("unreadable", "the source has no tokens")
    assert (longer.status, longer.lengths, longer.preview) == ("ok", (1, 2), "w5 ⟶ w1 w2")


def test_a_trial_has_the_tokens_and_reaches_every_block(tmp_path: Path) -> None:
    replica = tiny.replica(tiny.save_model(tmp_path, "t5"))
    batch = TASK.trial_batch(60, 20, tiny.VOCABULARY)
    assert [tuple(batch.values[name].shape) for name in ("input_ids", "labels")] == [(3, 10), (3, 10)]
    seen: dict[str, int] = {}
    replica.gradients(batch, lambda name, g, rows: seen.update({name: len(g)}))
    assert seen == {block.name: 3 for block in replica.blocks}


def test_a_decoder_is_no_encoder_decoder(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama") | {"task": "seq2seq-lm"}
    for name in ("train", "queries"):
        tiny.write_rows(tmp_path / f"{name}.jsonl", 4, 1)
    with pytest.raises(RequestError, match=r"^model\.base: .*: a llama is no encoder-decoder; use task causal-lm$"):
        prepare(load_config(tiny.configuration(tmp_path, model, tmp_path / "run")), writable=False)


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("arch", "targets"), [("t5", "all-linear"), ("bart", None)])
def test_datainf_equals_the_float64_loop(tmp_path: Path, arch: str, targets: str | None) -> None:
    for name, count, seed in (("train", 40, 1), ("queries", 4, 2)):
        tiny.write_rows(tmp_path / f"{name}.jsonl", count, seed)
    model = tiny.save_model(tmp_path, arch, targets)
    run = attribute(tiny.configuration(tmp_path, model, tmp_path / "run"))
    peft = reference.load(model)
    rows, queries = (reference.encode(model, str(tmp_path / f"{name}.jsonl")) for name in ("train", "queries"))
    g, v = reference.gradients(peft, rows), reference.gradients(peft, queries)
    assert reference.worst(scores(run), reference.datainf(g, v)) < 1e-4
    want = [reference.loss(peft, row).item() for row in rows]
    np.testing.assert_allclose(run.examples()["loss"].to_numpy(), want, rtol=1e-5, atol=0)
    assert run.record.capture.path == "hooks"
    assert run.examples()["tokens"].to_pylist() == [len(r["input_ids"]) + len(r["labels"]) for r in rows]
