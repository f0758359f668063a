"""LoRA files as diffusers, kohya's trainer and PEFT save them: their scale, their blocks, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig
from datainf_ray.diffusion.load import load_pipeline
from datainf_ray.diffusion.parts import Parts
from datainf_ray.model.inspect import ModelFacts, inspect_model
from datainf_ray.model.quiet import quiet
from datainf_ray.tasks.register import task_of
from tests.diffusion import pipelines
from tests.diffusion.pipelines import ALPHA, ATTENTION, RANK

NAME = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    pipelines.make(folder, "sd")
    pipelines.as_kohya(folder, 1.0)
    return folder


def asked(made: Path, adapter: Path, **more: Any) -> ModelConfig:
    return ModelConfig(base=str(made / "base"), adapter=str(adapter), task="text-to-image", **more)


def facts(model: ModelConfig) -> ModelFacts:
    return inspect_model(model, task_of(model))


def loaded(model: ModelConfig) -> Parts:
    return load_pipeline(model, torch.device("cpu"))


def scales(parts: Parts) -> set[float]:
    return {layer.scaling["default"] for layer in parts.modules() if hasattr(layer, "scaling")}


def values(parts: Parts) -> dict[str, torch.Tensor]:
    return {n.replace(".default", ""): p for n, p in parts.named_parameters() if "lora_" in n}


@pytest.mark.parametrize(
    ("file", "alpha", "scale", "told"),
    [
        ("lora", None, ALPHA / RANK, True), ("lora/" + NAME, None, ALPHA / RANK, True),
        ("kohya", None, 1.0 / RANK, True), ("kohya/style.safetensors", None, 1.0 / RANK, True),
        ("silent", None, 1.0, False), ("silent", 4.0, ALPHA / RANK, True),
    ],
)  # fmt: skip
def test_the_scale_is_the_trainings(made: Path, file: str, alpha: float | None, scale: float, told: bool) -> None:
    model = asked(made, made / file, lora_alpha=alpha)
    there, parts = facts(model), loaded(model)
    assert scales(parts) == {scale}
    notes = [note for note in there.notes if "does not say the LoRA's alpha" in note]
    assert len(notes) == (0 if told else 1)
    assert not notes or notes[0].startswith(f"{NAME} does not say")
    assert [b.name.removeprefix("t83/") for b in there.blocks[: len(values(parts))]] == [*values(parts)]
    want = load_file(made / "lora" / NAME)
    for name, value in values(parts).items():
        torch.testing.assert_close(value, want[name], rtol=0, atol=0)


def test_what_kohyas_header_says(made: Path, tmp_path: Path) -> None:
    header = {"ss_network_alpha": "3", "ss_min_snr_gamma": "5.0", "ss_noise_offset": "None",
              "ss_prior_loss_weight": "1.0", "ss_num_train_images": "120"}  # fmt: skip
    model = asked(made, edited(made, tmp_path, lambda state: None, header))
    assert scales(loaded(model)) == {3 / RANK}
    assert [*facts(model).notes] == [
        "the header of one.safetensors says min_snr_gamma 5, and the loss here is without it: "
        "set diffusion.min_snr_gamma: 5"
    ]
    assert facts(model).task["trained"] == {"all": 120, "file": "one.safetensors"}


def test_a_folder_of_peft(made: Path, tmp_path: Path) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(made / "base" / "unet")
    wrapped = get_peft_model(unet, LoraConfig(r=2, lora_alpha=6, target_modules=ATTENTION, init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "peft")
    parts = loaded(asked(made, tmp_path / "peft"))
    assert scales(parts) == {3.0}
    own = {n.removeprefix("base_model.model."): p for n, p in wrapped.named_parameters() if "lora_" in n}
    assert len(values(parts)) == len(own)
    for name, value in values(parts).items():
        torch.testing.assert_close(value, own[name.removeprefix("unet.").replace(".weight", ".default.weight")])


def test_convolutions_too(tmp_path: Path) -> None:
    model = pipelines.make(tmp_path, "sd", [*ATTENTION, "conv1", "conv_shortcut"])
    pipelines.write_rows(tmp_path / "train.parquet", 2, 1)
    pipelines.write_rows(tmp_path / "queries.parquet", 1, 2)
    shapes = {b.name.partition("/")[2]: b.shape for b in facts(ModelConfig(**model)).blocks}
    kernels = {shape[2:] for name, shape in shapes.items() if name.endswith("lora_A.weight") and len(shape) == 4}
    assert kernels == {(3, 3), (1, 1)}


def edited(made: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], header: Any = None) -> Path:
    state = load_file(made / "silent" / NAME)
    change(state)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "one.safetensors", header)
    return tmp_path / "one.safetensors"


FIRST = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
REFUSED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "LoHa": (lambda s: s.update({"lora_unet_x.hada_w1_a": torch.ones(2)}), "is LoHa of LyCORIS; text-to-image attri"),
    "LoKr": (lambda s: s.update({"lora_unet_x.lokr_w1": torch.ones(2)}), "is LoKr of LyCORIS; "),
    "DoRA": (lambda s: s.update({"lora_unet_x.dora_scale": torch.ones(2)}), "is DoRA in kohya's form"),
    "another base": (lambda s: s.update({FIRST: torch.ones(2, 7)}), "does not fit the unet of "),
    "no place": (
        lambda s: s.update({"unet.nowhere.to_q.lora_A.weight": torch.ones(2, 8),
                            "unet.nowhere.to_q.lora_B.weight": torch.ones(8, 2)}),
        "have a place there; give the base that it was trained on"),
    "half a layer": (lambda s: s.pop(FIRST), "tensors for the unet"),
    "NaN": (lambda s: s[FIRST].view(-1)[:1].fill_(torch.nan), f"{FIRST} has 1 value of 16 that is not finite; take a "),
    "no part": (lambda s: s.update({"vae.x.lora_A.weight": torch.ones(2, 8)}), "has vae.x.lora_A.weight, and 0 more, "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_as_trained_is_refused_by_name(made: Path, tmp_path: Path, case: str) -> None:
    change, said = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        facts(asked(made, edited(made, tmp_path, change)))
    assert str(caught.value).startswith("model.adapter: ")
    assert said in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alpha", ["nan", "inf", "0.0"])
@pytest.mark.parametrize("where", ["header", "layer", "configuration"])
def test_an_alpha_that_is_no_scale_is_refused(made: Path, tmp_path: Path, where: str, alpha: str) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        if where == "layer":
            layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
            down = next(
                x for name, x in state.items() if "mid_block" in name and name.endswith("attn1.to_q.lora_A.weight")
            )
            up = next(
                x for name, x in state.items() if "mid_block" in name and name.endswith("attn1.to_q.lora_B.weight")
            )
            state.clear()
            state.update({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up})
            state[f"{layer}.alpha"] = torch.tensor(float(alpha))

    headers: dict[str, dict[str, str]] = {
        "header": {"ss_network_alpha": alpha},
        "layer": {},
        "configuration": {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": float(alpha)})},
    }
    with pytest.raises(RequestError, match=rf"alpha is {alpha}, and a LoRA's scale is its alpha over its rank"):
        facts(asked(made, edited(made, tmp_path, change, headers[where])))


def test_alpha_is_said_once(made: Path) -> None:
    for place in ("lora", "kohya"):
        with pytest.raises(
            RequestError, match=r"^model.lora_alpha: 4.0: has no effect: .* says its own; leave it out$"
        ):
            facts(asked(made, made / place, lora_alpha=4))


def test_which_file_it_is(made: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(made / "silent" / NAME, tmp_path / f"{name}.safetensors")
    with pytest.raises(RequestError, match=r"has 2 .safetensors files: a.safetensors, b.safetensors; name one$"):
        facts(asked(made, tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"^model.adapter: "):
        facts(asked(made, tmp_path / "empty"))
    (tmp_path / "empty" / "x.safetensors").write_bytes(b"no such thing")
    with pytest.raises(RequestError, match=r"x.safetensors: cannot be read: "):
        facts(asked(made, tmp_path / "empty"))


def test_a_family_that_is_not_known_is_named(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "base", tmp_path / "base")
    file = tmp_path / "base" / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "KandinskyPipeline"}))
    model = ModelConfig(base=str(tmp_path / "base"), adapter=str(made / "lora"), task="text-to-image")
    with pytest.raises(RequestError, match=r"is a KandinskyPipeline, of which .* write a task of your own"):
        facts(model)
    with pytest.raises(RequestError, match=r"no model_index.json there, which a pipeline of diffusers has"):
        facts(model.model_copy(update={"base": str(made)}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled": (lambda f: f.rename(f.with_suffix(".bin")), "its weights are pickled (diffusion_pytorch_model.bin)"),
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:-100]), "diffusion_pytorch_model.safetensors is truncated"),
    "absent": (lambda f: f.unlink(), "there is no diffusion_pytorch_model.safetensors; copy all of the model"),
    "no folder": (lambda f: shutil.rmtree(f.parent), "no unet/config.json there, which a pipeline of diffusers has"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_base_that_cannot_be_loaded_is_seen_before_a_worker_starts(made: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(made / "base", tmp_path / "base")
    change, said = BROKEN[case]
    change(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(RequestError) as caught:
        facts(ModelConfig(base=str(tmp_path / "base"), adapter=str(made / "lora"), task="text-to-image"))
    assert str(caught.value).startswith("model.base: ")
    assert said in str(caught.value)


def test_halves_alone_and_a_store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that was saved as fp16 alone, and both of base and LoRA in an archive."""
    with quiet():
        pipe = diffusers.DiffusionPipeline.from_pretrained(made / "base", torch_dtype=torch.float16)
        pipe.save_pretrained(tmp_path / "whole" / "base", variant="fp16")
    shutil.copy(made / "kohya" / "style.safetensors", tmp_path / "whole")
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "whole")
    monkeypatch.setenv("DATAINF_CACHE", str(tmp_path / "cache"))
    here = asked(tmp_path / "whole", tmp_path / "whole" / "style.safetensors")
    url = "zip://{}::" + str(tmp_path / "all.zip")
    there = here.model_copy(update={"base": url.format("base"), "adapter": url.format("style.safetensors")})
    assert facts(there) == facts(here)
    for model in (here, there):
        parts = loaded(model)
        assert scales(parts) == {0.5}
        assert (parts.dtype, next(parts.vae.parameters()).dtype) == (torch.float32, torch.float32)
    half = loaded(here.model_copy(update={"dtype": "float16"}))
    assert {p.dtype for n, p in half.unet.named_parameters() if "lora_" not in n} == {torch.float16}
    assert {p.dtype for p in values(half).values()} == {torch.float32}


def test_the_base_alone_computes_without_the_adapter(made: Path) -> None:
    parts = loaded(asked(made, made / "lora"))
    x, t, states = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 7, 16)
    own = parts.unet(x, t, states)[0]
    with parts.disable_adapter():
        base = parts.unet(x, t, states)[0]
    assert not torch.equal(own, base)
    torch.testing.assert_close(parts.unet(x, t, states)[0], own)
    plain = diffusers.UNet2DConditionModel.from_pretrained(made / "base" / "unet").eval()
    torch.testing.assert_close(plain(x, t, states)[0], base)
