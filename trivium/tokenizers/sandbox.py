"""Chat templates come with models of strangers: they run in a sandbox, in bounded time and space.

Jinja2's own sandbox keeps a template away from Python's internals, but not from eating the machine. Here
everything a template can do passes a check:

* names: only listed attributes, filters and functions exist; all else is refused, not silently empty;
* time: each turn of a loop, call, filter, comparison, operator and output looks at the clock;
* size: each value that is made is measured before (where an operation multiplies) or after it is made.

The measures are counted on the syntax tree: `_Bounded` rewrites loops, comparisons, concatenations and literals
into calls of filters whose names no template can write.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 1.0
OUTPUT = 1_000_000
"""Most characters that come out, and most in any string."""
SOURCE = 200_000
"""Most characters of the template itself."""
_HANDLED = 8 * OUTPUT
"""Most characters written altogether: into macros and blocks, whose text is written again where they are used."""
_ITEMS = 100_000
_DEPTH = 64
_BITS = 256
_INDENT = 16

_STRING = frozenset((
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit", "islower",
    "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "swapcase", "title", "upper",
))  # fmt: skip
_LOOP = frozenset((
    "index", "index0", "first", "last", "length", "revindex", "revindex0", "previtem", "nextitem", "cycle",
    "changed", "depth", "depth0",
))  # fmt: skip
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select",
    "selectattr", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip


class LimitExceeded(SecurityError):
    """The template would need more time or room than a chat template may have."""


class Refused(TemplateError):
    """The template itself refuses the messages, by `raise_exception`."""


class Budget:
    """Time and characters that one rendering may still use; `marks` are written around generated parts."""

    def __init__(self, marks: tuple[str, str] | None) -> None:
        self.marks = marks
        self.deadline = time.monotonic() + SECONDS
        self.work = time.thread_time() + SECONDS
        self.handled = 0

    def spend(self, characters: int = 0) -> None:
        """Look at the clock and count characters."""
        self.handled += characters
        if self.handled > _HANDLED:
            raise LimitExceeded(f"it works on more than {_HANDLED:,} characters")
        # A machine that is busy with other things must not fail an innocent template, so work counts in the end. The
        # clock is asked first because it is quicker to read.
        if time.monotonic() > self.deadline and time.thread_time() > self.work:
            raise LimitExceeded(f"it takes longer than {SECONDS:g} s")


_budget: ContextVar[Budget] = ContextVar("budget")


def compile_template(source: str) -> jinja2.Template:
    """Parse a template; jinja2.TemplateSyntaxError and LimitExceeded say why it cannot be used."""
    if len(source) > SOURCE:
        raise LimitExceeded(f"it is longer than {SOURCE:,} characters")
    try:
        return _ENVIRONMENT.from_string(source)
    except (RecursionError, SyntaxError, MemoryError):
        raise LimitExceeded("it is nested too deeply") from None


def render(template: jinja2.Template, variables: Mapping[str, Any], *, marks: tuple[str, str] | None = None) -> str:
    """The text of a template. `variables` hold plain JSON values; `marks` go around `{% generation %}` blocks."""
    budget = Budget(marks)
    token = _budget.set(budget)
    try:
        for value in variables.values():
            measured(value)
        pieces, size = [], 0
        for piece in template.generate(variables):
            budget.spend()
            size += len(piece)
            if size > OUTPUT:
                raise LimitExceeded(f"it writes more than {OUTPUT:,} characters")
            pieces.append(piece)
        return "".join(pieces)
    except RecursionError:
        raise LimitExceeded("it calls itself too deeply") from None
    finally:
        _budget.reset(token)


def measured(value: Any) -> Any:
    """`value` itself, if it is small enough in all its parts (a shared part counts each time it appears)."""
    if isinstance(value, str):
        _allow(len(value), OUTPUT, "a string")
    elif isinstance(value, int):
        _allow(value.bit_length(), _BITS, "a number")
    elif isinstance(value, (list, tuple, dict)):
        items = characters = 0
        waiting = [(value, 0)]
        while waiting:
            part, depth = waiting.pop()
            items += 1
            if isinstance(part, str):
                characters += len(part)
            elif isinstance(part, (list, tuple, dict)):
                _allow(items + len(part), _ITEMS, "a list or mapping")
                _allow(depth, _DEPTH, "the nesting of a list or mapping")
                inside = [*part.keys(), *part.values()] if isinstance(part, dict) else part
                waiting.extend((item, depth + 1) for item in inside)
            if items > _ITEMS or characters > OUTPUT:
                _allow(max(items, characters), 0, "a list or mapping")
    return value


def _allow(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise LimitExceeded(f"{what} becomes too large")


class _Bounded(NodeTransformer):
    """Rewrites the syntax tree so that nothing runs for long between two looks at the clock."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise SecurityError("recursive loops are not allowed")
        literal = sum(len(data.data) for part in node.body for data in _literals(part))
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "bounded loop", nodes.Const(literal))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "bounded value")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "bounded concat")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "bounded value")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "bounded value")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "bounded value") if node.ctx == "load" else node

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError("templates cannot load or extend other templates")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refuse


def _literals(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)


