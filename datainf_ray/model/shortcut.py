"""The quick way to a language model's losses: no more logits at a time than a piece of them, and no needless mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import one_line
from datainf_ray.model.forward import base_of
from datainf_ray.model.loss import chunked_losses, token_losses
from datainf_ray.model.objective import Reduction, Values
from datainf_ray.model.probe import TOKENS, find_head, is_causal, reshapes_logits, standing_in


class LanguageShortcut:
    """What a language model can be spared, found out by trying it when the object is made; see `probe`.

    `logits(model, values, masked)` calls the model: b × s × V. `tokens(ids)` are the values of a batch that has the
    b × s `ids` where the logits come from. `shift` is as in `token_losses`. `whole` says why logits are formed for
    whole batches, if they are. `unmasked` says whether batches padded on the right go without a mask: only with
    `spare_mask`, and where the model is causal.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Parameter],
        device: torch.device,
        logits: Callable[[nn.Module, Values, bool], Tensor],
        tokens: Callable[[Tensor], Values] = lambda ids: {"input_ids": ids},
        shift: int = 1,
        spare_mask: bool = False,
    ) -> None:
        self.model, self.shift, self._logits = model, shift, logits
        self.whole: str | None = None
        self._head: nn.Linear | None = None
        head = find_head(base_of(model), list(blocks.values()))
        if isinstance(head, str):
            self.whole = head
        else:
            self._head = head
            self.whole = reshapes_logits(lambda ids: logits(model, tokens(ids), False), head, device)
            self.whole = self.whole or self._adds(tokens(torch.tensor(TOKENS, device=device)))
        run = self._whole_logits if self.whole else self._hidden
        self.unmasked = spare_mask and is_causal(lambda ids: run(tokens(ids), False), device)

    def losses(self, values: Values, reduction: Reduction) -> Tensor:
        """The b losses of a batch, on the device of the head."""
        masked = not self.unmasked or not bool(values["attention_mask"][:, 0].all())
        if self.whole is not None or self._head is None:
            logits = self._whole_logits(values, masked)
            return token_losses(logits, values["labels"].to(logits.device), reduction, self.shift)
        head = self._head
        there = head.weight.device  # the hidden states go to the head, which is larger than they are
        hidden, labels = self._hidden(values, masked).to(there), values["labels"].to(there)
        return chunked_losses(hidden, head.weight, head.bias, labels, reduction, shift=self.shift)

    @property
    def head(self) -> nn.Linear | None:
        """The output embedding, where the logits are no more than its product with `states`; else None."""
        return None if self.whole is not None else self._head

    def states(self, values: Values) -> Tensor:
        """What the head is fed of a batch, b × s × h."""
        return self._hidden(values, not self.unmasked or not bool(values["attention_mask"][:, 0].all()))

    @torch.no_grad()
    def _adds(self, values: Values) -> str | None:
        """Why the states cannot pass through what comes after the head; BART adds a bias there, if only of zeros."""
        try:
            self._hidden(values, False)
        except RuntimeError as error:  # torch's, of shapes that do not fit
            return f"the model does more with its logits than multiply them: {one_line(error)}"
        return None

    def _whole_logits(self, values: Values, masked: bool) -> Tensor:
        return self._logits(self.model, values, masked)

    def _hidden(self, values: Values, masked: bool) -> Tensor:
        """The states that the head is fed, b × s × h, times what the model multiplies its logits with."""
        assert self._head is not None
        with standing_in(self._head, lambda hidden: hidden):
            return self._logits(self.model, values, masked)
