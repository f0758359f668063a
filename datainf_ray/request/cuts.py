"""At how many tokens rows are cut, and what a user should know of that."""

from __future__ import annotations

from collections.abc import Sequence

from datainf_ray.config import RowsConfig
from datainf_ray.corpus.tokens import Example
from datainf_ray.model.inspect import ModelFacts
from datainf_ray.model.limits import Trace


def limit_of(asked: RowsConfig, facts: ModelFacts) -> int | None:
    """The most tokens of a row of this corpus; None: no limit.

    What is asked for, and by default what the model takes. More than that can be asked of a model with rotary positions
    alone: another has no more of them.
    """
    if asked.max_length is None or facts.max_length is None:
        return asked.max_length or facts.max_length
    return asked.max_length if facts.rotary else min(asked.max_length, facts.max_length)


def hints(
    key: str, asked: RowsConfig, facts: ModelFacts, traces: Sequence[Trace], examples: Sequence[Example]
) -> tuple[str, ...]:
    """What is to be said where the limit is none that the user has set, of the examples that were looked at.

    `key` is "train" or "queries". That rows are cut though the positions are rotary; and what of `traces` says that the
    training had a lower limit, which is not applied; if that is not certain, only where a row is longer.
    """
    if asked.max_length is not None:
        return ()
    said = []
    limit = facts.max_length
    if limit is not None and facts.rotary and any(example.tokens_cut for example in examples):
        said.append(
            f"they are cut at the model's max_position_embeddings, {limit:,}, though its positions are rotary and go "
            f"on: set {key}.max_length where the training had longer rows"
        )
    for trace in traces:
        longer = sum(example.tokens + example.tokens_cut > trace.tokens for example in examples)
        if (limit is None or trace.tokens < limit) and (trace.certain or longer):
            said.append(
                f"{trace.what} is {trace.tokens:,}, and the training may have cut its rows there: {longer:,} of these "
                f"are longer, and {key}.max_length: {trace.tokens} would cut them"
            )
            break
    return tuple(said)
