"""What the vectors of a model are worth: similarity of pairs, search, and labels of neighbours.

    scored pairs     Spearman's and Pearson's correlation of the similarity and the score
    search           nDCG@10, MRR@10, recall@1, @10 and @100: pairs without a score, or a folder with `corpus.jsonl`,
                     `queries.jsonl` and `qrels` (jsonl or tsv), as BEIR has it
    texts with label area under the ROC curve of "two texts have the same label" by their similarity, and the accuracy
                     of the label that most of the nearest texts have
    all of them      alignment, the mean squared distance of texts that belong together, and uniformity, the logarithm
                     of the mean of exp(-2 squared distance) of all texts, both of vectors of length 1 (Wang and Isola
                     2020, arXiv:2005.10242); lower is better

Everything is measured for whole vectors and, where the model was trained for that, for their first numbers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trivium.data.intake import Intake
from trivium.data.labels import LabelRow, label_of, label_set, read_label_rows
from trivium.data.sides import source_ids
from trivium.data.similar import Alike, alike_of, read
from trivium.errors import DataError
from trivium.evaluation import metrics
from trivium.evaluation.intervals import Figure, Floats, ratio, with_intervals
from trivium.evaluation.labelled import Evaluation
from trivium.models.sentences import PASSAGE, QUERY, Sentences

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel
    from trivium.recipe import DataSection, Source

Ints = NDArray[np.int64]
NEIGHBOURS = 10
COMPARED = 1000
"""Most texts of which all pairs are compared (area under the curve, uniformity), drawn by the seed."""
PAIR_RESAMPLES = 200
"""Resamples behind the intervals of figures over all pairs of texts."""
FOUND = 100
"""Passages kept for each query."""


@dataclass(frozen=True)
class Search:
    """Queries, passages, and for each query which passages answer it, and how well (above 0)."""

    queries: Sequence[str]
    passages: Sequence[str]
    relevant: Sequence[Mapping[int, float]]
    names: Sequence[str] = ()
    passage_names: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """Something to measure on: texts to make vectors of, and figures from the vectors.

    sides:   texts, and whether they are passages.
    figures: from the vectors of each side.  predictions: from the vectors of whole length.
    """

    kind: str
    rows: int
    account: Mapping[str, Any]
    sides: Sequence[tuple[Sequence[str], bool]]
    figures: Callable[[Sequence[Floats], int], dict[str, Figure]]
    predictions: Callable[[Sequence[Floats]], list[dict[str, Any]]]
    more: Mapping[str, Any] = field(default_factory=dict)


def evaluate_vectors(
    model: LanguageModel,
    sources: Sequence[Source],
    settings: DataSection,
    *,
    seed: int = 0,
    dimensions: Sequence[int] | None = None,
    against: Sequence[Source] = (),
) -> Evaluation:
    """Measures the vectors of a model on rows of one of the kinds above, or on a folder for search.

    dimensions: lengths to which vectors are cut beside the whole; default: those the model was trained for.
    against:    texts with labels among which the neighbours are looked for; default: the other rows.
    """
    sentences = model.sentences or Sentences()
    task = _task(sources, settings, against)
    raw, cut = [], 0
    for texts, passages in task.sides:
        prompt = PASSAGE if passages else QUERY
        chosen = prompt if prompt in sentences.prompts else None
        found = model.embed(list(texts), prompt=chosen, normalize=False, truncate=True)
        raw.append(found.double().numpy())
        cut += sum(len(source_ids(model.tokenizer, text)) > model.context_length for text in texts)
    whole = raw[0].shape[1]
    lengths = sentences.dimensions if dimensions is None else dimensions
    _check_lengths(lengths, whole)
    shaped = {size: [_shaped(side, size, sentences) for side in raw] for size in (whole, *lengths)}
    measured = {size: task.figures(sides, seed) for size, sides in shaped.items()}
    summary = {
        "kind": "vectors",
        "task": task.kind,
        "rows": task.rows,
        "data": task.account,
        "metrics": {name: figure.as_dict() for name, figure in measured[whole].items()},
        "per_label": {
            f"first {size} numbers": {name: figure.as_dict() for name, figure in measured[size].items()}
            for size in lengths
        },
        "texts_cut": cut,
        **task.more,
    }
    return Evaluation(summary, task.predictions(shaped[whole]))


def _check_lengths(lengths: Sequence[int], whole: int) -> None:
    for size in lengths:
        if not 0 < size < whole:
            raise DataError(f"the vectors have {whole} numbers, so they cannot be cut to this length", value=size)


def _shaped(vectors: Floats, size: int, sentences: Sentences) -> Floats:
    """The first numbers, at length 1 where the model compares by the cosine or gives such vectors."""
    part = vectors[:, :size]
    return part if sentences.similarity == "dot" and not sentences.normalize else unit(part)


def unit(vectors: Floats) -> Floats:
    """The vectors at length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Floats = vectors / np.maximum(lengths, 1e-12)
    return found


