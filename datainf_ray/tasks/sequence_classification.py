"""A classifier of texts, or of pairs of texts; with one label, a regression.

How rows become tokens: the tokenizer's own encoding of text, or of text and text_pair, cut by the tokenizer at
`max_length`, where a missing text_pair is an empty one; or input_ids as they are, with their token_type_ids and less
the padding that attention_mask tells (see `corpus.given`). The target is the label: the number of a class or its name
in the model's `label2id`; with one label any number. The loss is the cross-entropy of the class, or the squared error
of the number. What the model predicts is the class of the largest logit, or the number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import counted
from datainf_ray.config import ModelConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.columns import Combination
from datainf_ray.corpus.given import BESIDE, token_types, unpadded
from datainf_ray.corpus.labels import check_labels, parse_label
from datainf_ray.corpus.passages import Passage
from datainf_ray.corpus.targets import check_targets
from datainf_ray.corpus.tokens import Encode, Encoded, EncoderSpec, Fields, cut_off, decoded, each, given_ids, texts_of
from datainf_ray.tasks.task import Task

if TYPE_CHECKING:  # what loads torch is imported where it is needed: a task is looked at before
    import torch
    from torch import Tensor, nn

    from datainf_ray.model.objective import Reduction, Shapes, Values

HEADS = ("classifier", "score")  #: what transformers calls the layer on top of a sequence classifier


_KEPT = ("input_ids", "token_type_ids")  # of what the tokenizer or a row says of its tokens


def encoder(spec: EncoderSpec) -> Encode:
    check_targets(spec.kind, spec.targets, spec.key, takes={})

    def finished(fields: Fields, tokens: dict[str, Any], beyond: int) -> Encoded:
        if not tokens["input_ids"]:
            raise ValueError("there are no tokens")
        if "token_type_ids" in tokens:
            token_types(spec, tokens["token_type_ids"])
        tokens["target"] = parse_label(fields["label"], spec.facts["num_labels"], spec.facts["label2id"])
        return Encoded(tokens, (len(tokens["input_ids"]),), tokens_cut=beyond, rule="the label")

    def given(fields: Fields) -> Encoded:
        row = unpadded(fields)
        whole = given_ids(spec, row["input_ids"], "input_ids")
        tokens = {name: row[name][: spec.max_length] for name in _KEPT if name in row}
        return finished(fields, tokens, len(whole) - len(tokens["input_ids"]))

    def texts(rows: Sequence[Fields]) -> list[Encoded | Exception]:
        made = spec.tokenizer(
            [row["text"] for row in rows],
            [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None,
            truncation=spec.max_length is not None,
            max_length=spec.max_length,
            return_attention_mask=False,
        )
        names = [name for name in _KEPT if name in made]
        tokens = iter([{name: made[name][k] for name in names} for k in range(len(rows))])

        def one(fields: Fields) -> Encoded:
            found = next(tokens)
            if not fields["text"]:
                raise ValueError("text is empty")
            pair = fields.get("text_pair")
            beyond = cut_off(spec.tokenizer, found["input_ids"], spec.max_length, text=fields["text"], text_pair=pair)
            return finished(fields, found, beyond)

        return list(each(one)(rows))

    return each(given) if spec.kind == "tokens" else texts


def says(spec: EncoderSpec, fields: Fields, values: Mapping[str, Any] | None) -> list[Passage]:
    """The label by its name, and what the row says."""
    label = [] if values is None else [Passage("label", label_of(spec.facts, values["target"]))]
    if spec.kind == "tokens":
        return [*label, *([Passage("input_ids", decoded(spec.tokenizer, values["input_ids"]))] if values else [])]
    texts = texts_of(fields)
    there = [(role, texts.get(role)) for role in ("text", "text_pair")]
    return [*label, *(Passage(role, text) for role, text in there if text)]


def label_of(known: Mapping[str, Any], target: int | float) -> str:
    """A class by its name in `label2id`, or its number where it has none; the number of a regression.

    >>> label_of({"num_labels": 2, "label2id": {"negative": 0, "positive": 1}}, 1)
    'positive'
    """
    names = {index: name for name, index in known["label2id"].items()} if known["num_labels"] > 1 else {}
    return names.get(int(target), str(target))


def predicted(known: Mapping[str, Any], value: int | float) -> str:
    """A class as `label_of` has it; a number in as few digits as give a float32 back, 3.1 for 3.0999999046325684."""
    import numpy as np

    return str(np.float32(value)) if known["num_labels"] == 1 else label_of(known, value)


def trial(length: int, vocabulary: int, generator: torch.Generator) -> Encoded:
    import torch

    ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
    return Encoded({"input_ids": ids, "target": 0}, (length,))


def collate(values: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """The tokens, padded on the right, and `labels`: b classes (int64) or b numbers (float32)."""
    import torch

    from datainf_ray.corpus.batches import token_tensors

    targets = [value["target"] for value in values]
    kind = torch.float32 if isinstance(targets[0], float) else torch.int64
    return {**token_tensors(values, pad_id), "labels": torch.tensor(targets, dtype=kind)}


def model_class() -> Any:
    import transformers

    return transformers.AutoModelForSequenceClassification


def losses(model: nn.Module, values: Values, reduction: Reduction) -> Tensor:
    """A row has one target: mean and sum are the same."""
    from datainf_ray.model.forward import token_arguments
    from datainf_ray.model.loss import class_losses

    logits = model(**token_arguments(model, values)).logits
    return class_losses(logits, values["labels"].to(logits.device))


def predictions(output: Any) -> Tensor:
    """The b classes (int64) of the largest logits; the b numbers of a regression."""
    logits: Tensor = output.logits
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)


def head_size(shapes: Shapes) -> int | None:
    """The number of labels of the classification head that the adapter carries; None where it carries none."""
    for key, shape in shapes.items():
        parts = key.split(".")
        ending = parts[-2:] if parts[-2] in HEADS else parts[-3:]
        if len(shape) == 2 and (ending[0] in HEADS) and ending[1:] in (["weight"], ["out_proj", "weight"]):
            return shape[0]
    return None


def configure(shapes: Shapes) -> dict[str, Any]:
    labels = head_size(shapes)
    return {} if labels is None else {"num_labels": labels}


def facts(model: ModelConfig, config: Any) -> dict[str, Any]:
    """`num_labels`, of which 1 is regression, and `label2id`."""
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise RequestError("model.base", model.base, "rows with several labels are not supported")
    return {
        "num_labels": config.num_labels,
        "label2id": {str(name): int(number) for name, number in (config.label2id or {}).items()},
    }


def complete(model: ModelConfig, base: Any, tokenizer: Callable[[], Any]) -> None:
    """Decoders with a classification head look for padding to find a row's last token."""
    if base.config.pad_token_id is not None:
        return
    found = tokenizer()
    ids = (getattr(found, name, None) for name in ("pad_token_id", "eos_token_id"))
    base.config.pad_token_id = next((one for one in ids if one is not None), None)
    if base.config.pad_token_id is None:
        raise RequestError("model.base", model.base, "neither the model nor its tokenizer has a padding token")


def check(corpus: Corpus, known: Mapping[str, Any], key: str) -> None:
    count = known["num_labels"]
    try:
        check_labels(corpus, count, known["label2id"], key)
    except RequestError as error:
        takes = "any number: it is a regression" if count == 1 else f"a name in its label2id or 0 to {count - 1}"
        model = f"this model of {counted(count, 'label')}"
        remedy = f"{model} takes {takes}; one that writes its answers is model.task causal-lm"
        raise RequestError(error.key, error.value, error.problem, remedy) from None


TASK = Task(
    name="sequence-classification",
    kinds=(
        Combination("classification", ("text", "label"), ("text_pair",)),
        Combination("tokens", ("input_ids", "label"), BESIDE),
    ),
    model_class=model_class,
    encoder=encoder,
    collate=collate,
    losses=losses,
    predictions=predictions,
    predicted=predicted,
    says=says,
    trial=trial,
    configure=configure,
    facts=facts,
    complete=complete,
    check=check,
)
