"""What turns the rows of a request into examples; the same on the driver and on every worker."""

from __future__ import annotations

from typing import Any

from datainf_ray.common.errors import RequestError
from datainf_ray.config import RowsConfig, RunConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.tokens import Encoder, EncoderSpec, Example
from datainf_ray.model.inspect import ModelFacts
from datainf_ray.request.cuts import limit_of
from datainf_ray.request.sampled import first_examples
from datainf_ray.tasks.register import task_for


def encoder_for(config: RunConfig, name: str, corpus: Corpus, facts: ModelFacts, tokenizer: Any) -> Encoder:
    """What turns the rows of one of the two corpora into examples; the same on the driver and on every worker."""
    asked = rows_of(config, name)
    if tokenizer is None and corpus.kind != "tokens":
        raise RequestError("model.base", config.model.base, f"has no tokenizer, and {name}.columns are not input_ids")
    spec = EncoderSpec(
        corpus.kind,
        tokenizer,
        limit_of(asked, facts),
        facts.vocabulary or None,
        facts.task,
        asked.targets,
        key=name,
        roles=tuple(corpus.columns),
        token_types=facts.token_types,
        chat_template=config.model.chat_template,
        chat_keywords=config.model.chat_template_kwargs,
    )
    return task_for(config).encoder_for(spec)


def first_rows(config: RunConfig, name: str, corpus: Corpus, facts: ModelFacts, tokenizer: Any) -> list[Example]:
    """Rows of one of the two corpora, as the model would see them. Raises `RequestError` where none can be used."""
    encoder = encoder_for(config, name, corpus, facts, tokenizer)
    return first_examples(encoder, corpus, rows_of(config, name), name, config.model.one_adapter)


def rows_of(config: RunConfig, name: str) -> RowsConfig:
    """What the configuration says of a corpus: "train" or "queries"."""
    return config.train if name == "train" else config.queries
