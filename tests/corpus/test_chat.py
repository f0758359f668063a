from __future__ import annotations

import pytest
from tokenizers import processors
from transformers import ByT5Tokenizer

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.chat import MARKS, TURNS, ChatTemplate
from datainf_ray.corpus.rows import Row
from datainf_ray.corpus.tokens import Encoder, EncoderSpec, Example
from tests import tiny
from tests.corpus.chats import said

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TALK = [
    {"role": "system", "content": "you are a helpful assistant"},
    {"role": "user", "content": "Paris?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "assistant\nParis"},
    {"role": "assistant", "content": "\n Paris again"},
]


@pytest.fixture
def tokenizer(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


def encoder(tokenizer, max_length: int) -> Encoder:
    return tiny.task("causal-lm").encoder_for(EncoderSpec("messages", tokenizer, max_length))


def encode(tokenizer, messages, max_length: int = 512) -> Example:
    row = Row(0, "r", {"messages": messages}, None, None)
    return encoder(tokenizer, max_length).encode([row])[0]


@pytest.mark.parametrize("post", ["<s> $A", "<s> $A </s>", None])
@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("talk", [TALK, TALK[:3], TALK[1:3], TALK[2:3]])
def test_tokens_are_those_of_the_chat_template(make_tokenizer, post, template, talk):
    tokenizer = make_tokenizer(post)
    tokenizer.chat_template = template
    example = encode(tokenizer, talk)
    assert (
        example.values["input_ids"] == tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    )
    assert example.values["input_ids"].count(tokenizer.bos_token_id) == 1
    assert example.status == "ok"


def test_targets_are_what_the_assistant_said(tokenizer):
    for template, rule in ((CHATML, TURNS), (MARKED, MARKS)):
        tokenizer.chat_template = template
        example = encode(tokenizer, TALK)
        assert said(tokenizer, example) == ["Paris<|im_end|>", "\n Paris again<|im_end|>"]
        assert example.rule == rule


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("reply", ["Paris", " \n  two spaces  ", "漢字 🙂", "<|im_start|>assistant\n", "x" * 50])
def test_turns_are_found_to_the_token_with_and_without_character_offsets(tokenizer, reply, fast):
    talk = [TALK[2], TALK[1], {"role": "assistant", "content": reply}, TALK[3], {"role": "assistant", "content": reply}]
    template = ChatTemplate(tokenizer)
    template._fast = fast
    made = template.encode(talk)
    ids, spans = made.ids, made.spans
    assert ids == tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    texts = [tokenizer.decode(ids[start:stop]) for start, stop in spans]
    assert texts == [f"{message['content']}<|im_end|>" for message in talk[::2]]


def test_a_reply_that_melts_into_what_stands_before_it_is_found(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    example = encode(tokenizer, [{"role": "user", "content": "The qui"}, {"role": "assistant", "content": "ck brown"}])
    assert example.values["input_ids"] == tokenizer("The quick brown", add_special_tokens=False)["input_ids"]
    assert tokenizer.tokenize("The quick brown")[1] == "Ġquick"
    assert said(tokenizer, example) == [" quick brown"]  # the token that both share was said by the assistant, too


def test_a_talk_in_which_the_assistant_says_nothing_has_no_targets(tokenizer):
    example = encode(tokenizer, TALK[:2])
    assert (example.status, example.detail) == (
        "no_target_tokens",
        "no message has the role assistant, only system, user",
    )
    assert example.tokens > 0
    named = [{"role": "human", "content": "Paris?"}, {"role": "gpt", "content": "Paris"}]
    assert encode(tokenizer, named).detail == "no message has the role assistant, only human, gpt"
    assert encode(tokenizer, TALK[:3], max_length=5).detail == "all of them lie beyond max_length 5"


def test_a_template_may_change_what_came_before(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: "
        "{{ m['content'] if loop.last else m['content'] | upper }}\n{% endfor %}"
    )
    assert said(tokenizer, encode(tokenizer, TALK)) == ["PARIS", "\n Paris again"]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "messages is empty"),
        (["hi"], "message 0 is no object with a role and a content"),
        ([TALK[1], {"content": "hi"}], "message 1 is no object with a role and a content"),
        ([TALK[1], {"role": "assistant", "content": None}], "message 1 has no content"),
        ([{"role": "user", "content": "no"}], "refused by the template"),
    ],
)
def test_messages_that_are_none_are_unreadable(tokenizer, messages, says):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['content'] == 'no' %}"
        "{{ raise_exception('refused\nby the template') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    example = encode(tokenizer, messages)
    assert (example.status, example.detail) == ("unreadable", says)


def test_nulls_that_a_table_puts_into_messages_are_not_shown_to_the_template(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.keys() | join(' ') }}{{ m['content'] }}{% endfor %}"
    example = encode(tokenizer, [{"role": "assistant", "content": "a", "name": None}])
    assert tokenizer.decode(example.values["input_ids"]) == "role contenta"


def test_without_a_chat_template_messages_are_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(RequestError, match=r"^model.base: the tokenizer of .* has no chat template") as error:
        encoder(tokenizer, 512)
    assert "\n" not in str(error.value)


def test_the_preview_shows_the_last_reply(tokenizer):
    assert encode(tokenizer, TALK[:3]).preview == (
        "system: you are a helpful assistant user: Paris? ⟶ assistant: Paris"
    )
    assert encode(tokenizer, TALK[:2]).preview == "system: you are a helpful assistant user: Paris?"
    parts = [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}]
    assert encode(tokenizer, parts).preview == "user: in parts"


