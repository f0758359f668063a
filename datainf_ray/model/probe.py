"""What a causal model's forward pass can be spared, found out by trying it on a few tokens at start-up.

Its logits, where nothing but one plain, frozen linear layer (and at most a constant factor) lies between them and the
hidden states: then `chunked_losses` can take the layer's place. And its mask, where no position sees a later one: then
padding on the right changes nothing, and attention takes its causal kernel. No list of architectures would stay true.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from datainf_ray.model.samplers import is_plain_linear

#: Two rows that differ behind their second token.
TOKENS = ((1, 2, 1, 1), (1, 2, 2, 2))
_COMMON = 2
_LOUD = 1000.0  # far outside what a cap on logits lets through


@contextmanager
def standing_in(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`layer` computes something else inside. What accelerate has put around its forward method is put aside too."""
    own = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def find_head(base: nn.Module, trainable: Collection[nn.Parameter]) -> nn.Linear | str:
    """The output embedding, where its place may be taken; else why not."""
    of_head = getattr(base, "get_output_embeddings", None)
    head = of_head() if of_head else None
    if head is None:
        return "the model names no output embedding"
    # accelerate replaces the forward method of what it moves to its inputs, or inputs to it, and keeps the true one
    forward = vars(head).get("_old_forward", vars(head).get("forward", head.forward))
    if not is_plain_linear(head) or getattr(forward, "__func__", None) is not nn.Linear.forward:
        return f"the output embedding is a {type(head).__name__}, not a plain linear layer"
    if head.weight.is_meta:
        return "the output embedding is offloaded, and there only while it is used"
    if any(p is q for p in head.parameters() for q in trainable):
        return "the output embedding is trained"
    if head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks:
        return "hooks sit on the output embedding"
    return head


@torch.no_grad()
def reshapes_logits(run: Callable[[Tensor], Tensor], head: nn.Linear, device: torch.device) -> str | None:
    """Why a model's logits (`run`: b × s token ids to b × s × V) are not its head's output times a constant.

    The head is made to say 0, and then values from −1000 to 1000: a cap, a mask or a bias shows itself by what becomes
    of them, however small this model's own logits are. None where they come out as they went in, times one number.
    `device` is where the model takes its tokens.
    """
    tokens, there = torch.tensor(TOKENS, device=device), head.weight.device
    said = torch.zeros(*tokens.shape, head.out_features, device=there, dtype=head.weight.dtype)
    said[:, 1:] = torch.linspace(-_LOUD, _LOUD, head.out_features, device=there).to(said.dtype)
    fed: list[tuple[int, ...]] = []

    def speak(hidden: Tensor) -> Tensor:
        fed.append(tuple(hidden.shape))
        return said if hidden.shape[:-1] == said.shape[:-1] else said.new_zeros(*hidden.shape[:-1], said.shape[-1])

    with standing_in(head, speak):
        logits = run(tokens)
    if fed != [(*tokens.shape, head.in_features)]:
        return f"the output embedding is called {len(fed)} times in a forward pass, or not with one state per token"
    if logits.shape != said.shape:
        return f"the model gives logits of {logits.shape[-1]} tokens where its output embedding has {said.shape[-1]}"
    said, logits = said.to(logits.device).double(), logits.double()
    factor = logits[0, -1, -1] / said[0, -1, -1]
    room = 4 * torch.finfo(head.weight.dtype).eps * (factor * said).abs()
    if not bool(((logits - factor * said).abs() <= room).all()) or factor == 0:
        return "the model does more with its logits than its output embedding does (a cap, a mask or a bias)"
    return None


@torch.no_grad()
def is_causal(run: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    """Whether what a model gives for a token (`run`: b × s ids to b × s × anything) is the same whatever follows it."""
    one, other = run(torch.tensor(TOKENS, device=device))[:, :_COMMON]
    # the same up to rounding: a row's place in a product, or among experts, may change its last bits
    return bool((one - other).norm() <= max(1e-4, 4 * torch.finfo(one.dtype).eps) * one.norm())
