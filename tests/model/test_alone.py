"""Every architecture's gradients against plain autograd in float64, one bare row at a time: nothing but its tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import transformers as T
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from datainf_ray.corpus.batches import plan_batches
from datainf_ray.corpus.tokens import Example
from datainf_ray.model.alike import alike_by, growing
from datainf_ray.model.check import check
from datainf_ray.model.limits import longest_row
from datainf_ray.model.replica import Replica
from datainf_ray.request.job import rows_to_compare
from tests import tiny

WORDS, LIMIT = 97, 40
LENGTHS = (4, 6, 6, 11, 12, 13, 17)  # and one row of full length

B: dict[str, Any] = {"vocab_size": WORDS, "max_position_embeddings": LIMIT, "pad_token_id": 1}
H: dict[str, Any] = B | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
E = H | {"intermediate_size": 48}
S = E | {"num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 2}
GROWS = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 8.0],
    "original_max_position_embeddings": 12,
}  # fmt: skip


class Case(NamedTuple):
    config: Callable[[], Any]
    targets: list[str]
    equal: bool = False  # only rows of the same length share a batch


QV, PROJ = ["query", "value"], ["q_proj", "v_proj"]
CLASSIFIERS = {
    # positions that begin behind the padding's
    "MPNet": Case(lambda: T.MPNetConfig(**E), ["q", "v"]),
    "ESM": Case(lambda: T.EsmConfig(**E, mask_token_id=2, position_embedding_type="absolute"), QV),
    "ESM, rotary": Case(lambda: T.EsmConfig(**E, mask_token_id=2, position_embedding_type="rotary"), QV),
    "Longformer": Case(lambda: T.LongformerConfig(**E, attention_window=8), QV),
    "LUKE": Case(lambda: T.LukeConfig(**E, entity_vocab_size=9, entity_emb_size=8), QV),
    "data2vec": Case(lambda: T.Data2VecTextConfig(**E), QV),
    "CamemBERT": Case(lambda: T.CamembertConfig(**E), QV),
    "XLM-R XL": Case(lambda: T.XLMRobertaXLConfig(**E), QV),
    "MarkupLM": Case(lambda: T.MarkupLMConfig(**E), QV),
    "X-MOD": Case(lambda: T.XmodConfig(**E, default_language="en_XX"), QV),
    "pre-norm RoBERTa": Case(lambda: T.RobertaPreLayerNormConfig(**E), QV),
    # a sample of the others
    "BERT": Case(lambda: T.BertConfig(**E), QV),
    "DeBERTa-v2": Case(
        lambda: T.DebertaV2Config(**E, relative_attention=True, pos_att_type=["p2c", "c2p"]), ["query_proj"]
    ),
    "Bloom": Case(
        lambda: T.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4, pad_token_id=1),
        ["query_key_value"],
    ),
    "OPT": Case(lambda: T.OPTConfig(**H, ffn_dim=48, word_embed_proj_dim=32), PROJ),
    # what sees padding whatever the mask says
    "XLNet": Case(
        lambda: T.XLNetConfig(vocab_size=WORDS, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=1),
        ["layer_1"],
        True,
    ),
    "ConvBERT": Case(lambda: T.ConvBertConfig(**E, embedding_size=16), QV, True),
    "MobileBERT": Case(lambda: T.MobileBertConfig(**E, embedding_size=16, intra_bottleneck_size=16), QV, True),
    "FNet": Case(
        lambda: T.FNetConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=48,
            max_position_embeddings=LIMIT,
            pad_token_id=1,
        ),
        ["intermediate.dense"],
        True,
    ),
}
DECODERS = {
    "GPT-2": Case(
        lambda: T.GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=LIMIT), ["c_attn"]
    ),
    "OPT": Case(lambda: T.OPTConfig(**H, ffn_dim=48, word_embed_proj_dim=32), PROJ),
    "BioGPT": Case(lambda: T.BioGptConfig(**E), PROJ),
    "Falcon, ALiBi": Case(
        lambda: T.FalconConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            alibi=True,
            bos_token_id=0,
            eos_token_id=2,
        ),
        ["query_key_value"],
    ),
    "Mamba": Case(
        lambda: T.MambaConfig(
            vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4, pad_token_id=1
        ),
        ["in_proj"],
    ),
    "RWKV": Case(
        lambda: T.RwkvConfig(vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
        ["key", "value"],
    ),
    "Phi-3, longrope": Case(
        lambda: T.Phi3Config(**S, original_max_position_embeddings=12, rope_parameters=LONG), ["qkv_proj"]
    ),
    "Llama, longrope": Case(lambda: T.LlamaConfig(**S, rope_parameters=LONG), PROJ),
    "Llama, dynamic NTK": Case(
        lambda: T.LlamaConfig(**S | {"max_position_embeddings": 10}, rope_parameters=GROWS), PROJ
    ),
    "Gemma 3, dynamic NTK in some layers": Case(
        lambda: T.Gemma3TextConfig(
            **S | {"max_position_embeddings": 10},
            head_dim=8,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=6,
            rope_parameters={"full_attention": GROWS, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        ),
        PROJ,
    ),
}


def model_of(case: Case, task: str) -> Any:
    """A random PEFT model, less trivial than transformers makes them."""
    torch.manual_seed(0)
    config = case.config()
    config.num_labels = 3
    base = tiny.task(task).model_class().from_config(config)
    for parameter in base.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=case.targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def examples_for(task: str, longest: int) -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for k, length in enumerate((*LENGTHS, longest)):
        ids = torch.randint(4, WORDS, (length,), generator=generator).tolist()
        target = {"labels": ids} if task == "causal-lm" else {"target": k % 3}
        made.append(Example(k, str(k), "ok", "", {"input_ids": ids, **target}, (length,)))
    return made


def alone(model: Any, examples: list[Example]) -> dict[str, Tensor]:
    """{block: rows × size}: a model that has seen no other row, called with its tokens and nothing else."""
    fresh = copy.deepcopy(model).double()
    found: dict[str, list[Tensor]] = {name: [] for name, p in fresh.named_parameters() if p.requires_grad}
    for example in examples:
        one = copy.deepcopy(fresh) if growing(fresh) else fresh
        ids = torch.tensor([example.values["input_ids"]])
        logits = one(input_ids=ids, **({} if "target" in example.values else {"use_cache": False})).logits
        if "target" in example.values:
            loss = nn.functional.cross_entropy(logits, torch.tensor([example.values["target"]]))
        else:
            loss = nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        named = [(name, p) for name, p in one.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [p for _, p in named], materialize_grads=True, allow_unused=True)
        for (name, _), gradient in zip(named, gradients, strict=True):
            found[name].append(gradient)
    return {name: torch.stack([g.flatten() for g in each]) for name, each in found.items()}


def taken(replica: Replica, task: str, examples: list[Example], batch_tokens: int) -> dict[str, Tensor]:
    got = {b.name: torch.zeros(len(examples), b.size, dtype=torch.float64) for b in replica.blocks}
    for positions in plan_batches([e.lengths for e in examples], batch_tokens):
        batch = tiny.task(task).batch(examples, positions, 1)

        def keep(block: str, gradients: Tensor, at: Tensor, rows: Tensor = batch.rows) -> None:
            got[block][rows[at]] = gradients.double()

        replica.gradients(batch, keep)
    return got


def agree(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Row by row and block by block to 1e-4, but for what is rounding of the largest."""
    largest = max(float(g.square().mean(1).max()) ** 0.5 for g in want.values())
    for (name, g), w in zip(got.items(), want.values(), strict=True):
        size, apart = w.square().mean(1).sqrt(), (g - w).square().mean(1).sqrt()
        assert bool((apart <= 1e-4 * size + 1e-6 * largest).all()), (name, apart / size)


