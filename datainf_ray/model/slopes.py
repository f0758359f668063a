"""How the loss of each of a row's tokens changes along a direction in the space of the blocks.

    slope_t = Σ_l ∂loss_t/∂θ_l · r_l

A row's gradient is a weighted sum of its tokens' gradients, and so its product with r is the weighted sum of slopes.
All slopes of a batch come from one forward pass that carries derivatives along (forward-mode differentiation): what
an output changes by, when the blocks change by r. No gradient of a token is ever formed. Where a layer has no rule for
that, as some kernels and quantized ones have none, there is one backward pass a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from datainf_ray.model.alike import forget_lengths
from datainf_ray.model.forward import bare_rows
from datainf_ray.model.loss import PIECE_BYTES
from datainf_ray.model.objective import TokenLosses, Values
from datainf_ray.model.replica import BatchLike, Replica, wide
from datainf_ray.model.shortcut import LanguageShortcut

MOST_BACKWARD = 512  #: target tokens of a row, of each of which a backward pass is taken where there is no other way

#: What transformers may be told to compute by, for a rule to be there.
_PLAIN = {"_attn_implementation_internal": ("sdpa", "eager"), "_experts_implementation_internal": ("eager",)}

#: A direction: for every block's name a vector of its size.
Direction = Mapping[str, Tensor]


class NoSlopesError(ValueError):
    """The slopes of a row cannot be had; it says why."""


def slopes(replica: Replica, token_losses: TokenLosses, batch: BatchLike, direction: Direction) -> list[Tensor]:
    """For each of the b rows of a batch, the slopes of its tokens: float64 on the CPU, as long as its labels.

    A token that is no target has slope 0. `token_losses` gives the losses of the tokens from the model.
    """
    found: dict[int, Tensor] = {}
    for group in replica.alike.groups(batch.lengths):
        some = batch.pick(group)
        bare = bare_rows() if replica.alike.equal or len(group) == 1 else nullcontext()
        with bare:
            table = _forward(replica, token_losses, some.values, direction)
        found |= zip(group, table.double().cpu(), strict=True)
    return [found[k] for k in range(len(batch))]


def _forward(replica: Replica, token_losses: TokenLosses, values: Values, direction: Direction) -> Tensor:
    """b × s slopes, from one forward pass. Raises what torch raises where something has no rule."""
    shortcut = replica.shortcut
    if isinstance(shortcut, LanguageShortcut) and shortcut.head is not None:
        states = _along(replica, shortcut.states, values, direction)
        return _by_head(*states, shortcut.head, values["labels"], shortcut.shift)
    return _along(replica, lambda values: token_losses(replica.model, values), values, direction)[1]


def backward_slopes(
    replica: Replica, token_losses: TokenLosses, batch: BatchLike, direction: Direction
) -> list[Tensor]:
    """The same, from a backward pass for every target token: right for any layer, and slow. For a batch of one.

    Raises `NoSlopesError` where there are more than `MOST_BACKWARD` of them.
    """
    blocks = {name: parameter for name, parameter in replica.parameters.items() if name in direction}
    values = batch.one(0).values
    targets = int((values["labels"] != -100).sum())
    if targets > MOST_BACKWARD:
        said = f"the model's layers have no forward-mode derivative, and the row has {targets:,} target tokens"
        raise NoSlopesError(f"{said}: a backward pass for each is taken of at most {MOST_BACKWARD}")
    for parameter in blocks.values():
        parameter.requires_grad_(True)
    try:
        forget_lengths(replica.growing)
        with bare_rows():
            losses = token_losses(replica.model, values)[0] * replica.scale
        out = torch.zeros(len(losses), dtype=torch.float64)
        for t in losses.detach().nonzero().flatten().tolist():
            found = torch.autograd.grad(losses[t], [*blocks.values()], retain_graph=True, allow_unused=True)
            for (name, _), gradient in zip(blocks.items(), found, strict=True):
                if gradient is not None:
                    along = direction[name].to(gradient.device, wide(gradient))
                    out[t] += float(gradient.to(wide(gradient)).flatten() @ along.flatten()) / replica.scale
    finally:
        for parameter in blocks.values():
            parameter.requires_grad_(False)
    return [out]


class _Called(nn.Module):
    """A model, and what is asked of it."""

    def __init__(self, model: nn.Module, run: Callable[[Values], Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, values: Values) -> Tensor:
        return self.run(values)


def _along(
    replica: Replica, run: Callable[[Values], Tensor], values: Values, direction: Direction
) -> tuple[Tensor, Tensor]:
    """What `run` gives of the model, and how that changes along the direction."""
    called = _Called(replica.model, run)
    names = {id(parameter): name for name, parameter in called.named_parameters()}
    forget_lengths(replica.growing)
    with torch.no_grad(), _plain_kernels(replica.model), forward_ad.dual_level():
        duals = {}
        for name, vector in direction.items():
            parameter = replica.parameters[name].detach()
            tangent = vector.to(parameter.device, parameter.dtype).view_as(parameter)
            duals[names[id(replica.parameters[name])]] = forward_ad.make_dual(parameter, tangent)
        out = functional_call(called, duals, (values,))
        primal, tangent = forward_ad.unpack_dual(out)
        return primal, torch.zeros_like(primal) if tangent is None else tangent


@contextmanager
def _plain_kernels(model: nn.Module) -> Iterator[None]:
    """Attention and experts by kernels that have a rule; of torch's own for attention the plain one alone has."""
    configs = {
        id(found): vars(found) for m in model.modules() if hasattr(found := getattr(m, "config", None), "__dict__")
    }
    before = []
    for settings in configs.values():
        for key, plain in _PLAIN.items():
            if settings.get(key) not in (None, *plain):
                before.append((settings, key, settings[key]))
                settings[key] = plain[0]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for settings, key, value in before:
            settings[key] = value


def _by_head(hidden: Tensor, change: Tensor, head: nn.Linear, labels: Tensor, shift: int) -> Tensor:
    """b × s slopes from the b × s × h states before the frozen output embedding, and their change.

    With z = W h_t + c and p = softmax(z), slope_t = Σ_v (p_v − [v = label_t]) (W dh_t)_v. Logits are held for a piece
    of the targets at a time.
    """
    weight, bias, there = head.weight, head.bias, head.weight.device
    labels = labels.to(there)
    targets = labels != -100
    targets[:, :shift] = False
    rows, places = targets.nonzero(as_tuple=True)
    kind = torch.promote_types(weight.dtype, torch.float32)
    piece = max(1, PIECE_BYTES.get(there.type, PIECE_BYTES["cuda"]) // (2 * kind.itemsize * len(weight)))
    out = torch.zeros(labels.shape, dtype=torch.float64, device=there)
    for first in range(0, len(rows), piece):
        row, place = rows[first : first + piece], places[first : first + piece]
        h, dh = (x.to(there)[row, place - shift].to(weight.dtype) for x in (hidden, change))
        logits, moves = (nn.functional.linear(x, weight).to(kind) for x in (h, dh))
        if bias is not None:
            logits = logits + bias.to(kind)
        label = labels[row, place][:, None]
        chances = torch.softmax(logits, 1)
        expected = (chances * moves).sum(1) - moves.gather(1, label)[:, 0]
        out[row, place] = expected.double()
    return out
