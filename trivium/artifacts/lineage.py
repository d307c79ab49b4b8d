"""The past of an artifact: what it was made from, what that was made from, and whether it is still there.

Parents are looked for where they were recorded (paths are relative to the artifact) and, when they are not there or
are something else by now, by their hash among all artifacts under the folder that holds the runs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trivium.artifacts.drawing import render_figure, render_html, render_svg
from trivium.artifacts.graph import Edge, Graph, Node
from trivium.artifacts.manifest import artifact_root, content_hash, find_artifacts, read_manifest
from trivium.artifacts.record import Parent, Record, parent_of, read_record
from trivium.errors import ArtifactError

__all__ = [
    "Edge",
    "Graph",
    "Node",
    "Parent",
    "parent_of",
    "read_lineage",
    "render_figure",
    "render_html",
    "render_json",
    "render_svg",
    "render_text",
]

_RUN_FILES = ("config.yaml", "status.json", "environment.json")
_NOTES = {
    "moved": "moved since",
    "changed": "CHANGED SINCE: another content is at the recorded place",
    "missing": "MISSING: not at the recorded place, nor elsewhere among the runs",
}


def read_lineage(path: Path, *, runs: Path | None = None) -> Graph:
    """The graph of everything `path` was made from; its first node is `path` itself.

    path: an artifact, a folder inside one, or a run folder (then its `final`, or its newest checkpoint).
    runs: where moved parents are searched; by default the folder around the run.
    """
    start = _artifact_of(Path(path))
    return _Walk((runs or _runs_around(start)).resolve()).graph(start)


def render_text(graph: Graph) -> str:
    """The graph as an indented tree, the artifact first and its parents below it."""
    nodes = {node.key: node for node in graph.nodes}
    shown: set[str] = set()

    def lines(key: str, lead: str, below: str) -> Iterator[str]:
        node, again = nodes[key], key in shown
        date = f"  {node.created[:16].replace('T', ' ')}" if node.created else ""
        note = f"  {_NOTES[node.state]}" if node.state in _NOTES else ""
        yield f"{lead}{node.kind}  {node.name}  {node.hash[:12]}{date}{note}{'  (see above)' if again else ''}"
        shown.add(key)
        parents = [] if again else [edge for edge in graph.edges if edge.child == key]
        for edge in parents:
            last = edge is parents[-1]
            yield from lines(
                edge.parent, f"{below}{'└─' if last else '├─'} {edge.role}: ", below + ("   " if last else "│  ")
            )

    return "\n".join(lines(graph.nodes[0].key, "", ""))


def render_json(graph: Graph) -> str:
    """`{"nodes": [...], "edges": [...]}` with all that is known of each."""
    return json.dumps(asdict(graph), indent=1)


@dataclass
class _Walk:
    runs: Path
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    found: dict[str, Path] | None = None

    def graph(self, start: Path) -> Graph:
        pending = [self._add(start.resolve(), content_hash(start), "here")]
        while pending:
            child = pending.pop()
            folder = artifact_root(Path(child.path)) if child.state in ("here", "moved") else None
            record = read_record(folder) if folder else None
            if folder is None or record is None:
                continue
            for parent in record.parents:
                path, content, state = self._locate(folder, parent)
                known = _key(path, content) in self.nodes
                node = self._add(path, content, state)
                edge = Edge(node.key, child.key, parent.role)
                if edge not in self.edges and not self._closes_circle(node.key, child.key):
                    self.edges.append(edge)
                if not known:
                    pending.append(node)
        return Graph(list(self.nodes.values()), self.edges)

    def _closes_circle(self, parent: str, child: str) -> bool:
        """Whether `parent` was itself made from `child`: what is remade in place with equal content can look so."""
        past = [parent]
        for key in past:
            past += [edge.parent for edge in self.edges if edge.child == key and edge.parent not in past]
        return child in past

    def _add(self, path: Path, content: str, state: str) -> Node:
        record: Record | None = read_record(path) if state in ("here", "moved") and path.is_dir() else None
        other = "file" if path.is_file() else "folder" if path.is_dir() else "unknown"
        kind = record.kind if record else "source" if state == "named" else other
        key = _key(path, content)
        self.nodes[key] = Node(
            key=key,
            kind=kind,
            name=path.relative_to(self.runs).as_posix() if path.is_relative_to(self.runs) else str(path),
            path=str(path),
            hash=content,
            state=state,
            created=record.created if record else "",
            seed=record.seed if record else None,
            code=record.code if record else {},
        )
        return self.nodes[key]

    def _locate(self, child: Path, parent: Parent) -> tuple[Path, str, str]:
        path, content = Path(parent.path), parent.hash
        if not path.is_absolute() and path.parts[:1] != ("..",):
            return path, content, "named"
        path = (child / path).resolve()
        if path.exists() and content_hash(path) == content:
            return path, content, "here"
        if self.found is None:
            self.found = _artifacts_below(self.runs)
        if content in self.found:
            return self.found[content].resolve(), content, "moved"
        return path, content, "changed" if path.exists() else "missing"


def _key(path: Path, content: str) -> str:
    return f"{path}@{content[:16]}"


def _artifacts_below(folder: Path) -> dict[str, Path]:
    """Hash -> place of every artifact below `folder`, and of the folders directly inside each."""
    found: dict[str, Path] = {}
    for artifact in find_artifacts(folder):
        with contextlib.suppress(ArtifactError):
            manifest = read_manifest(artifact)
            for prefix in {f"{name.split('/')[0]}/" for name in manifest.files if "/" in name}:
                found[manifest.below(prefix).content] = artifact / prefix
            found[manifest.content] = artifact
    return found


def _artifact_of(path: Path) -> Path:
    """`path`, or for a run folder its result."""
    checkpoints = sorted(path.glob("checkpoints/step-*"), reverse=True)
    for candidate in (path, path / "final", *checkpoints):
        if candidate.is_dir() and artifact_root(candidate):
            return candidate
    raise ArtifactError(
        "no artifact with a recorded past is here",
        where=path,
        fix="give a folder that Trivium wrote (it holds trivium.json), or a run folder",
    )


def _runs_around(start: Path) -> Path:
    artifact = artifact_root(start) or start
    for folder in artifact.parents:
        if any((folder / name).exists() for name in _RUN_FILES):
            return folder.parent
    return artifact.parent
