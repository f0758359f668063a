"""What a run's parts weigh: rows, weights, and what a batch leaves in memory, in bytes."""

from __future__ import annotations

from datainf_ray.corpus.passages import ROW_BYTES
from datainf_ray.influence.projection import projected_size
from datainf_ray.model.inspect import ModelFacts
from datainf_ray.request.job import Job
from datainf_ray.runs.schemas import OK

#: Memory held over memory in use. glibc's heap, with one arena, was seen to hold 1.1 to 2.1 times as much.
CPU_GAPS, GPU_GAPS = 1.6, 1.25
PROCESS_BYTES = 550_000_000  #: a worker with its libraries and nothing to do
_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


def mean_tokens(job: Job, corpus: str = "train") -> float:
    """Tokens in a row, the mean over the rows that were looked at, at least 1; rows that cannot be used have none.

    Where an index has the training rows' gradients the queries alone pass through the model, and are looked at.
    """
    examples = job.examples.get(corpus, job.examples["queries"])
    return max(sum(e.tokens for e in examples if e.status == OK) / max(len(examples), 1), 1.0)


def pass_tokens(job: Job) -> float:
    """Tokens that a pass through the model has at least: those of a row, or of one of its draws."""
    return max(mean_tokens(job) / (1 if job.task.draws is None else len(job.task.draws)), 1.0)


def picture_flops(job: Job) -> float:
    """Of the pictures that are made of the queries: for every step a pass with the prompt, and one without it."""
    asked = job.config.diffusion.generate
    if not job.makes or asked is None:
        return 0.0
    return 2 * 2.0 * job.facts.base_parameters * pass_tokens(job) * asked.steps * job.corpora["queries"].rows


def text_bytes(job: Job) -> int:
    """A row's id, preview and text, compressed to about a half."""
    examples = job.examples["train"]
    texts = sum(min(sum(len(p.text.encode()) for p in e.passages), ROW_BYTES) for e in examples)
    return (texts + sum(len((e.id + e.preview).encode()) for e in examples)) // max(2 * len(examples), 1)


def score_bytes(job: Job) -> int:
    """A row's influences, by block where they are asked for."""
    return 4 * job.queries * (1 + len(job.facts.blocks) * job.config.results.blocks)


def index_row_bytes(job: Job) -> int:
    """A row in the gradient index: its gradients, and a squared norm (8 bytes) and a scale (4) for every block."""
    blocks, config = job.facts.blocks, job.config
    values = sum(projected_size(block, config.index_projection) for block in blocks)
    return values * _ITEM[config.index_dtype] + 12 * len(blocks)


def weight_bytes(job: Job, on_gpu: bool) -> int:
    """The base's weights in memory."""
    bits = {"8bit": 9, "4bit": 5, None: 16 if half_precision(job, on_gpu) else 32}  # with the scales of quantization
    return job.facts.base_parameters * bits[job.config.model.quantization] // 8


def layer_count(facts: ModelFacts) -> int:
    """Layers of the model: one more than the highest number in a block's name, else by the number of parameters."""
    numbers = [int(part) for block in facts.blocks for part in block.name.split(".") if part.isdigit()]
    return 1 + max(numbers) if numbers else max(round(facts.base_parameters / (12 * facts.hidden_size**2 or 1)), 1)


def token_bytes(facts: ModelFacts, half: bool) -> float:
    """What a token's forward pass leaves in memory for the backward pass.

    In a layer as Llama's, with frozen weights, width h and p parameters: the input of two norms, attention's queries,
    keys, values and output, and three vectors of the inner width i, which is (p − 4h²) / 3h: p/h + 2h values. And every
    lora_A keeps its input, which those beside it mostly share. With 16-bit weights the norms' inputs and the adapters'
    are in float32 all the same.
    """
    h = facts.hidden_size or 1024
    stored = (facts.base_parameters - facts.vocabulary * h) / h + 2 * h * layer_count(facts)
    inputs = sum(block.shape[-1] for block in facts.blocks if block.kind == "lora_A")
    norms = 2 * h * layer_count(facts)
    return 2 * (stored - norms) + 4 * (norms + inputs) if half else 4 * (stored + inputs / 2)


def half_precision(job: Job, on_gpu: bool) -> bool:
    """Whether the base computes in 16 bits; `dtype: auto` is taken for that on a GPU."""
    return job.config.model.dtype in ("bfloat16", "float16") or (on_gpu and job.config.model.dtype == "auto")


def row_gradient_bytes(job: Job) -> int:
    """A row's gradients in the largest block: the product, what the fold makes of it, and a copy where it is kept."""
    return 3 * 4 * max(block.size for block in job.facts.blocks)


def activation_bytes(job: Job, batch_tokens: int, on_gpu: bool) -> int:
    """Peak memory of a batch's forward and backward pass beyond the weights: activations, logits, gradients."""
    facts, tokens = job.facts, max(batch_tokens, pass_tokens(job))
    used = tokens * token_bytes(facts, half_precision(job, on_gpu))
    used += job.task.cost(tokens, facts.vocabulary, on_gpu)
    used += tokens / pass_tokens(job) * row_gradient_bytes(job)
    return int((GPU_GAPS if on_gpu else CPU_GAPS) * used)
