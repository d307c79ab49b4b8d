"""The past of an artifact: found, told and drawn."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import pytest

from trivium.artifacts.checkpoints import CheckpointStore
from trivium.artifacts.layout import lay_out
from trivium.artifacts.lineage import (
    Edge,
    Graph,
    Node,
    Parent,
    parent_of,
    read_lineage,
    render_figure,
    render_html,
    render_json,
    render_svg,
    render_text,
)
from trivium.artifacts.writer import write_artifact, write_file
from trivium.errors import ArtifactError


def make(target: Path, kind: str, *parents: Parent) -> Path:
    with write_artifact(target, kind=kind, parents=parents, seed=3) as folder:
        (folder / "content").write_text(f"{kind} {target.name} {target.parent.name}")
    return target


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is tested by the power-loss tests."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Raw text -> tokens and tokenizer -> pretrained checkpoint -> tuned model; two runs in one folder."""
    (tmp_path / "corpus.txt").write_text("text")
    runs = tmp_path / "runs"
    data = parent_of(tmp_path / "corpus.txt", "data")
    tokenizer = make(runs / "tokenizer", "tokenizer", data)
    tokens = make(runs / "tokens", "tokens", data, parent_of(tokenizer, "tokenizer"))
    write_file(runs / "clm" / "config.yaml", "x: 1")

    def fill(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text("w")
        (folder / "state").write_text("s")

    step = CheckpointStore(runs / "clm").save(
        200, fill, parents=[parent_of(tokens, "data"), parent_of(tokenizer, "tokenizer")]
    )
    write_file(runs / "sft" / "config.yaml", "x: 1")
    make(runs / "sft" / "final", "model", parent_of(step / "model", "start"), parent_of(tokenizer, "tokenizer"))
    return runs


def states(graph: Graph) -> dict[str, str]:
    return {node.name: node.state for node in graph.nodes}


def test_the_whole_past_is_found(runs: Path) -> None:
    graph = read_lineage(runs / "sft" / "final")
    assert states(graph) == {
        "sft/final": "here",
        "clm/checkpoints/step-00000200/model": "here",
        "tokenizer": "here",
        "tokens": "here",
        str(runs.parent / "corpus.txt"): "here",
    }
    assert graph.nodes[0].kind == "model"
    names = {node.key: node.name for node in graph.nodes}
    roles = {(names[edge.parent].split("/")[-1], names[edge.child].split("/")[-1], edge.role) for edge in graph.edges}
    assert roles == {
        ("model", "final", "start"),
        ("tokenizer", "final", "tokenizer"),
        ("tokens", "model", "data"),
        ("tokenizer", "model", "tokenizer"),
        ("corpus.txt", "tokens", "data"),
        ("tokenizer", "tokens", "tokenizer"),
        ("corpus.txt", "tokenizer", "data"),
    }


def test_a_run_folder_stands_for_its_result(runs: Path) -> None:
    assert read_lineage(runs / "sft").nodes[0].name == "sft/final"
    assert read_lineage(runs / "clm").nodes[0].name == "clm/checkpoints/step-00000200"
    with pytest.raises(ArtifactError, match="no artifact"):
        read_lineage(runs / "nothing")
    with pytest.raises(ArtifactError, match="no artifact"):
        read_lineage(runs.parent / "corpus.txt")


def test_parents_survive_a_move_of_all_runs(runs: Path) -> None:
    runs.rename(runs.parent / "elsewhere")
    found = states(read_lineage(runs.parent / "elsewhere" / "sft" / "final"))
    assert set(found.values()) == {"here"}


def test_a_moved_parent_is_found_by_its_content(runs: Path) -> None:
    (runs / "clm").rename(runs / "old-clm")
    (runs / "archive").mkdir()
    (runs / "tokenizer").rename(runs / "archive" / "tok")
    found = states(read_lineage(runs / "sft" / "final"))
    assert found["old-clm/checkpoints/step-00000200/model"] == "moved"
    assert found["archive/tok"] == "moved"
    assert found["tokens"] == "here", "the past of a moved parent is followed"


def test_missing_and_changed_parents_are_told(runs: Path) -> None:
    (runs.parent / "corpus.txt").write_text("other text")
    shutil.rmtree(runs / "tokenizer")
    graph = read_lineage(runs / "sft" / "final")
    found = states(graph)
    assert found[str(runs.parent / "corpus.txt")] == "changed"
    assert found["tokenizer"] == "missing"
    text = render_text(graph)
    assert re.search(r"tokenizer: unknown  tokenizer .*MISSING", text)
    assert re.search(r"data: file  .*corpus\.txt .*CHANGED SINCE", text)
    make(runs / "tokenizer", "tokenizer")
    assert states(read_lineage(runs / "sft" / "final"))["tokenizer"] == "here"
    shutil.rmtree(runs / "tokenizer")
    make(runs / "tokenizer", "model")
    assert states(read_lineage(runs / "sft" / "final"))["tokenizer"] == "changed"


def test_a_parent_with_a_name_and_no_path(tmp_path: Path) -> None:
    make(tmp_path / "m", "model", Parent("pydocs", "f" * 16, "data"))
    graph = read_lineage(tmp_path / "m")
    assert (graph.nodes[1].kind, graph.nodes[1].name, graph.nodes[1].state) == ("source", "pydocs", "named")
    assert "MISSING" not in render_text(graph)


def test_text_is_a_tree_that_shows_each_past_once(runs: Path) -> None:
    lines = render_text(read_lineage(runs / "sft" / "final")).splitlines()
    assert lines[0].startswith("model  sft/final  ")
    assert lines[1].startswith("├─ start: checkpoint  clm/checkpoints/step-00000200/model  ")
    assert sum("(see above)" in line for line in lines) == 2 + 1
    assert lines[-1].startswith("└─ tokenizer: ")


def test_json_has_all(runs: Path) -> None:
    content = json.loads(render_json(read_lineage(runs / "sft" / "final")))
    assert len(content["nodes"]) == 5
    assert content["nodes"][0]["seed"] == 3
    assert set(content["edges"][0]) == {"parent", "child", "role"}


def test_equal_content_in_several_places_and_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    shutil.copy(tmp_path / "a", tmp_path / "b")
    make(tmp_path / "m", "model", parent_of(tmp_path / "a", "train"), parent_of(tmp_path / "b", "validation"))
    graph = read_lineage(tmp_path / "m")
    assert [node.name for node in graph.nodes] == ["m", "a", "b"]
    assert [edge.role for edge in graph.edges] == ["train", "validation"]
    copy = tmp_path / "copy"
    with write_artifact(copy, kind="model", parents=[parent_of(tmp_path / "m", "start")]) as folder:
        shutil.copy(tmp_path / "m" / "content", folder / "content")
    assert [node.name for node in read_lineage(copy).nodes[:2]] == ["copy", "m"]
    with write_artifact(tmp_path / "m", kind="model", parents=[parent_of(copy, "start")], replace=True) as folder:
        shutil.copy(copy / "content", folder / "content")
    circle = read_lineage(copy)
    assert [edge.role for edge in circle.edges] == ["start"]
    render_svg(circle)


def random_graph(size: int, seed: int) -> Graph:
    choose = random.Random(seed)
    nodes = [
        Node(
            key=f"{number:x}",
            kind=choose.choice(["model", "tokens", "file"]),
            name=f"run-{number}/{choose.choice(['final', 'checkpoints/step-00000200/model', 'x' * 60])}",
            path="/x",
            hash=f"{choose.getrandbits(256):064x}",
            state=choose.choice(["here", "here", "missing", "changed", "moved"]),
            created="2026-07-30T12:00:00+00:00",
        )
        for number in range(size)
    ]
    edges = []
    for number in range(1, size):
        for child in {choose.randrange(max(0, number - 12), number) for _ in range(choose.choice([1, 1, 2, 3]))}:
            edges.append(Edge(f"{number:x}", f"{child:x}", choose.choice(["start", "data", "tokenizer", "teacher"])))
    return Graph(nodes, edges)


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    root = ElementTree.fromstring(svg)
    found = root.iter("{http://www.w3.org/2000/svg}rect")
    return [tuple(float(r.attrib[key]) for key in ("x", "y", "width", "height")) for r in found]  # type: ignore[misc]


@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize(("size", "seed"), [(1, 0), (2, 0), (12, 1), (50, 2), (50, 3), (50, 4)])
def test_no_node_covers_another_and_all_lie_inside(size: int, seed: int, columns: int) -> None:
    svg = render_svg(random_graph(size, seed), columns=columns)
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    found = boxes(svg)
    assert len(found) == size
    for x, y, w, h in found:
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    for (x, y, w, h), (u, v, _, _) in combinations(found, 2):
        assert abs(x - u) >= w or abs(y - v) >= h
    assert max(sum(y == v for _, v, _, _ in found) for _, y, _, _ in found) <= columns


def point_on(curve: list[float], part: float) -> tuple[float, float]:
    rest = 1 - part
    weights = (rest**3, 3 * rest**2 * part, 3 * rest * part**2, part**3)
    return (
        sum(w * value for w, value in zip(weights, curve[0::2], strict=True)),
        sum(w * value for w, value in zip(weights, curve[1::2], strict=True)),
    )


def test_no_edge_runs_through_a_node() -> None:
    svg = render_svg(random_graph(50, 5))
    found = boxes(svg)
    paths = re.findall(r'<path d="([^"]+)"', svg)
    assert len(paths) == len({(edge.parent, edge.child) for edge in random_graph(50, 5).edges})
    for path in paths:
        here = (0.0, 0.0)
        for letter, numbers in re.findall(r"([MCV])([-\d. ]+)", path):
            values = [float(number) for number in numbers.split()]
            points = []
            if letter == "C":
                points = [point_on([*here, *values], part / 20) for part in range(1, 20)]
            elif letter == "V":
                points = [(here[0], here[1] + (values[0] - here[1]) * part / 20) for part in range(1, 20)]
            for x, y in points:
                assert not any(bx < x < bx + w and by < y < by + h for bx, by, w, h in found)
            here = (here[0], values[0]) if letter == "V" else (values[-2], values[-1])


def test_parents_stand_above_and_few_edges_cross() -> None:
    chain = lay_out(["c", "b", "a"], [("a", "b"), ("b", "c"), ("a", "c")], columns=4, width=10, slot_width=2, gap=1)
    assert [[slot for slot in row if isinstance(slot, str)] for row in chain.layers] == [["a"], ["b"], ["c"]]
    pairs = lay_out(
        ["z", "x", "y", "1", "2"],
        [("x", "z"), ("y", "z"), ("1", "y"), ("2", "x")],
        columns=4,
        width=10,
        slot_width=2,
        gap=1,
    )
    upper, middle = pairs.layers[0], pairs.layers[1]
    assert [middle.index("y"), middle.index("x")] == [upper.index("1"), upper.index("2")]


def test_what_a_person_needs_is_in_the_picture(runs: Path) -> None:
    (runs.parent / "corpus.txt").unlink()
    graph = read_lineage(runs / "sft" / "final")
    svg = render_svg(graph)
    for said in ("sft/final", "clm/step-200/model", graph.nodes[0].hash[:8], "start", "missing"):
        assert said in svg
    assert graph.nodes[0].created[:10] in svg
    page = render_html(graph)
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "nothing is loaded from outside"
    assert "<script" not in page
    assert render_figure(graph) in page


@pytest.mark.parametrize("payload", ['"><script>alert(1)</script>', "</svg><img src=x onerror=alert(1)>", "{x}%s"])
def test_names_cannot_break_out_of_the_picture(payload: str) -> None:
    node = Node(key="a", kind=payload, name=payload, path=payload, hash="0" * 64, created=payload, state="here")
    other = Node(key="b", kind="model", name="x", path="x", hash="1" * 64)
    page = render_html(Graph([node, other], [Edge("b", "a", payload)]))
    assert "<script" not in page
    assert "<img" not in page
    ElementTree.fromstring(render_svg(Graph([node, other], [Edge("b", "a", payload)])))
