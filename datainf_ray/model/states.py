"""A row's last hidden state in a gradient's place, by a forward pass alone: what `representation` compares.

The state is what the model's head is fed: the input of the output embedding, and where there is none, the backbone's
last hidden state. It is taken at the row's last token, behind which nothing comes and which has seen all others; of an
encoder with a classification head at the first one, which is the one that such a head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.influence.block import HIDDEN_STATE, Block
from datainf_ray.model.alike import forget_lengths
from datainf_ray.model.capture import Consume
from datainf_ray.model.forward import bare_rows, base_of
from datainf_ray.model.replica import BatchLike, Replica, wide
from datainf_ray.model.seen import See, placing


def state_block(hidden_size: int) -> Block:
    """The one block that there is: h numbers a row. Raises `RequestError` where the model does not say how many."""
    if not hidden_size:
        problem = "needs hidden states, and the model's configuration has no hidden_size"
        raise RequestError("method.name", "representation", problem, "use another method")
    return Block("last_hidden_state", HIDDEN_STATE, (hidden_size,))


class StateReplica(Replica):
    """A replica that gives every row's state (h, as one block) where a `Replica` gives gradients; and its loss."""

    def _find_blocks(self, model: nn.Module) -> None:
        base = base_of(model)
        config = getattr(base, "config", None)
        text: Any = config.get_text_config() if config is not None else None
        self.blocks = (state_block(getattr(text, "hidden_size", 0) or 0),)
        self.reason, self._capture = None, None
        self._site, self._fed = _site(base)
        self._first = not self._fed and _is_encoder(config)

    def _together(self, batch: BatchLike, consume: Consume, see: See | None) -> Tensor:
        rows = torch.arange(len(batch), device=self.device)
        with bare_rows() if self.alike.equal else nullcontext():
            losses, states = self._forward(batch, False, placing(see, rows))
        consume(self.blocks[0].name, states, rows)
        return losses

    def alone(
        self,
        batch: BatchLike,
        position: int,
        consume: Consume,
        plain: bool = False,
        see: See | None = None,
    ) -> Tensor:
        """One bare example: see `Replica.alone`."""
        rows = torch.tensor([position], device=self.device)
        with bare_rows():
            losses, states = self._forward(batch, plain, placing(see, rows))
        consume(self.blocks[0].name, states, rows)
        return losses[0]

    @torch.no_grad()
    def _forward(self, batch: BatchLike, plain: bool, see: Callable[[Tensor], None] | None) -> tuple[Tensor, Tensor]:
        """The b losses, and the b × h states, on `device`. Raises `RunFailedError` where there is not one a token."""
        forget_lengths(self.growing)
        lengths = [each[-1] for each in batch.lengths]  # of an encoder-decoder, the decoder's
        with self._seen() as found:
            losses = self.losses(batch, plain, see)
        h = self.blocks[0].size
        if len(found) != 1 or found[0].shape != (len(batch), max(lengths), h):
            shapes = ", ".join(str(tuple(each.shape)) for each in found) or "none"
            raise RunFailedError(
                f"method.name: representation needs one state for every token, {len(batch)} × {max(lengths)} × {h}; "
                f"the model has {shapes}: use another method"
            )
        at = [0 if self._first else length - 1 for length in lengths]
        states = found[0][torch.arange(len(batch)), torch.tensor(at)]
        return losses, states.to(self.device, wide(states))

    @contextmanager
    def _seen(self) -> Iterator[list[Tensor]]:
        """Inside, the states of every forward pass are put into the list."""
        found: list[Tensor] = []

        def before(module: nn.Module, given: tuple[Any, ...]) -> None:
            found.append(given[0].detach())

        def after(module: nn.Module, given: tuple[Any, ...], gives: Any) -> None:
            found.append((gives if isinstance(gives, Tensor) else gives[0]).detach())

        site = self._site
        hook = site.register_forward_pre_hook(before) if self._fed else site.register_forward_hook(after)
        try:
            yield found
        finally:
            hook.remove()


def _site(base: Any) -> tuple[nn.Module, bool]:
    """Where the states are seen: the output embedding, which is fed them (true), or the backbone, which gives them."""
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if isinstance(head, nn.Module):
        return head, True
    backbone = getattr(base, "base_model", None)
    if isinstance(backbone, nn.Module) and backbone is not base:
        return backbone, False
    problem = f"finds no last hidden state: a {type(base).__name__} has neither an output embedding nor a backbone"
    raise RequestError("method.name", "representation", problem, "use another method")


def _is_encoder(config: Any) -> bool:
    """Whether a model looks both ways, and its classification head reads the first token: BERT and its kin.

    Those are the ones that can be trained to fill in masked tokens, but for encoder-decoders.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
