"""The generator against its authors' figures; the projection's inner products, independence and golden values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.projection import Projector, as_matrix, philox, projected, projected_size, random_signs

WORD = 0xFFFFFFFF

GOLDEN = [  # the first and last 20 of 70 signs
    "-++++-+-----++--++-+ +++-------+++++-+-++",
    "+--+---+++--+++--+-+ +++---+--+-++-+-----",
    "-+++-+--+-+++++-+-+- -+---+++++-+-+--++++",
]


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([WORD] * 4, (WORD, WORD), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: list[int], key: tuple[int, int], want: list[int]) -> None:
    assert philox(torch.tensor([[1, 2, 3, 4], counter]), key)[1].tolist() == want


def text(signs: Tensor) -> list[str]:
    return ["".join("+" if sign > 0 else "-" for sign in row) for row in signs]


def test_signs_are_the_same_for_ever() -> None:
    """An index that was written by an earlier version is read with these very signs."""
    signs = random_signs("layers.0.q_proj.lora_A.weight", 3, 70, which=0, seed=7)
    assert [row[:20] + " " + row[-20:] for row in text(signs)] == GOLDEN
    assert text(random_signs("layers.0.q_proj.lora_A.weight", 3, 70, which=1, seed=7)) != text(signs)
    assert text(random_signs("layers.0.q_proj.lora_A.weight", 3, 70, which=0, seed=7 + 2**32)) != text(signs)
    assert text(random_signs("layers.0.q_proj.lora_B.weight", 3, 70, which=0, seed=7)) != text(signs)
    assert text(random_signs("layers.0.q_proj.lora_A.weight", 2, 70, which=0, seed=7)) == text(signs)[:2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_projects_with_the_same_matrices() -> None:
    blocks = [Block("a", "", (100, 300)), Block("b", "", (8, 70))]
    eye = {b.name: torch.eye(b.size)[:: max(1, b.size // 50)] for b in blocks}  # so that P and Q themselves come out
    here, there = Projector(blocks, 48, 3), Projector(blocks, 48, 3, "cuda")
    for name, g in eye.items():
        assert torch.equal(here.apply(name, g), there.apply(name, g.cuda()).cpu())


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (30, 50), (90,), (6, 5, 8)])
def test_inner_products_are_unbiased_and_vary_as_stated(shape: tuple[int, ...]) -> None:
    """Over seeds, against the exact product: within four standard errors, and no wider than the documented bound."""
    block, side, seeds = Block("block", "", shape), 8, 400
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(block.size, generator=generator)
    g = torch.stack([common + torch.randn(block.size, generator=generator) for _ in range(2)])
    exact = float(g[0].double() @ g[1].double())
    products = []
    for seed in range(seeds):
        p = Projector([block], side, seed).apply("block", g)
        assert p.shape == (2, projected_size(block, side))
        products.append(float(p[0] @ p[1]))
    found = torch.tensor(products, dtype=torch.float64)
    a, b = (shape[0], block.size // shape[0]) if len(shape) > 1 else (1, block.size)
    relative = (4 / side + 4 / side**2) if a > side and b > side else 2 / side
    assert float(found.var()) < relative * float(g[0] @ g[0]) * float(g[1] @ g[1])
    standard_error = float(found.std()) / seeds**0.5
    assert abs(float(found.mean()) - exact) < 4 * standard_error
    assert 4 * standard_error < 0.2 * exact  # else the line above says nothing


def test_the_variance_of_a_one_sided_projection_is_the_formulas() -> None:
    block, side = Block("block", "", (3, 20)), 8
    generator = torch.Generator().manual_seed(2)
    m, n = torch.randn(2, 3, 20, generator=generator)
    s = (n.T @ m + m.T @ n) / 2
    want = 2 / side * float(s.square().sum() - s.diagonal().square().sum())
    g = torch.stack([m.flatten(), n.flatten()])
    products = [Projector([block], side, seed).apply("block", g) for seed in range(3000)]
    found = torch.tensor([float(p[0] @ p[1]) for p in products])
    assert float(found.var()) == pytest.approx(want, rel=0.12)  # the standard error of a variance: √(2/3000) = 2.6 %


def test_a_projection_is_the_product_with_both_matrices() -> None:
    block, side, seed = Block("block", "", (20, 30)), 16, 5
    g = torch.randn(3, 600, generator=torch.Generator().manual_seed(3))
    p = random_signs("block", side, 20, which=0, seed=seed) / 4
    q = random_signs("block", side, 30, which=1, seed=seed) / 4
    got = Projector([block], side, seed).apply("block", g)
    for row in range(3):
        want = (p @ g[row].view(20, 30) @ q.T).flatten()
        assert float((got[row] - want).norm() / want.norm()) < 1e-6


def test_what_is_not_larger_than_the_side_is_left_as_it_is() -> None:
    blocks = [Block("a", "", (8, 16)), Block("b", "", (16,)), Block("c", "", (8, 17)), Block("d", "", ())]
    projector = Projector(blocks, 16, seed=0)
    assert [projector.size(b.name) for b in blocks] == [128, 16, 128, 1]
    for block in blocks:
        g = torch.randn(5, block.size)
        assert torch.equal(projector.apply(block.name, g), g) == (block.name != "c")
        assert torch.equal(Projector(blocks, None, seed=0).apply(block.name, g), g)


def test_a_block_of_any_dimensions_is_a_matrix() -> None:
    assert [as_matrix(shape) for shape in ((), (7,), (7, 5), (7, 5, 3))] == [(1, 1), (1, 7), (7, 5), (7, 15)]


def test_gradients_of_any_precision_come_out_as_float32() -> None:
    block = Block("a", "", (4, 40))
    for dtype in (torch.float64, torch.bfloat16):
        assert Projector([block], 8, 0).apply("a", torch.ones(2, 160, dtype=dtype)).dtype == torch.float32


def test_a_blocks_projection_depends_on_no_other_block() -> None:
    blocks = [Block(name, "", (20, 30)) for name in "abc"]
    g = torch.randn(4, 600, generator=torch.Generator().manual_seed(4))
    alone = Projector([blocks[1]], 8, seed=9).apply("b", g)
    among = Projector(blocks, 8, seed=9)
    assert torch.equal(among.apply("b", g), alone)
    assert not torch.equal(among.apply("a", g), alone)
    assert not torch.equal(Projector([blocks[1]], 8, seed=10).apply("b", g), alone)
    assert torch.equal(projected(blocks[1], {"vector": g}, side=8, seed=9)["vector"], alone)
