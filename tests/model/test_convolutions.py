"""Convolutions in float64, alone and under PEFT's LoRA and DoRA, against plain autograd on each image alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from datainf_ray.model.capture import Capture, unsupported
from datainf_ray.model.samplers import generic, sampler_of

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], bool]] = {  # and whether there is a formula
    "1 × 1": (lambda: nn.Conv2d(4, 6, 1), True),
    "1 × 1, every other pixel": (lambda: nn.Conv2d(4, 6, 1, stride=2), True),
    "3 × 3": (lambda: nn.Conv2d(4, 6, 3, padding=1), True),
    "3 × 2, stretched, with steps": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), bias=False), True),
    "along one axis": (lambda: nn.Conv1d(4, 6, 3, 2, 1, 2), True),
    "1 along one axis": (lambda: nn.Conv1d(4, 6, 1), True),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), False),
    "padded by what is there": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), False),
    "padded to the same size": (lambda: nn.Conv2d(4, 6, 3, padding="same"), False),
    "along three axes": (lambda: nn.Conv3d(4, 6, 2), False),
    "a norm over the batch, in eval mode": (lambda: nn.BatchNorm2d(4).eval(), False),
    "a norm over groups": (lambda: nn.GroupNorm(2, 4), False),
}


def images(layer: nn.Module) -> Tensor:
    axes = 1 if isinstance(layer, nn.Conv1d) else 3 if isinstance(layer, nn.Conv3d) else 2
    return torch.randn(3, 4, *(7, 5, 4)[:axes], dtype=torch.float64)


def is_right(net: nn.Module, blocks: dict[str, nn.Parameter], x: Tensor) -> None:
    want = [torch.autograd.grad(net(row[None]).sin().square().sum(), list(blocks.values())) for row in x]
    assert unsupported(net, blocks) is None
    capture = Capture(net, blocks)
    net.requires_grad_(False)
    got: dict[str, Tensor] = {}
    with capture.into(lambda name, g, rows: got.update({name: g}), torch.arange(len(x))):
        net(x).sin().square().sum().backward()
    for k, name in enumerate(blocks):
        right = torch.stack([found[k].flatten() for found in want])
        torch.testing.assert_close(got[name], right, rtol=1e-8, atol=0)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_every_images_gradient_is_autograds(case: str) -> None:
    torch.manual_seed(0)
    make, known = CONVOLUTIONS[case]
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    assert (sampler_of(layer) is not None) == known
    assert sampler_of(layer) is not generic
    is_right(layer, dict(layer.named_parameters()), images(layer))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("case", ["1 × 1", "3 × 3", "1 along one axis", "padded to the same size"])
def test_lora_on_a_convolution(case: str, dora: bool) -> None:
    torch.manual_seed(0)

    layer = CONVOLUTIONS[case][0]()
    model = get_peft_model(nn.Sequential(layer), LoraConfig(r=2, target_modules=["0"], use_dora=dora)).double().eval()
    blocks = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(blocks) == (3 if dora else 2)
    for parameter in blocks.values():
        parameter.data += torch.randn_like(parameter)
    is_right(model, blocks, images(layer))
