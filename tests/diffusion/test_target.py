"""Every family's per-example gradients, in batches of rows × draws, are autograd's on diffusers' own training loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from datainf_ray.common.errors import RequestError
from datainf_ray.config import RunConfig, load_config
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.sample import rows_chunk
from datainf_ray.corpus.tokens import Example
from datainf_ray.model.inspect import load_tokenizer
from datainf_ray.model.load import load_replica
from datainf_ray.request.encoding import encoder_for
from datainf_ray.request.job import Job, prepare
from tests.diffusion import pipelines


def configuration(folder: Path, model: dict[str, Any], **diffusion: Any) -> RunConfig:
    return load_config({
        "model": model, "output": str(folder / "run"), "cluster": {"max_workers": 1, "chunk_rows": 4},
        "train": {"path": str(folder / "train.parquet"), "id": "name"},
        "queries": {"path": str(folder / "queries.parquet"), "id": "name"},
        "diffusion": {"timesteps": pipelines.TIMESTEPS, "resolution": pipelines.SIDE} | diffusion,
    })  # fmt: skip


def examples_of(job: Job) -> list[Example]:
    """All training rows, as a worker encodes them."""
    corpus, tokenizer = job.corpora["train"], load_tokenizer(job.config.model, None, job.task)
    encoder = encoder_for(job.config, "train", corpus, job.facts, tokenizer)
    return encoder.encode(RowReader(corpus).read(rows_chunk(corpus, range(corpus.rows))))


def captured(job: Job, most_tokens: int, double: bool = True) -> tuple[dict[str, Tensor], Tensor, Any]:
    """{block: rows × size} and the losses of the job's first rows, as a worker takes them; in float64."""
    replica = load_replica(job.config.model, job.task)
    if double:
        replica.model.double()
    replica.most_tokens = most_tokens
    examples = examples_of(job)
    batch = job.task.batch(examples, range(len(examples)), 0)
    got = {b.name: torch.zeros(len(batch), b.size, dtype=torch.float64) for b in replica.blocks}
    came = []

    def consume(block: str, gradients: Tensor, rows: Tensor) -> None:
        came.append(block)
        got[block][rows] = gradients.double()

    losses = replica.gradients(batch, consume)
    assert sorted(came) == sorted(got)  # each once
    assert replica.path == "hooks"
    assert [b.name for b in replica.blocks] == [b.name for b in job.facts.blocks]
    return got, losses, replica