def test_marks_that_are_counted_from_the_wrong_place_are_not_believed(tokenizer):
    # transformers counts the characters before a mark in what was written so far: within a macro that is less.
    tokenizer.chat_template = (
        "{% macro said(m) %}<|im_start|>{{ m['role'] }}\n{% generation %}{{ m['content'] }}<|im_end|>"
        "{% endgeneration %}{% endmacro %}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ said(m) }}"
        "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    example = encode(tokenizer, TALK)
    assert said(tokenizer, example) == ["Paris<|im_end|>", "\n Paris again<|im_end|>"]
    assert example.rule == TURNS


def test_marks_are_found_where_offsets_leave_out_whitespace(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.chat_template = MARKED.replace("{{ bos_token }}", "")
    talk = [TALK[1], {"role": "assistant", "content": " Paris"}, TALK[1], TALK[2]]
    example = encode(tokenizer, talk)
    assert said(tokenizer, example) == [" Paris<|im_end|>", "Paris<|im_end|>"]
    theirs = tokenizer.apply_chat_template(talk, return_assistant_tokens_mask=True, return_dict=True)
    assert sum(theirs["assistant_masks"]) == 0  # transformers gives up at the first one
    assert example.rule == MARKS


def test_a_marked_template_takes_messages_at_their_word(tokenizer):
    tokenizer.chat_template = MARKED
    talk = [TALK[0], {**TALK[1], "train": True}, {**TALK[2], "train": False}, *TALK[3:]]
    example = encode(tokenizer, talk)
    assert said(tokenizer, example) == ["Paris?<|im_end|>", "\n Paris again<|im_end|>"]
    assert example.rule == MARKS + ", with the messages' own flags"


def test_the_same_words_again_and_again_are_each_turns_own(tokenizer):
    for content in ("a", "assistant", "<|im_end|>", "\n", "im", "0"):
        talk = [{"role": role, "content": content} for role in ("user", "assistant") * 4]
        talk[3] = {**talk[3], "weight": 0}
        want = [f"{content}<|im_end|>"] * 3 if content.strip() else []
        assert said(tokenizer, encode(tokenizer, talk)) == want


def test_a_turn_that_can_only_be_found_alone(tokenizer):
    # Nothing stands between the turns, and the template changes what they say: one at a time they are found.
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    talk = [
        {"role": "user", "content": "who? "},
        {"role": "assistant", "content": "fox. ", "weight": 0},
        {"role": "assistant", "content": "dog."},
    ]
    assert said(tokenizer, encode(tokenizer, talk)) == ["DOG."]


def test_an_empty_thought_is_the_assistants_where_the_row_has_it(tokenizer):
    for content in ("<think>\n\n</think>\n\nParis", "<think></think>Paris"):
        assert said(tokenizer, encode(tokenizer, [TALK[1], {"role": "assistant", "content": content}])) == [
            f"{content}<|im_end|>"
        ]


@pytest.mark.parametrize(
    "thought", ["<think>hm</think>", "<think>\n\n</think>\n\n", "\n<think>\nhm\n</think>\n\n", "[THINK]hm[/THINK]"]
)
def test_a_thoughts_own_tag_is_a_target_where_nothing_asks_for_the_turn(tokenizer, thought):
    # As Llama 2's and Mistral's templates: without a header before what the assistant says.
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        " {{ m['content'] | trim }} </s>{% endif %}{% endfor %}"
    )
    talk = [TALK[1], {"role": "assistant", "content": f"{thought}Paris"}] * 2
    assert [text.strip() for text in said(tokenizer, encode(tokenizer, talk))] == [f"{thought.lstrip()}Paris </s>"] * 2


def test_a_turn_goes_on_where_the_template_says_its_text_again(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}, again {{ m['content'] }}{% endif %}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = said(tokenizer, encode(tokenizer, TALK[1:3] * 2))
    assert [turn.lstrip() for turn in turns] == ["Paris, again Paris</s>"] * 2


def test_what_divides_messages_may_stand_in_one_that_the_template_changes(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}|{% endfor %}"
    talk = [TALK[1], {"role": "assistant", "content": "fox|dog"}, TALK[1], {"role": "assistant", "content": "a|b"}]
    assert said(tokenizer, encode(tokenizer, talk)) == ["FOX|DOG", "A|B"]


def test_marks_may_leave_out_thoughts(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}"
        "{{ m['content'].split('</think>')[0] }}</think>{% generation %}"
        "{{ m['content'].split('</think>')[1] }}{% endgeneration %}{% else %}{{ m['content'] }}"
        "{% endif %}\n{% endfor %}"
    )
    example = encode(tokenizer, [TALK[1], {"role": "assistant", "content": "<think>hm, lazy</think>Paris"}])
    assert (said(tokenizer, example), example.rule) == (["Paris"], MARKS)


def test_whitespace_that_offsets_leave_out_is_the_turns_own(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}"
    )
    example = encode(tokenizer, [TALK[1], {"role": "assistant", "content": "Paris  "}, TALK[1]])
    assert said(tokenizer, example) == ["Paris  "]


def test_a_tokenizer_without_offsets_finds_the_same_turns():
    tokenizer = ByT5Tokenizer()  # in Python, a byte a token
    assert not tokenizer.is_fast
    for template in (CHATML.replace("{{ bos_token }}", ""), MARKED.replace("{{ bos_token }}", "")):
        tokenizer.chat_template = template
        example = encode(tokenizer, TALK)
        assert example.values["input_ids"] == tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"]
        assert said(tokenizer, example) == ["Paris<|im_end|>", "\n Paris again<|im_end|>"]