def _filtered(node: nodes.Node, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


def _bounded_loop(iterable: Iterable[Any], literal: int) -> Iterator[Any]:
    """What is iterated over; each turn costs the literal text it can write and the size of its item."""
    budget = _budget.get()
    for item in iterable:
        budget.spend(literal + (len(item) if isinstance(item, (str, list, tuple, dict)) else 0))
        yield item


def _bounded_value(value: Any) -> Any:
    _budget.get().spend()
    return measured(value)


def _bounded_concat(parts: list[Any]) -> str:
    _budget.get().spend()
    return str(measured("".join(str(measured(part)) for part in parts)))


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at the clock, and at the size of what it makes."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _budget.get().spend()
        for argument in (*args, *kwargs.values()):
            measured(argument)
        result = function(*args, **kwargs)
        return _bounded_loop(result, 0) if isinstance(result, Iterator) else measured(result)

    return wrapper


def _emitted(value: Any) -> Any:
    """What `{{ value }}` writes; text in macros and blocks is counted here too."""
    budget = _budget.get()
    measured(value)
    budget.spend(len(value) if isinstance(value, str) else 0)
    return value


# Filters and functions that multiply are written anew, with the measure before the work.


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = (_ENVIRONMENT.getitem(item, attribute) for item in value)
    parts, size = [], 0
    for part in _bounded_loop(value, 0):
        parts.append(str(measured(part)))
        size += len(parts[-1]) + len(d)
        _allow(size, OUTPUT + len(d), "a string")
    return d.join(parts)


def _replace(s: Any, old: str, new: str, count: int = -1) -> str:
    text = str(s)
    _allow(len(text) + text.count(old) * len(new), OUTPUT, "a string")
    return text.replace(old, new, -1 if count is None else count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _allow(width if isinstance(width, int) else len(width), _INDENT, "an indentation")
    _allow(len(s) + _INDENT * (s.count("\n") + 1), OUTPUT, "a string")
    return FILTERS["indent"](s, width, first, blank)  # type: ignore[no-any-return]


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    _allow(abs(precision), _INDENT, "a precision")
    return FILTERS["round"](value, precision, method)  # type: ignore[no-any-return]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: not escaped for HTML, unlike Jinja's own."""
    _allow(indent if isinstance(indent, int) else len(indent or ""), _INDENT, "an indentation")
    _allow(sum(map(len, separators or ())), _INDENT, "a separator")
    return json.dumps(
        measured(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _range(*args: int) -> range:
    numbers = range(*args)
    _allow(max(map(abs, args), default=0), 1 << 62, "a number")
    _allow(len(numbers), _ITEMS, "a range")
    return numbers


def _raise_exception(message: object) -> None:
    raise Refused(str(message))


def _strftime_now(form: str) -> str:
    """Today; the day can be fixed by SOURCE_DATE_EPOCH, so that the same data gives the same tokens tomorrow."""
    _allow(len(form), 100, "a date format")
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    return (datetime.now() if fixed is None else datetime.fromtimestamp(int(fixed))).strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Namespace(Namespace):
    """Jinja's `namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, measured(value))

    def __repr__(self) -> str:  # Jinja's shows what is inside, which can be other namespaces without end
        return "<namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the name {name!r} is not allowed")


_FUNCTIONS: dict[str, Any] = {
    "range": _range,
    "dict": _dict,
    "namespace": _Namespace,
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: the part of the text that the model is trained to write."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Macro) -> str:
        marks = _budget.get().marks
        return caller() if marks is None else f"{marks[0]}{caller()}{marks[1]}"


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=_emitted,
            cache_size=0,
        )
        self.globals = dict(_FUNCTIONS)
        own = {"join": _join, "replace": _replace, "indent": _indent, "round": _round, "tojson": _tojson}
        listed = {name: FILTERS[name] for name in _FILTERS}
        self.filters = {name: _bounded(function) for name, function in {**listed, **own}.items()}
        self.filters |= {
            "bounded loop": _bounded_loop,
            "bounded value": _bounded_value,
            "bounded concat": _bounded_concat,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Bounded().visit(tree)  # type: ignore[no-any-return]

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute.startswith("__"):
            self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` can ask for any width; it is not on the list at all."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_"):
            return False
        if isinstance(obj, str):
            return attr in _STRING
        if isinstance(obj, dict):
            return attr in ("items", "keys", "values", "get")
        if isinstance(obj, (list, tuple)):
            return attr in ("index", "count")
        if isinstance(obj, LoopContext):
            return attr in _LOOP
        return isinstance(obj, (Namespace, Undefined))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__} is not allowed")

    def is_safe_callable(self, obj: Any) -> bool:
        if isinstance(obj, (Macro, Undefined)) or any(obj is function for function in _FUNCTIONS.values()):
            return True
        if isinstance(obj, BuiltinMethodType):
            return isinstance(obj.__self__, (str, dict, list, tuple))
        return isinstance(obj, MethodType) and isinstance(obj.__self__, (str, LoopContext, _Generation))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _budget.get().spend()
        for argument in (*args, *kwargs.values()):
            measured(argument)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            if __obj.__name__ == "replace":
                return _replace(text, *args, **kwargs)
            if __obj.__name__ == "join":
                return _join(args[0], text)
        result = super().call(__context, __obj, *args, **kwargs)
        return _bounded_loop(result, 0) if isinstance(result, Iterator) else measured(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _budget.get().spend()
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not allowed")
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(times, int):
                    _allow(len(sequence) * times, _ITEMS, "a repetition")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _allow(left.bit_length() * abs(right), _BITS, "a number")
        return measured(super().call_binop(context, operator, left, right))


_ENVIRONMENT = _Environment()