#: A family, settings of its scheduler, and of the configuration's `diffusion`; "texts": a text encoder has a LoRA.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sd": ("sd", {}, {}), "sd, v": ("sd", {"prediction_type": "v_prediction"}, {}), "sdxl": ("sdxl", {}, {}),
    "sd3": ("sd3", {}, {}), "flux": ("flux", {}, {}), "sd, the same noise": ("sd", {}, {"noise": "shared"}),
    "flux, the mean": ("flux", {}, {"combine": "mean"}), "sd, texts too": ("sd", {"texts": True}, {}),
    "sd, Min-SNR": ("sd", {}, {"min_snr_gamma": 5.0}),
    "sdxl, v, Min-SNR": ("sdxl", {"prediction_type": "v_prediction"}, {"min_snr_gamma": 0.5, "combine": "mean"}),
    "sd, offset": ("sd", {}, {"noise_offset": 0.1}),
    "sdxl, v, both": (
        "sdxl", {"prediction_type": "v_prediction"}, {"noise_offset": 0.35, "min_snr_gamma": 1.0, "noise": "shared"}
    ),
    "sd3, texts too": ("sd3", {"texts": True}, {"combine": "mean"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_autograds_on_the_training_loss(case: str, tmp_path: Path) -> None:
    family, scheduler, diffusion = CASES[case]
    model = pipelines.make(tmp_path, family, **scheduler)
    rows = pipelines.write_rows(tmp_path / "train.parquet", 3, 1)
    pipelines.write_rows(tmp_path / "queries.parquet", 2, 2)
    trainer = pipelines.Trainer(model, family)
    shared = diffusion.get("noise") == "shared"
    how = {"shared": shared, "gamma": diffusion.get("min_snr_gamma"), "offset": diffusion.get("noise_offset")}
    want = trainer.gradients(rows, **how)
    losses = torch.tensor([[trainer.loss(row, t, **how).item() for t in pipelines.TIMESTEPS] for row in rows])
    job = prepare(configuration(tmp_path, model, **diffusion))
    assert all(example.status == "ok" for example in job.examples["train"])
    least = job.examples["train"][0].lengths[0]
    for most_tokens in (10**9, 2 * 3 * least):  # all pairs at once; all rows with two draws, and with the third
        got, found, _ = captured(job, most_tokens)
        torch.testing.assert_close(found.double(), losses.mean(1).double(), rtol=1e-5, atol=0)
        for name, g in want.items():
            if diffusion.get("combine") == "mean":
                assert_near(got[name], g.mean(1))
            else:
                for k, t in enumerate(pipelines.TIMESTEPS):
                    assert_near(got[f"t{t}/{name}"], g[:, k])
    assert len(got) == len(want) * (1 if "combine" in diffusion else len(pipelines.TIMESTEPS))


def assert_near(got: Tensor, want: Tensor) -> None:
    assert (want.norm(dim=1) > 0).all()
    assert float(((got - want).norm(dim=1) / want.norm(dim=1)).max()) < 1e-5


def test_what_does_not_depend_on_the_timestep_is_computed_once_and_row_by_row(tmp_path: Path) -> None:
    """Whatever rows are in a batch, and in whichever sweep, latents and embeddings have the same bits."""
    model = pipelines.make(tmp_path, "sdxl")
    pipelines.write_rows(tmp_path / "train.parquet", 3, 1)
    pipelines.write_rows(tmp_path / "queries.parquet", 2, 2)
    job = prepare(configuration(tmp_path, model))
    replica = load_replica(job.config.model, job.task)
    calls: list[int] = []
    replica.model.vae.encoder.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    examples = examples_of(job)
    for positions in ([0, 1, 2], [2, 0], [1]):
        batch = job.task.batch(examples, positions, 0)
        replica.gradients(batch, lambda block, gradients, rows: None)
    assert calls == [1, 1, 1]
    draws = job.task.draws
    assert draws is not None
    whole = draws.of_rows(replica.model, job.task.batch(examples, [0, 1, 2], 0).values)
    for k in range(3):
        alone = draws.of_rows(replica.model, job.task.batch(examples, [k], 0).values)
        assert all(torch.equal(x[0], whole[name][k]) for name, x in alone.items())
    assert {"latents", "keys", "sizes", "states", "pooled"} == {*whole}


def test_the_driver_keeps_few_pictures(tmp_path: Path) -> None:
    model = pipelines.make(tmp_path, "sd")
    pipelines.write_rows(tmp_path / "train.parquet", 20, 1)
    pipelines.write_rows(tmp_path / "queries.parquet", 20, 2)
    job = prepare(configuration(tmp_path, model))
    kept = [example for some in job.examples.values() for example in some if example.values]
    assert {*map(id, job.sample)} == {*map(id, kept)}
    assert 2 <= len(kept) <= 4


def with_prior(path: Path, values: list[Any]) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column("class", pa.array(values)), path)


@pytest.mark.parametrize(("family", "values"), [("sd", [False, True]), ("sd3", ["0", "True"])])
def test_a_pair_of_dreambooth(family: str, values: list[Any], tmp_path: Path) -> None:
    """instance + W · class, as diffusers' train_dreambooth_lora has it: the gradient of the pair is the rows' sum."""
    weight = 0.3
    model = pipelines.make(tmp_path, family)
    rows = pipelines.write_rows(tmp_path / "train.parquet", 2, 1)
    rows[1]["image"] = rows[0]["image"]  # of one content, but for what they are: nothing of theirs is shared by mistake
    rows[1]["prompt"] = rows[0]["prompt"]
    images = [{"bytes": row["image"], "path": None} for row in rows]
    table = {"name": [row["name"] for row in rows], "prompt": [row["prompt"] for row in rows], "image": images}
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    with_prior(tmp_path / "train.parquet", values)
    pipelines.write_rows(tmp_path / "queries.parquet", 2, 2)
    config = configuration(tmp_path, model, prior_loss_weight=weight, noise="shared")
    columns = {"prompt": "prompt", "image": "image", "prior": "class"}
    job = prepare(load_config(config, **{"train.columns": columns}))
    got, found, _ = captured(job, 10**9)
    trainer = pipelines.Trainer(model, family)
    losses = torch.tensor(
        [[trainer.loss(row, t, shared=True).item() for t in pipelines.TIMESTEPS] for row in rows]
    ).mean(1)
    torch.testing.assert_close(found.double(), (losses * torch.tensor([1, weight])).double(), rtol=1e-5, atol=0)
    for t in pipelines.TIMESTEPS:
        instance, prior = (trainer.loss(row, t, shared=True) for row in rows)
        loss = instance + weight * prior
        grads = torch.autograd.grad(loss, list(trainer.named.values()))
        for name, g in zip(trainer.named, grads, strict=True):
            assert_near(got[f"t{t}/{name}"].sum(0, keepdim=True), g.flatten()[None])
            assert_near(got[f"t{t}/{name}"][1:], got[f"t{t}/{name}"][:1] * weight)  # the same but for the weight
    asked = [example for example in job.examples["queries"] if example.values]
    assert asked
    assert all(example.values["weight"] == 1 for example in asked)


def test_rows_that_do_not_say_whether_they_are_of_the_class(tmp_path: Path) -> None:
    model = pipelines.make(tmp_path, "sd")
    pipelines.write_rows(tmp_path / "train.parquet", 3, 1)
    with_prior(tmp_path / "train.parquet", ["true", "perhaps\x1b", None])
    pipelines.write_rows(tmp_path / "queries.parquet", 2, 2)
    config = configuration(tmp_path, model, prior_loss_weight=0.3)
    columns = {"prompt": "prompt", "image": "image", "prior": "class"}
    examples = prepare(load_config(config, **{"train.columns": columns})).examples["train"]
    assert [example.detail for example in examples] == [
        "", "prior is perhaps\\x1b, neither true nor false", "prior is null",
    ]  # fmt: skip
    with pytest.raises(RequestError, match=r"^train.columns: .* task text-to-image takes prompt\+image\+prior"):
        prepare(config)
    with pytest.raises(RequestError, match=r"^train.columns: prior: task text-to-image has no such role"):
        prepare(load_config(config, **{"train.columns": columns, "diffusion.prior_loss_weight": None}))
