"""Sums over tokens are float32 or wider, whatever they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datainf_ray.model.capture import Capture

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_of_half_precision_tokens_are_summed_in_float32(device: str, dtype: torch.dtype, mixed: bool) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rows, tokens, width = 3, 2000, 40
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(rows, tokens, width, generator=generator) + 0.5).to(dtype).to(device)
    coefficients = (torch.randn(rows, tokens, 8, generator=generator) + 0.5).to(dtype).to(device)
    layer = nn.Linear(width, 8, device=device).to(dtype).requires_grad_(False)
    if mixed:  # as where a layer casts its input
        layer.forward = lambda given: nn.functional.linear(given.to(dtype), layer.weight, layer.bias)
        x = x.float()
    capture = Capture(layer, {"weight": layer.weight, "bias": layer.bias})
    got: dict[str, Tensor] = {}
    with capture.into(lambda name, g, at: got.update({name: g}), torch.arange(rows, device=device)):
        (layer(x) * coefficients).sum().backward()
    g = coefficients.double()
    want = {"weight": torch.einsum("bto,btd->bod", g, x.double()).flatten(1), "bias": g.sum(1)}
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), want[name], rtol=1e-5, atol=1e-5 * float(want[name].abs().max()))
    assert got.keys() == want.keys()
