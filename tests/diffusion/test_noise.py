"""Noise: normal numbers to the last bits, of the row's id, the timestep and the seed alone."""

from __future__ import annotations

import statistics

import pytest
import torch

from datainf_ray.diffusion.noise import key_of, noise, normal

INVERSE = statistics.NormalDist().inv_cdf
BITS = [
    [
        "0x1.103c8c0000000p-2",
        "-0x1.9e56e00000000p-1",
        "-0x1.1f2c580000000p+0",
        "-0x1.ec4abc0000000p-6",
        "0x1.409db20000000p+0",
    ],
    [
        "-0x1.0529760000000p-2",
        "-0x1.5b83860000000p-1",
        "-0x1.31450e0000000p+0",
        "0x1.7a63560000000p-2",
        "0x1.c3026c0000000p-3",
    ],
]


def test_a_word_is_its_share_of_the_normal_distribution() -> None:
    words = torch.cat([
        torch.arange(500), 2**32 - 1 - torch.arange(500), 2**31 - 250 + torch.arange(500),
        torch.randint(2**32, (5000,), generator=torch.Generator().manual_seed(0)),
        torch.tensor([int(share * 2**32) for share in (0.074, 0.076, 0.924, 0.926, 1.4e-11, 1e-9)]),
    ])  # fmt: skip
    want = torch.tensor([INVERSE((word + 0.5) / 2**32) for word in words.tolist()], dtype=torch.float64)
    torch.testing.assert_close(normal(words), want, rtol=1e-12, atol=1e-15)


def test_the_bits_are_these_for_ever() -> None:
    """A change of them is another run's: an index, or a run half done, holds gradients by these."""
    keys = torch.tensor([key_of("train.parquet#0"), key_of("b")])
    found = noise(keys, torch.tensor([25, 925]), 5, seed=7)
    assert [[x.hex() for x in row] for row in found.tolist()] == BITS


def test_a_pairs_noise_does_not_depend_on_the_others() -> None:
    names = ["a", "b", "a"]
    keys, times = torch.tensor([key_of(n) for n in names]), torch.tensor([25, 25, 525])
    together = noise(keys, times, 1003, seed=1)
    for k in range(3):
        assert torch.equal(noise(keys[k : k + 1], times[k : k + 1], 1003, seed=1)[0], together[k])
        assert torch.equal(noise(keys[k : k + 1], times[k : k + 1], 17, seed=1)[0], together[k, :17])
    assert len({tuple(row[:4].tolist()) for row in [*together, *noise(keys, times, 1003, seed=2)]}) == 6


def test_it_is_normal_and_independent() -> None:
    keys = torch.tensor([key_of(str(k)) for k in range(16)])
    found = noise(keys, torch.arange(16), 2**12, seed=0).double()
    assert abs(float(found.mean())) < 4 / 2**8  # its standard error is 2⁻⁸
    assert abs(float(found.var()) - 1) < 4 * 2**0.5 / 2**8
    products = found @ found.T / 2**12 - torch.eye(16, dtype=torch.float64)
    assert float(products.abs().max()) < 5 * 2**0.5 / 2**6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_the_same_bits() -> None:
    words = torch.randint(2**32, (2**20,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(normal(words), normal(words.cuda()).cpu())
