"""The chat templates that TRL ships, talks of every kind, and a tokenizer that has the tokens of all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from datainf_ray.corpus.tokens import Example
from tests.corpus.conftest import SENTENCES

Message = dict[str, Any]

_FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.jinja"))}
STOCK = [name for name in TEMPLATES if not name.endswith("_training")]
TRAINING = [name for name in STOCK if f"{name}_training" in TEMPLATES]
_TOKEN = re.compile(
    r"<[|｜][^<>'\" {}]{1,40}[|｜]>|<\|?(?:start_of_turn|end_of_turn|end_of_utterance|turn|tool_call|tool_response"
    r"|channel|tool)\|?>|</?tool_call>|</?think>"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that has all that looks like a token in the templates as one."""
    special = sorted({token for text in TEMPLATES.values() for token in _TOKEN.findall(text)})
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400 + len(special),
        special_tokens=["<pad>", "<s>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
_CALLING = [user("Warm there?"), assistant("", tool_calls=[CALL])]
TALKS: dict[str, list[Message]] = {
    "one turn": [user("Which one?"), assistant("The first.")],
    "system": [system("Be kind."), user("Which one?"), assistant("The first.")],
    "two turns": [user("Which one?"), assistant("The first."), user("Really so?"), assistant("Quite sure.")],
    "think": [user("Which one?"), assistant("<think>\nhm, lazy dog\n</think>\n\nThe first.")],
    "think twice": [
        user("Which one?"),
        assistant("<think>\nhm, lazy dog\n</think>\n\nThe first."),
        user("Really so?"),
        assistant("<think>\nwell, brown fox\n</think>\n\nQuite sure."),
    ],
    "reasoning": [user("Which one?"), assistant("The first.", reasoning_content="hm, lazy dog")],
    "tools": _CALLING,
    "tool results": [
        *_CALLING,
        {"role": "tool", "name": "weather", "content": "minus two"},
        assistant("It is cold."),
    ],
    "two assistants": [user("Which one?"), assistant("The first."), assistant("Quite sure.")],
    "assistant first": [assistant("Hello there."), user("Which one?"), assistant("The first.")],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "Which one?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
    ],
}


def tools_for(talk: str) -> list[dict[str, Any]] | None:
    return TOOLS if talk.startswith("tool") else None


def said(tokenizer: Any, example: Example) -> list[str]:
    """The text of every run of targets."""
    runs: list[list[int]] = [[]]
    for label in example.values["labels"]:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]
