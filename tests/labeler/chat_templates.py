"""Chat templates in the styles of well-known model families, and tiny teachers that use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from tests.tiny_model import TEXT

# A default system prompt, one token for the end of every turn.
CHATML = """
{%- if messages and messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# Headers of two tokens, contents trimmed, calls after a tag that lasts to the end of the turn.
LLAMA = """
{%- macro header(role) %}<|start_header_id|>{{ role }}<|end_header_id|>{{ '\\n\\n' }}{% endmacro %}
{{- bos_token }}
{%- if tools %}
    {{- header('system') + 'Tools: ' + (tools | tojson) + '<|eot_id|>' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {{- header('assistant') + '<|python_tag|>' }}
        {%- for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}
        {{- '<|eom_id|>' }}
    {%- elif m.role == 'tool' %}
        {{- header('ipython') + (m.content | tojson) + '<|eot_id|>' }}
    {%- else %}
        {{- header(m.role) + (m.content | trim) + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}"""

# No generation prompt; system prompt and tools stand at the last user turn, so history changes;
# roles must alternate.
MISTRAL = """
{%- set chat = namespace(system=none, last=none, turn=0) %}
{%- for m in messages %}
    {%- if m.role == 'system' %}
        {%- set chat.system = m.content %}
    {%- elif m.role == 'user' %}
        {%- set chat.last = loop.index0 %}
    {%- endif %}
    {%- if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is not defined) %}
        {%- if (m.role == 'user') != (chat.turn % 2 == 0) %}
            {{- raise_exception('user and assistant must take turns') }}
        {%- endif %}
        {%- set chat.turn = chat.turn + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if loop.index0 == chat.last and tools %}
            {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' }}
        {%- if loop.index0 == chat.last and chat.system is not none %}
            {{- chat.system + '\\n\\n' }}
        {%- endif %}
        {{- m.content + '[/INST]' }}
    {%- elif m.role == 'assistant' and m.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {{- '' if loop.last else ', ' }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif m.role == 'assistant' %}
        {{- ' ' + (m.content | trim) + eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + (m.content | tojson) + '}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

# The assistant is called model, the system prompt is part of the first user turn.
GEMMA = """
{{- bos_token }}
{%- set chat = namespace(first='', messages=messages) %}
{%- if messages and messages[0].role == 'system' %}
    {%- set chat.first = messages[0].content + '\\n\\n' %}
    {%- set chat.messages = messages[1:] %}
{%- endif %}
{%- for m in chat.messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
    {{- (chat.first if loop.first else '') + (m.content | trim) + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}"""

# Thinking is shown after the last user turn alone; tool responses are a user turn; calls are text.
QWEN = """
{%- set chat = namespace(asked=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set chat.asked = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- set thought = m.reasoning_content or '' %}
        {%- set answer = m.content or '' %}
        {%- if '</think>' in answer %}
            {%- set thought = answer.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > chat.asked and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer }}
        {%- for call in m.tool_calls or [] %}
            {{- '' if loop.first and not answer else '\\n' }}
            {{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# The template itself says what the assistant generates, with a line feed too many.
MARKED = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}
    {%- else %}
        {{- m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# A template that does not know of generation prompts: the header comes with the turn.
HEADERS = """
{%- for m in messages %}
    {{- '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}
{%- endfor %}"""

# No token ends a turn.
ENDLESS = """
{%- for m in messages %}
    {{- m.role + ': ' + m.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""


@dataclass(frozen=True, kw_only=True)
class Style:
    """A template, the tokens that its tokenizer must have, and the model's end tokens (`stop`)."""

    template: str
    tokens: tuple[str, ...]
    bos: str | None = None
    eos: str = "<|im_end|>"
    stop: tuple[str, ...] = ()


IM = ("<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
STYLES = {
    "chatml": Style(template=CHATML, tokens=IM),
    # Like many fine-tunes, the configuration names only the end of a document.
    "chatml-eos": Style(template=CHATML, tokens=(*IM, "<|endoftext|>"), eos="<|endoftext|>"),
    "llama": Style(
        template=LLAMA,
        tokens=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
            *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        ),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        stop=("<|eot_id|>", "<|eom_id|>"),
    ),
    "mistral": Style(
        template=MISTRAL,
        tokens=(
            *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
            *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        bos="<s>",
        eos="</s>",
    ),
    "gemma": Style(
        template=GEMMA,
        tokens=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        stop=("<end_of_turn>",),
    ),
    "qwen": Style(template=QWEN, tokens=(*IM, *TAGS)),
    "marked": Style(template=MARKED, tokens=IM),
    "headers": Style(template=HEADERS, tokens=("</s>",), eos="</s>"),
    "endless": Style(template=ENDLESS, tokens=("</s>",), eos="</s>"),
}


def make_chat_tokenizer(
    path: Path, style: Style, *, text: list[str] = TEXT, vocab_size: int = 320
) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer with the style's tokens and template, and save it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(style.tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=style.bos, eos_token=style.eos
    )
    fast.chat_template = style.template
    fast.save_pretrained(path)
    return fast


def make_chat_teacher(path: Path, style: Style) -> Path:
    """Make a checkpoint's folder without weights: enough for rendering."""
    tokenizer = make_chat_tokenizer(path, style)
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(path)
    stop = [tokenizer.convert_tokens_to_ids(token) for token in style.stop]
    if stop:
        GenerationConfig(eos_token_id=stop).save_pretrained(path)
    return path