# What the data is


def _task(sources: Sequence[Source], settings: DataSection, against: Sequence[Source]) -> Task:
    if len(sources) == 1 and (Path(sources[0].path) / "corpus.jsonl").is_file():
        search = read_search(Path(sources[0].path))
        account = {"input": len(search.queries), "kept": len(search.queries), "dropped": {}, "quarantined": {}}
        return _search(search, account)
    intake = Intake(settings.on_error)
    rows = [row for source in sources for row in read(source, Intake("quarantine"))]
    if not rows:
        raise DataError("there are no rows to measure on", where=", ".join(source.path for source in sources))
    if len(alike_of(rows[0], settings.similar, Intake()).texts) == 1:
        return _labels(sources, settings, against, intake)
    pairs: list[Alike] = []
    for row in (row for source in sources for row in read(source, intake)):
        try:
            found = alike_of(row, settings.similar, intake)
            if (found.score is None) != (pairs[0].score is None if pairs else found.score is None):
                raise DataError("some rows have a score and others have none", where=row.where)
            pairs.append(found)
        except DataError as error:
            intake.reject(error)
    account = {"input": len(rows), "kept": len(pairs), "dropped": {}, **intake.summary()}
    if pairs[0].score is not None:
        first, second = ([pair.texts[side] for pair in pairs] for side in (0, 1))
        return _similarity(first, second, np.array([pair.score for pair in pairs], dtype=np.float64), account)
    return _search(_search_of([pair.texts for pair in pairs]), account)


def _search_of(pairs: Sequence[Sequence[str]]) -> Search:
    """Each anchor looks for its positives among all positives and negatives."""
    queries: dict[str, dict[int, float]] = {}
    passages: dict[str, int] = {}
    for anchor, *others in pairs:
        numbers = [passages.setdefault(text, len(passages)) for text in others]
        queries.setdefault(anchor, {})[numbers[0]] = 1.0
    return Search(list(queries), list(passages), list(queries.values()))


def read_search(folder: Path) -> Search:
    """A folder of queries, passages and judgements; queries without a relevant passage are left out."""
    passages = {name: text for name, text in _texts(folder / "corpus.jsonl")}
    asked = {name: text for name, text in _texts(folder / "queries.jsonl")}
    places = {name: number for number, name in enumerate(passages)}
    relevant: dict[str, dict[int, float]] = {}
    for query, passage, score, where in _judgements(folder):
        if query not in asked or passage not in places:
            missing = query if query not in asked else passage
            raise DataError("a judgement names a text that is not there", where=where, value=missing)
        if score > 0:
            relevant.setdefault(query, {})[places[passage]] = score
    if not relevant:
        raise DataError("no query has a relevant passage", where=folder, fix="check the files of qrels")
    names = [name for name in asked if name in relevant]
    return Search(
        [asked[name] for name in names],
        list(passages.values()),
        [relevant[name] for name in names],
        names,
        list(passages),
    )


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for where, row in _json_lines(path):
        name, text = row.get("_id", row.get("id")), row.get("text")
        if name is None or not isinstance(text, str):
            raise DataError("a text has no _id or no text", where=where, value=row)
        title = row.get("title")
        yield str(name), f"{title} {text}".strip() if isinstance(title, str) and title else text


