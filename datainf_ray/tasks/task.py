"""The record that a task is. Nothing here imports torch: a task is looked at before anything heavy is loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datainf_ray.common.storage import Options
from datainf_ray.config import ModelConfig, RunConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.columns import Combination
from datainf_ray.corpus.passages import Passage
from datainf_ray.corpus.tokens import OK, Encode, Encoded, Encoder, EncoderSpec, Example, Fields, texts_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from datainf_ray.corpus.batches import Batch, Collate
    from datainf_ray.model.objective import Draws, Losses, Predictions, Shapes, Shortcut, TokenLosses


def _all_texts(spec: EncoderSpec, fields: Fields, values: Mapping[str, Any] | None) -> list[Passage]:
    return [Passage(role, text) for role, text in texts_of(fields).items()]


@dataclass(frozen=True)
class Task:
    """A task: a record of functions. The first six have no default; README.md beside this has a complete example.

    A row of a corpus is a dictionary, {role: value}. `encoder` makes it an `Encoded`, whose `values` are plain Python;
    `collate` makes tensors of the values of b rows; `losses` gives b losses.
    """

    #: As it is called in messages.
    name: str
    #: The kinds of row, in order of preference.
    kinds: tuple[Combination, ...]
    #: The class that bases are made with, by `from_pretrained` and `from_config`: `lambda: transformers.AutoModel`.
    model_class: Callable[[], Any]
    #: What encodes the rows of a corpus. `each` makes one of a function of one row.
    encoder: Callable[[EncoderSpec], Encode]
    #: `collate(values, pad_id)`: the tensors of a batch, by name; the first dimension of each is b.
    collate: Collate
    #: `losses(model, tensors, reduction)`: b losses, each of its own row alone, in float32 or wider. `reduction` is
    #: method.loss: "mean" or "sum" over a row's targets. The model is in eval mode. Every layer that holds adapter
    #: weights should see b rows each time it is called; else gradients are taken one row at a time, which is slow.
    losses: Losses

    #: `says(spec, fields, values)`: what a row says, in order, for people; values are None where it is unreadable.
    says: Callable[[EncoderSpec, Fields, Mapping[str, Any] | None], Sequence[Passage]] = _all_texts
    #: `preview(spec, fields, values)`: a line that says what a row is about. None: it is made of what the row says.
    preview: Callable[[EncoderSpec, Fields, Mapping[str, Any] | None], str] | None = None
    #: `trial(length, vocabulary, generator)`: a random row of `length` tokens, to find out how large batches may be on
    #: a GPU. None: a real row is repeated.
    trial: Callable[[int, int, torch.Generator], Encoded] | None = None
    #: `configure(shapes)`: settings of the base's configuration that follow from the adapter's tensors, {name: shape}.
    configure: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}
    #: `facts(model, config)`: what the task must know of the model to encode rows, from its transformers configuration,
    #: in plain values; it is found in `EncoderSpec.facts`. Raises `RequestError` where such a model cannot be used.
    facts: Callable[[ModelConfig, Any], dict[str, Any]] = lambda model, config: {}
    #: `complete(model, base, tokenizer)` sets what a base that was just loaded lacks; `tokenizer()` loads the model's.
    complete: Callable[[ModelConfig, nn.Module, Callable[[], Any]], None] = lambda model, base, tokenizer: None
    #: `check(corpus, facts, key)` raises `RequestError` where rows do not fit the model, as far as can be seen at once.
    check: Callable[[Corpus, Mapping[str, Any], str], None] = lambda corpus, facts, key: None
    #: `tells(facts, corpus)`: what a user should know of the training rows beside what was seen of the model.
    tells: Callable[[Mapping[str, Any], Corpus], Sequence[str]] = lambda facts, corpus: ()
    #: `shortcut(model, blocks, device)` looks for a quicker way to the same losses; see `model.shortcut`.
    shortcut: Callable[[nn.Module, Mapping[str, nn.Parameter], torch.device], Shortcut] | None = None
    #: `token_losses(model, tensors)`: the losses of a batch's tokens, b × s as its `labels` are (-100: no target), zero
    #: where there is no target; a row's loss is their sum or their mean. None: a loss is not a sum over tokens.
    token_losses: TokenLosses | None = None
    #: `predictions(output)`: what the model itself predicts for each of b rows, b × … of any numbers, of what it
    #: returned when `losses` called it. `predicted(facts, value)` says it as text, of one row's plain values (a number,
    #: or lists of them), in the words in which `says` has the label; None: nothing. The column `predicted` of examples/
    #: has it, null where `losses` does not call the model once for all rows.
    predictions: Predictions | None = None
    predicted: Callable[[Mapping[str, Any], Any], str | None] = lambda facts, value: str(value)
    #: `inspect(model, options)`: the `model.inspect.ModelFacts` of a model that is no transformers model; with it
    #: `load(model, device, options)`, the model on that device, of which what takes a gradient are the blocks, and
    #: `tokenizer(model, options)`. `model_class`, `configure`, `facts` and `complete` are not asked then.
    inspect: Callable[[ModelConfig, Options | None], Any] | None = None
    load: Callable[[ModelConfig, torch.device, Options | None], nn.Module] | None = None
    tokenizer: Callable[[ModelConfig, Options | None], Any] | None = None
    #: At which draws a row's loss is taken, as a picture's at several timesteps; `losses` gives the mean over them.
    draws: Draws | None = None
    #: Whether the encoder finds the row's id among its fields, as `id`.
    takes_id: bool = False
    #: What must be installed beside what we always need, {module: package}, and the extra that brings it.
    needs: Mapping[str, str] = field(default_factory=dict)
    extra: str = ""
    #: `kinds_of(config, name)`: the kinds of row that "train" or "queries" may have, where those are not `kinds`.
    kinds_of: Callable[[RunConfig, str], tuple[Combination, ...]] | None = None
    #: The kind of queries whose pictures the model makes first, and what makes them: `maker(model, tokenizer, facts)`
    #: is a function of a row's fields and of a mark, that gives the bytes of a PNG whose text has the mark.
    makes: str | None = None
    maker: Callable[[nn.Module, Any, Mapping[str, Any]], Callable[[Fields, str], bytes]] | None = None
    #: `configured(task, config)`: the task as a run's whole configuration asks for it.
    configured: Callable[[Task, RunConfig], Task] = lambda task, config: task
    #: `cost(tokens, vocabulary, on_gpu)`: bytes that a batch takes beyond what its layers do.
    cost: Callable[[float, int, bool], float] = lambda tokens, vocabulary, on_gpu: 0.0

    def encoder_for(self, spec: EncoderSpec) -> Encoder:
        """What encodes the rows of a corpus. Raises `RequestError` where that cannot be."""
        preview = None if self.preview is None else functools.partial(self.preview, spec)
        return Encoder(self.encoder(spec), functools.partial(self.says, spec), spec, preview, self.takes_id)

    def batch(self, examples: Sequence[Example], positions: Sequence[int], pad_id: int) -> Batch:
        """The examples at `positions`, all of them ok, as a batch."""
        from datainf_ray.corpus.batches import make_batch  # here, because it loads torch

        return make_batch(self.collate, examples, positions, pad_id)

    def trial_batch(
        self, tokens: int, length: int, vocabulary: int, pad_id: int = 0, sample: Sequence[Example] = ()
    ) -> Batch:
        """A batch of rows of `length` tokens, as many as make `tokens`; one of `tokens`, if that is less.

        Where the task makes no random rows, the longest of `sample` is repeated. Raises ValueError where there is none.
        """
        import torch

        if self.trial is None:
            longest = max(sample, key=lambda example: example.tokens)
            examples = [longest] * max(tokens // longest.tokens, 1)
        else:
            length, generator = min(length, tokens), torch.Generator().manual_seed(0)
            rows = [self.trial(length, vocabulary, generator) for _ in range(tokens // length)]
            examples = [Example(k, "", OK, "", row.values, row.lengths) for k, row in enumerate(rows)]
        return self.batch(examples, range(len(examples)), pad_id)
