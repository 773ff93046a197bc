"""What stands around a user's words in the chat templates of released models, and what ends a turn in them.

The templates are the released ones without their parts for tools.
"""

import datetime

import pytest
from tiny import CHATML, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers.utils import chat_template_utils

from rbalign.errors import UsageError
from rbalign.lm.templates import around_user, chat_ids, end_ids, prequery_ids

SYSTEM = "You help people who cook."

QWEN = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) '
    'or (message.role == "assistant" and not message.tool_calls) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
"""Qwen2.5."""

LLAMA = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n"
    "    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n'
    "    {%- else %}\n"
    '        {%- set date_string = "26 Jul 2024" %}\n'
    "    {%- endif %}\n"
    "{%- endif %}\n"
    "{#- This block extracts the system message, so we can slot it into the right place. #}\n"
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n"
    "{%- else %}\n"
    '    {%- set system_message = "" %}\n'
    "{%- endif %}\n"
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n'
    '{{- "Cutting Knowledge Date: December 2023\\n" }}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n'
    "{{- system_message }}\n"
    '{{- "<|eot_id|>" }}\n'
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim "
    "+ '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n"
)
"""Llama-3.1 as 3.2 and later copies of 3.1 have it; the first 3.1 always said 26 Jul 2024."""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
"""Gemma-2."""

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""Mistral-7B-Instruct v0.3."""

QWEN_TOLD = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
LLAMA_HEAD = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
LLAMA_USER = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
IM_END = "<|im_end|>\n<|im_start|>assistant\n"
EOT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
TURN = "<end_of_turn>\n<start_of_turn>model\n"

MODELS = {
    "qwen": (QWEN, "<|im_start|>", "<|im_end|>", ()),
    "llama": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "gemma": (GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "mistral": (MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]")),
}


def tokenizer_of(template, bos="<|im_start|>", eos="<|im_end|>", more=()):
    """The tiny one with a model's special tokens and template; it puts a BOS before texts, as Llama's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([bos, eos, *more], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = bos, eos, template
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer.encode("Hi")[0] == tokenizer.bos_token_id
    return tokenizer


@pytest.fixture(params=MODELS)
def model(request):
    return request.param, tokenizer_of(*MODELS[request.param])


PREFIXES = {
    "qwen": f"<|im_start|>system\n{QWEN_TOLD}<|im_end|>\n<|im_start|>user\n",
    "llama": LLAMA_HEAD + LLAMA_USER,
    "gemma": "<bos><start_of_turn>user\n",
    "mistral": "<s>[INST]",
}
UNDER_SYSTEM = {
    "qwen": (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n", IM_END),
    "llama": (LLAMA_HEAD + SYSTEM + LLAMA_USER, EOT),
    "gemma": (f"<bos><start_of_turn>user\n{SYSTEM}\n\n", TURN),
    "mistral": (f"<s>[INST] {SYSTEM}\n\n", "[/INST]"),
}
ENDS = {"qwen": ["<|im_end|>"], "llama": ["<|eot_id|>"], "gemma": ["<end_of_turn>", "<eos>"]}
ENDS["mistral"] = ["</s>", "[/INST]"]


def test_the_prefix_is_all_before_the_users_first_word(model):
    name, tokenizer = model
    ids = prequery_ids(tokenizer)
    assert tokenizer.decode(ids) == PREFIXES[name]
    assert ids.count(tokenizer.bos_token_id) == PREFIXES[name].count(tokenizer.bos_token), "no second BOS"
    before, after = around_user(tokenizer)
    assert tokenizer.decode(before).rstrip(" ") == PREFIXES[name]
    assert tokenizer.decode(after) == UNDER_SYSTEM[name][1]


def test_a_system_prompt_has_its_place_in_every_template(model):
    name, tokenizer = model
    before, after = (tokenizer.decode(ids) for ids in around_user(tokenizer, SYSTEM))
    assert (before, after) == UNDER_SYSTEM[name]
    assert tokenizer.decode(prequery_ids(tokenizer, SYSTEM)) == before
    assert tokenizer.decode(chat_ids(tokenizer, "How do I boil rice?", SYSTEM)) == f"{before}How do I boil rice?{after}"


def test_no_system_prompt_is_none(model):
    name, tokenizer = model
    before = tokenizer.decode(around_user(tokenizer, "")[0]).rstrip(" ")
    assert before == ("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n" if name == "qwen" else PREFIXES[name])


def test_the_defaults_own_words_are_no_dropped_prompt():
    tokenizer = tokenizer_of(*MODELS["qwen"])
    assert around_user(tokenizer, QWEN_TOLD) == around_user(tokenizer)


def test_an_answer_ends_as_the_template_ends_it_and_a_request_too(model):
    name, tokenizer = model
    assert tokenizer.convert_ids_to_tokens(end_ids(tokenizer)) == ENDS[name]


def test_a_template_that_drops_the_system_prompt_gets_it_in_the_users_turn():
    deaf = CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}")
    tokenizer = tokenizer_of(deaf)
    assert tokenizer.decode(around_user(tokenizer, SYSTEM)[0]) == f"<|im_start|>user\n{SYSTEM}\n\n"


@pytest.mark.parametrize(
    ("call", "told"),
    [('strftime_now("%Y-%m-%d")', "2024-07-26"), ("strftime_now( '%B %d, %Y' )", "July 26, 2024")],
)
def test_prompts_are_the_same_every_day(monkeypatch, call, told):
    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 12, 24)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    dated = tokenizer_of("{{ 'Today is ' + " + call + " + '.\n' }}" + CHATML)
    said = dated.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "2031" in said, "transformers asks the clock"
    assert dated.decode(prequery_ids(dated)) == f"Today is {told}.\n<|im_start|>user\n"
    llama = tokenizer_of(*MODELS["llama"])
    assert "Today Date: 26 Jul 2024" in llama.decode(prequery_ids(llama, SYSTEM))


def test_what_a_template_refuses_is_said_in_one_line():
    with pytest.raises(UsageError, match=r"refuses a chat of user: Never\. → use the template"):
        around_user(tokenizer_of("{{ raise_exception('Never.') }}"), SYSTEM)
    with pytest.raises(UsageError, match="shows what is said 0 times"):
        around_user(tokenizer_of("hello"))