def _judgements(folder: Path) -> Iterator[tuple[str, str, float, str]]:
    """(query, passage, score, place) of each judgement: `qrels.jsonl`, or tsv files in `qrels`, `test.tsv` if it is."""
    if (folder / "qrels.jsonl").is_file():
        for where, row in _json_lines(folder / "qrels.jsonl"):
            yield _judgement([row.get("query-id"), row.get("corpus-id"), row.get("score", 1)], where)
        return
    files = sorted((folder / "qrels").glob("*.tsv")) or sorted(folder.glob("qrels*.tsv"))
    files = [path for path in files if path.name == "test.tsv"] or files
    if not files:
        raise DataError("the folder has no qrels", where=folder, fix="put qrels.jsonl or qrels/test.tsv there")
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            for number, cells in enumerate(csv.reader(file, delimiter="\t"), 1):
                if cells and cells[0] != "query-id":
                    yield _judgement([*cells, 1][:3], f"{path}:{number}")


def _judgement(cells: Sequence[Any], where: str) -> tuple[str, str, float, str]:
    try:
        query, passage, score = cells
        return str(query), str(passage), float(score), where
    except (TypeError, ValueError):
        raise DataError(
            "a judgement is not query-id, corpus-id and a number", where=where, value=cells, fix="correct this line"
        ) from None


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the file cannot be read", where=path, value=str(error)) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError("not a line of JSON", where=f"{path}:{number}", value=str(error)) from None
        if not isinstance(row, dict):
            raise DataError("not an object of JSON", where=f"{path}:{number}", value=row)
        yield f"{path}:{number}", row


# Scored pairs


def _similarity(first: Sequence[str], second: Sequence[str], score: Floats, account: Mapping[str, Any]) -> Task:
    alike = score >= 0.8 * score.max()

    def figures(sides: Sequence[Floats], seed: int) -> dict[str, Figure]:
        values = (sides[0] * sides[1]).sum(axis=1)
        distance = ((unit(sides[0]) - unit(sides[1])) ** 2).sum(axis=1)

        def statistic(weights: Floats) -> Mapping[str, Floats]:
            return {
                "spearman": np.array([metrics.spearman(values, score, each) for each in weights]),
                "pearson": metrics.correlation(values, score, weights),
                "alignment": ratio(weights[:, alike] @ distance[alike], weights[:, alike].sum(axis=1)),
            }

        found = with_intervals(statistic, len(score), seed=seed, resamples=1000 if len(score) <= 5000 else 200)
        return found | _spread(np.concatenate(sides), seed)

    def predictions(sides: Sequence[Floats]) -> list[dict[str, Any]]:
        values = (sides[0] * sides[1]).sum(axis=1)
        return [
            {"text": one, "text_pair": other, "true": float(true), "predicted": float(value)}
            for one, other, true, value in zip(first, second, score, values, strict=True)
        ]

    return Task("similarity", len(score), account, [(first, False), (second, False)], figures, predictions)


# Search


