"""Small tokenizers in the styles of those that models have, made on the spot; and what TRL makes of rows with them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SENTENCES = [
    "The quick brown fox jumps over the lazy dog. Once there was a dog.",
    "What is the capital of France? The capital of France is Paris, the world's own.",
    "def add(a, b):\n    return a + b\n\n1234 5678, naïve café 漢字",
]
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _made(
    core: Tokenizer, special: Sequence[str], post: str | None, size: int = 380, trainer: Any = None, **names: Any
) -> PreTrainedTokenizerFast:
    if trainer is None:
        alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(core.decoder, decoders.ByteLevel) else []
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        )
    core.train_from_iterator(SENTENCES * 4, trainer)
    if post is not None:
        ids = [(name, core.token_to_id(name)) for name in post.split() if name != "$A"]
        core.post_processor = processors.TemplateProcessing(single=post, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def _bytes(prefix_space: bool, split: str | None = None, normalizer: Any = None) -> Tokenizer:
    core = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=split is None)
    parts = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    core.pre_tokenizer = pre_tokenizers.Sequence([*parts, level])
    core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    return core


def _pieces(normalizer: Any, pre_tokenizer: Any, special: Sequence[str], post: str, **names: Any) -> Any:
    """Byte-pair encoding as sentencepiece trains it: no piece goes over a space, though a text is not split there."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made = _made(core, [*special, *(f"<0x{k:02X}>" for k in range(256))], post, 460, unk_token="<unk>", **names)
    backend = made.backend_tokenizer
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    return made


def gpt2(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level, nothing put around a text, BOS = EOS = pad."""
    end = "<|endoftext|>"
    names = {"bos_token": end, "eos_token": end, "pad_token": end, "add_prefix_space": prefix_space}
    return _made(_bytes(prefix_space), [end], None, **names)


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level, its own way of splitting, a BOS in front; pad = EOS."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    names = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1]}
    return _made(_bytes(False, _LLAMA3), special, "<|begin_of_text|> $A", **names)


def qwen() -> PreTrainedTokenizerFast:
    """Byte-level, normalised to NFC, without any BOS."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = _bytes(False, _LLAMA3, normalizers.NFC())
    return _made(core, special, None, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama2(legacy: bool, post: str = "<s> $A") -> PreTrainedTokenizerFast:
    """Sentencepiece with bytes to fall back on: "▁" before each piece between special tokens, or the first alone."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    split = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    special = ["<unk>", "<s>", "</s>"]
    return _pieces(normalizer if legacy else None, None if legacy else split, special, post, **names)


def gemma() -> PreTrainedTokenizerFast:
    """Sentencepiece that puts nothing before a text but its BOS."""
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    return _pieces(normalizers.Replace(" ", "▁"), split, ["<pad>", "<eos>", "<bos>", "<unk>"], "<bos> $A", **names)


def unigram() -> PreTrainedTokenizerFast:
    """Sentencepiece's Unigram, where one letter more may change all tokens before it."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _made(core, special, "<s> $A", trainer=trainer, **names)


def stripping() -> PreTrainedTokenizerFast:
    """An EOS that takes the spaces before it with it."""
    made = gpt2()
    made.add_tokens([AddedToken("<end>", lstrip=True, special=True)])
    made.eos_token = "<end>"
    return made


STYLES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "gpt2": gpt2,
    "gpt2, a space before": lambda: gpt2(prefix_space=True),
    "llama3": llama3,
    "qwen": qwen,
    "llama2": lambda: llama2(legacy=True),
    "llama2, not legacy": lambda: llama2(legacy=False),
    "llama2, closed by itself": lambda: llama2(legacy=True, post="<s> $A </s>"),
    "gemma": gemma,
    "unigram": unigram,
    "EOS strips": stripping,
    "slow": lambda: ByT5Tokenizer(),  # without offsets; it closes each text with EOS by itself
}


@functools.cache
def style(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of this style, the same one each time."""
    return STYLES[name]()


def by_trl(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], completion_only: bool = True, **asked: Any
) -> list[dict[str, list[int]]]:
    """What TRL's `SFTTrainer` trains on: input_ids and labels of each row, by its own preparation."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=completion_only)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, bf16=False, use_cpu=True, report_to="none", **{"max_length": None} | asked
        )
        made = SFTTrainer._prepare_dataset(
            trainer, Dataset.from_list(list(rows)), tokenizer, config, False, None, "train"
        )
    return [{name: row[name] for name in ("input_ids", "labels")} for row in made]
