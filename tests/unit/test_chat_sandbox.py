"""A chat template of a stranger can neither get out nor stay long."""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc

import pytest

from trivium.errors import TokenizerError
from trivium.tokenizers import sandbox
from trivium.tokenizers.chat import ChatTemplate

MESSAGES = [
    {"role": "user", "content": "hello", "pop": "x", "tags": ["a", "b"]},
    {"role": "assistant", "content": "world"},
]

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ (messages|attr('__class__')) }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{{ messages|selectattr('__class__')|list }}",
    "{{ messages|sort(attribute='__class__')|list }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ '%s'|format(1) }}",
    "{{ '%c' % 65 }}",
    "{{ range.__self__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['os'].system('id') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns }}",
    "{{ dict.__base__ }}",
    "{{ dict.fromkeys('ab') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{% for x in messages %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in messages %}{{ loop._iterator }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__call__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].clear() }}",
    "{{ messages[0].copy() }}",
    "{{ 'a'.encode('utf-8') }}",
    "{{ 'a'.translate({}) }}",
    "{{ [].__reduce_ex__(2) }}",
    "{{ (1).to_bytes(8, 'big') }}",
    "{{ (1.5).hex() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'base' %}",
    "{% block content %}{{ self.content() }}{% endblock %}",
    "{{ missing_function() }}",
    "{{ messages() }}",
    "{{ 'abc'() }}",
    "{{ url_for.__globals__ }}",
    "{{ undefined_name.__class__.__init__ }}",
    "{{ messages|tojson(default=raise_exception) }}",
    "{{ messages|pprint }}",
    "{{ messages|xmlattr }}",
    "{% debug %}",
]

BOMBS = [
    "{% for i in range(1000000000) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% set x = i %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "".join(f"{{% for x{n} in range(9) %}}" for n in range(18)) + "{% endfor %}" * 18,
    "{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}",
    "{% set t %}{% for i in range(99999) %}" + "y" * 9000 + "{% endfor %}{% endset %}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    "{% set n = namespace(s=['a']) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s|tojson }}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = {'a': n.s, 'b': n.s} %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ n.s == 1 }}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = dict(a=n.s, b=n.s) %}{% endfor %}{{ n.s }}",
    "{% set n = namespace() %}{% set n.n = n %}{% for i in range(99999) %}{{ n|string|tojson }}{{ 'a' * 90000 }}"
    "{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [1] * 10**9 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 2 ** -(10 ** 9) * 2 ** (10 ** 9) }}",
    "{% set n = namespace(i=7) %}{% for i in range(99) %}{% set n.i = n.i * n.i %}{% endfor %}",
    "{{ 'a'.replace('', 'b' * 90000).replace('', 'c' * 90000) }}",
    "{{ 'a'|replace('a', 'b' * 90000)|replace('', 'c' * 90000) }}",
    "{{ ('a' * 90000).join('b' * 90000) }}",
    "{{ ('b' * 90000)|join('a' * 90000) }}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a'|indent(1000000000) }}",
    "{{ 'a'|indent('b' * 90000, true) }}",
    "{{ messages|tojson(indent=1000000000) }}",
    "{{ messages|tojson(separators=('a' * 90000, 'b' * 90000)) }}",
    "{{ 1|round(1000000000, 'ceil') }}",
    "{{ 'a'|batch(1000000000, 'b')|list }}",
    "{{ range(100000)|slice(1000000000)|list }}",
    "{{ lipsum(n=1000000) }}",
    "{{ ('a' * 90000)|list|map('replace', 'a', 'b' * 90000)|join }}",
    "{{ ('a' * 90000)|list|map('replace', 'a', 'b' * 90000)|list|length }}",
    "{{ ('a' * 90000)|list|map('replace', 'a', 'b' * 90000)|map('list')|list|length }}",
    "{{ ('a' * 90000)|list|map('replace', 'a', 'b' * 90000)|sort|length }}",
    "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(n) %}{% if n %}{% set x = m(n - 1) ~ m(n - 1) %}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1, varargs, varargs) }}{% endif %}{{ varargs|string }}{% endmacro %}"
    "{{ m(60, 1, 1) }}",
    "{% for i in [[1]] recursive %}{{ loop([i, i]) }}{% endfor %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 300 + "]" * 300 + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "x" * 300_000,
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ strftime_now('%1000000000Y') }}{{ 'a' * 10**9 }}",
    "{{ ('1' * 90000)|int * ('1' * 90000)|int + ('f' * 90000)|int(base=16) }}{{ ('f' * 90000)|int(base=16) }}",
    "{% for i in range(99999) %}{{ range(99999)|map('string')|list|length }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999)|sort|list|length }}{% endfor %}",
    "{% for i in range(99999) %}{% if ('a' * 90000) in ('b' * 90000) %}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{{ messages|tojson|length }}{% for j in range(99999) %}{% break %}{% endfor %}"
    "{% endfor %}{{ 'a' * 10 ** 9 }}",
]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, roles={"eos_token": "</s>"}, special={"</s>": 0}, where="hostile/tokenizer_config.json")


WATCHED = ("os", "subprocess", "socket", "open", "import", "shutil", "ctypes")
seen = threading.local()


def watch(event: str, _: object) -> None:
    if getattr(seen, "events", None) is not None and event.split(".")[0] in WATCHED:
        seen.events.append(event)


sys.addaudithook(watch)  # for good: Python cannot remove one


@pytest.fixture(autouse=True, scope="module")
def after_the_first_error():
    """Jinja imports a module of its own when a template fails for the first time."""
    with pytest.raises(TokenizerError):
        template("{{ 1 + 'a' }}").render(MESSAGES)


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_gets_out(source):
    with pytest.raises(TokenizerError) as caught:
        compiled = template(source)
        seen.events = events = []
        try:
            compiled.render(MESSAGES)
        finally:
            seen.events = None
            assert not events
    assert len(str(caught.value).splitlines()) <= 5
    assert "hostile" in str(caught.value)


@pytest.mark.parametrize("source", BOMBS)
def test_bombs_are_stopped(source, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError) as caught:
            template(source).render(MESSAGES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(caught.value).splitlines()) <= 5
    assert peak < 100e6


@pytest.mark.parametrize("source", [BOMBS[1], BOMBS[3], BOMBS[10], BOMBS[41], BOMBS[-2]])
def test_rendering_ends_after_a_second(source):
    compiled = template(source)
    start = time.thread_time()
    with pytest.raises(TokenizerError, match=r"longer than 1 s|too large|too deeply|more than"):
        compiled.render(MESSAGES)
    assert time.thread_time() - start < 1.3


def test_objects_do_not_pass():
    with pytest.raises(TokenizerError, match="message 1"):
        template("{{ messages }}").render([{"role": "user", "content": object()}])


def test_the_failing_line_is_named():
    source = "{{ bos_token }}\n{% for m in messages %}\n{{ m.content + 1 }}\n{% endfor %}"
    with pytest.raises(TokenizerError, match=r"config\.json:3\n *value: {{ m\.content"):
        template(source).render(MESSAGES)


def test_a_syntax_error_names_its_line():
    with pytest.raises(TokenizerError, match=r"config\.json:2"):
        template("{{ 1 }}\n{% for x in messages %}\n")


def test_a_template_can_refuse():
    with pytest.raises(TokenizerError, match="refuses these messages: no system"):
        template("{{ raise_exception('no system') }}").render(MESSAGES)


def test_the_date_can_be_fixed(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert template("{{ strftime_now('%Y') }}").render(MESSAGES).text == "1970"