def _search(search: Search, account: Mapping[str, Any]) -> Task:
    def figures(sides: Sequence[Floats], seed: int) -> dict[str, Figure]:
        values = search_values(best_passages(sides[0], sides[1]), search.relevant)
        queries, passages = (unit(side) for side in sides)
        values["alignment"] = np.array(
            [((queries[at] - passages[list(own)]) ** 2).sum(axis=1).mean() for at, own in enumerate(search.relevant)]
        )
        found = with_intervals(
            lambda weights: {name: ratio(weights @ each, weights.sum(axis=1)) for name, each in values.items()},
            len(search.queries),
            seed=seed,
        )
        return found | _spread(sides[1], seed)

    def predictions(sides: Sequence[Floats]) -> list[dict[str, Any]]:
        names = search.passage_names or list(map(str, range(len(search.passages))))
        return [
            {
                "id": search.names[at] if search.names else str(at),
                "text": search.queries[at],
                "true": [names[number] for number in search.relevant[at]],
                "predicted": [names[number] for number in found[:10].tolist()],
            }
            for at, found in enumerate(best_passages(sides[0], sides[1]))
        ]

    sides = [(search.queries, False), (search.passages, True)]
    more = {"passages": len(search.passages)}
    return Task("search", len(search.queries), account, sides, figures, predictions, more)


def best_passages(queries: Floats, passages: Floats) -> list[Ints]:
    """For each query the numbers of the passages most alike, the best first, equal ones by their number."""
    found: list[Ints] = []
    for start in range(0, len(queries), 256):
        similarity = queries[start : start + 256] @ passages.T
        found += list(np.argsort(-similarity, axis=1, kind="stable")[:, :FOUND].astype(np.int64))
    return found


def search_values(found: Sequence[Ints], relevant: Sequence[Mapping[int, float]]) -> dict[str, Floats]:
    """Figures of each query: nDCG@10 (gain = score), MRR@10, recall@1, @10, @100."""
    discount = 1 / np.log2(np.arange(2, 12))
    values: dict[str, list[float]] = {"ndcg@10": [], "mrr@10": [], "recall@1": [], "recall@10": [], "recall@100": []}
    for numbers, own in zip(found, relevant, strict=True):
        gain = np.array([own.get(number, 0.0) for number in numbers.tolist()])
        ideal = np.sort(np.array(list(own.values())))[::-1][:10]
        first = np.flatnonzero(gain[:10] > 0)
        values["ndcg@10"].append(float(gain[:10] @ discount[: len(gain[:10])] / (ideal @ discount[: len(ideal)])))
        values["mrr@10"].append(1 / (1 + int(first[0])) if len(first) else 0.0)
        for size in (1, 10, 100):
            values[f"recall@{size}"].append(float((gain[:size] > 0).sum() / len(own)))
    return {name: np.array(each) for name, each in values.items()}


# Labels


def _labels(sources: Sequence[Source], settings: DataSection, against: Sequence[Source], intake: Intake) -> Task:
    rows = [row for source in sources for row in read_label_rows(source, settings.labels, intake)]
    others = [row for source in against for row in read_label_rows(source, settings.labels, intake)]
    labels = label_set([*rows, *others], settings.labels)
    if labels.problem != "single_label" or len(labels.names) < 2:
        raise DataError(
            "vectors are measured on texts with one of several labels, on pairs, or on a folder for search",
            where=", ".join(source.path for source in sources),
            value=labels.problem if labels.problem != "single_label" else f"labels: {', '.join(labels.names)}",
        )
    numbers = {name: at for at, name in enumerate(labels.names)}

    def numbered(given: Sequence[LabelRow]) -> Ints:
        return np.array([numbers[label_of(row, settings.labels)] for row in given], dtype=np.int64)

    truth, other = numbered(rows), numbered(others)
    texts, beside = ([" ".join(row.texts) for row in given] for given in (rows, others))

    def figures(sides: Sequence[Floats], seed: int) -> dict[str, Figure]:
        said = neighbour_labels(sides[0], truth, sides[1] if others else None, other, len(labels.names))
        right = (said == truth).astype(np.float64)
        found = with_intervals(
            lambda weights: {"neighbour_accuracy": ratio(weights @ right, weights.sum(axis=1))}, len(truth), seed=seed
        )
        return found | same_label(sides[0], truth, seed) | _spread(sides[0], seed)

    def predictions(sides: Sequence[Floats]) -> list[dict[str, Any]]:
        said = neighbour_labels(sides[0], truth, sides[1] if others else None, other, len(labels.names))
        return [
            {"id": row.row.name, "text": text, "true": labels.names[true], "predicted": labels.names[guess]}
            for row, text, true, guess in zip(rows, texts, truth.tolist(), said.tolist(), strict=True)
        ]

    account = {"input": len(rows) + intake.quarantined.total(), "kept": len(rows), "dropped": {}, **intake.summary()}
    sides = [(texts, False), *([(beside, False)] if others else [])]
    more = {"labels": list(labels.names), "neighbours": NEIGHBOURS}
    return Task("labels", len(rows), account, sides, figures, predictions, more)


