"""The lineage graph: artifacts and what they were made from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Node:
    """An artifact, folder or file; `key` identifies it in the graph.

    state: here, moved, changed or missing; `named` for a parent that was recorded by a name that is no path.
    """

    key: str
    kind: str
    name: str
    path: str
    hash: str
    state: str = "here"
    created: str = ""
    seed: int | None = None
    code: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """`child` was made from `parent` (both are keys of nodes), which played the part `role`."""

    parent: str
    child: str
    role: str


@dataclass(frozen=True)
class Graph:
    """The first node is the artifact whose past this is; there are no cycles."""

    nodes: list[Node]
    edges: list[Edge]