@pytest.mark.parametrize(
    ("task", "name"),
    [("sequence-classification", name) for name in CLASSIFIERS] + [("causal-lm", name) for name in DECODERS],
)
def test_gradients_are_those_of_bare_rows(task: str, name: str) -> None:
    case = (CLASSIFIERS if task == "sequence-classification" else DECODERS)[name]
    model = model_of(case, task)
    config = model.get_base_model().config
    grows = alike_by(config).grows_beyond is not None
    admitted = longest_row(config, model.get_base_model())
    examples = examples_for(task, 30 if grows or admitted is None else admitted)
    want = alone(model, examples)
    replica = Replica(model, tiny.task(task))
    sample = rows_to_compare(examples)
    verdict = check(replica, tiny.task(task).batch(sample, range(len(sample)), 1))
    assert (verdict.path, verdict.reason) == ("hooks", None)
    assert (verdict.lengths_reason is not None) is case.equal
    for batch_tokens in (60, 10**6) if grows else (80,):  # and whatever was computed before
        agree(taken(replica, task, examples, batch_tokens), want)


@pytest.mark.parametrize("name", ["MPNet", "ESM", "Longformer", "LUKE", "data2vec", "CamemBERT", "XLM-R XL", "X-MOD"])
def test_a_table_with_a_row_for_padding_has_fewer_positions(name: str) -> None:
    config = CLASSIFIERS[name].config()
    with torch.device("meta"):
        base = T.AutoModelForSequenceClassification.from_config(config)
    assert longest_row(config, base) == LIMIT - 2
    model = T.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, LIMIT - 1), 5))