def neighbour_labels(vectors: Floats, truth: Ints, others: Floats | None, labels: Ints, count: int) -> Ints:
    """[N] the label that most of the nearest texts have; of equally many the one of the nearest of them.

    others, labels: the texts among which neighbours are looked for; None: the other ones of `vectors`.
    """
    alone = others is None
    beside, known = (vectors, truth) if others is None else (others, labels)
    said = []
    for start in range(0, len(vectors), 256):
        similarity = vectors[start : start + 256] @ beside.T
        if alone:
            rows = np.arange(len(similarity))
            similarity[rows, rows + start] = -np.inf
        size = min(NEIGHBOURS, len(beside) - alone)
        nearest = known[np.argsort(-similarity, axis=1, kind="stable")[:, :size]]
        # The nearest votes a little more than the next, so that no two labels are even.
        votes = 1 + 1e-3 * np.arange(size, 0, -1) / size
        said.append(((nearest[:, :, None] == np.arange(count)) * votes[None, :, None]).sum(axis=1).argmax(axis=1))
    return np.concatenate(said).astype(np.int64)


def same_label(vectors: Floats, truth: Ints, seed: int) -> dict[str, Figure]:
    """The area under the curve of "same label" by similarity, and the alignment of texts with one label."""
    chosen = _drawn(len(vectors), seed)
    vectors, truth = vectors[chosen], truth[chosen]
    first, second = np.triu_indices(len(vectors), 1)
    values, same = (vectors @ vectors.T)[first, second], (truth[first] == truth[second]).astype(np.float64)
    order = np.argsort(-values, kind="stable")
    first, second, values, same = first[order], second[order], values[order], same[order]
    unit_vectors = unit(vectors)
    distance = 2 - 2 * unit_vectors @ unit_vectors.T
    alike = (truth[:, None] == truth[None]) & ~np.eye(len(truth), dtype=np.bool_)

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        areas = [metrics.ranking(same, values, (each[first] * each[second])[None])[0][0] for each in weights]
        return {"same_label_auc": np.array(areas), "alignment": _mean_of_pairs(distance, alike, weights)}

    return with_intervals(statistic, len(truth), seed=seed, resamples=PAIR_RESAMPLES)


def _spread(vectors: Floats, seed: int) -> dict[str, Figure]:
    """Uniformity."""
    part = unit(vectors[_drawn(len(vectors), seed)])
    near = np.exp(-2 * np.maximum(2 - 2 * part @ part.T, 0))
    others = ~np.eye(len(part), dtype=np.bool_)
    return with_intervals(
        lambda weights: {"uniformity": np.log(_mean_of_pairs(near, others, weights))},
        len(part),
        seed=seed,
        resamples=PAIR_RESAMPLES,
    )


def _mean_of_pairs(values: Floats, counted: NDArray[np.bool_], weights: Floats) -> Floats:
    """[B] mean of values [N, N] over the pairs that count, each text as often as it was drawn."""
    above = ((weights @ (values * counted)) * weights).sum(axis=1)
    return ratio(above, ((weights @ counted.astype(np.float64)) * weights).sum(axis=1))


def _drawn(count: int, seed: int) -> Ints:
    """At most COMPARED of `count` numbers, in order."""
    if count <= COMPARED:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, COMPARED, replace=False))
