"""Chat templates of our own (Jinja2, as in `tokenizer_config.json`).

Both render each message by itself, so a conversation is always a prefix of its continuation, and both mark what the
assistant says, its end token included, with `{% generation %}`: those tokens are trained.
"""

from __future__ import annotations

TRIVIUM = """\
{{- bos_token -}}
{%- if tools -%}
    {{- '<|system|>You can call these tools:' -}}
    {%- for tool in tools -%}
        {{- '\\n' + (tool | tojson) -}}
    {%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}
            {{- message.content or '' -}}
            {%- for call in message.tool_calls or [] -%}
                {%- set function = call.function or call -%}
                {{- '<|tool_call|>' + ({'name': function.name, 'arguments': function.arguments} | tojson) -}}
            {%- endfor -%}
            {{- eos_token -}}
        {%- endgeneration -%}
    {%- elif message.role == 'user' -%}
        {{- '<|user|>' + message.content -}}
    {%- elif message.role in ['system', 'developer'] -%}
        {{- '<|system|>' + message.content -}}
    {%- elif message.role in ['tool', 'function'] -%}
        {{- '<|tool|>' + message.content -}}
    {%- else -%}
        {{- raise_exception('there is no role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""
"""For vocabularies trained here: one token per role, and EOS ends the assistant's turn."""

PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- '### Assistant:\\n' -}}
        {%- generation -%}
            {{- message.content + eos_token -}}
        {%- endgeneration -%}
        {{- '\\n\\n' -}}
    {%- else -%}
        {{- '### ' + (message.role | capitalize) + ':\\n' + message.content + '\\n\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Assistant:\\n' -}}
{%- endif -%}
"""
"""For any vocabulary with an end token, such as a base model that has no template: roles are plain words."""
