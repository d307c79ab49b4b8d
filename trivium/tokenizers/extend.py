"""More tokens for a vocabulary that is there: every old token keeps its id, and a model its rows.

Tokens that are named become added tokens, which are found in a text before anything else is done to it. Tokens from
texts are learnt: BPE goes on where it stopped, and merges the pairs that are most frequent now (so a text is cut as
before except where such a pair stands in it); WordPiece and unigram get the most frequent words that they cut apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from trivium.errors import TokenizerError
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import checked

MARGIN = 1e-3
"""By how much a new piece of a unigram model is likelier than the pieces it is made of."""


@dataclass(frozen=True)
class Extension:
    """The larger tokenizer, and for each new id the old ids that its text was until now."""

    tokenizer: Tokenizer
    made_of: Mapping[int, Sequence[int]]


def extend_tokenizer(
    tokenizer: Tokenizer,
    *,
    tokens: Sequence[str] = (),
    special: Sequence[str] = (),
    texts: Iterable[str] = (),
    count: int = 0,
    min_count: int = 2,
    whole_words: bool = False,
) -> Extension:
    """Add `tokens` and `special` tokens as they are written, and `count` tokens learnt from `texts`.

    min_count:   pairs and words that are rarer are not learnt, so texts can give fewer tokens than asked for.
    whole_words: `tokens` are found only where no letter or digit stands beside them.
    """
    named = [*tokens, *special]
    known = [token for token in named if token in tokenizer.vocabulary]
    if known or len(set(named)) != len(named) or not all(named):
        raise TokenizerError(
            "each new token must be new, given once, and not empty",
            where=tokenizer.where,
            value=known or named,
            fix="leave out what the vocabulary has",
        )
    learnt = _learnt(tokenizer, checked(texts), count, min_count) if count else []
    if not named and not learnt:
        raise TokenizerError(
            "there is no token to add",
            where=tokenizer.where,
            value=f"--count {count}, --min-count {min_count}",
            fix="name tokens, or give texts with --from-texts and --count",
        )
    definition, made_of = _with_learnt(tokenizer, learnt)
    first = tokenizer.vocab_size + len(learnt)
    flags = {"lstrip": False, "rstrip": False, "normalized": False}
    added = [*definition["added_tokens"]]
    for place, token in enumerate(named):
        is_special = place >= len(tokens)
        single = whole_words and not is_special
        added.append({"id": first + place, "content": token, "single_word": single, **flags, "special": is_special})
        _append(definition["model"], token, first + place)
        made_of[first + place] = tokenizer.encode(token)
    files = replace(tokenizer.files, definition={**definition, "added_tokens": added})
    return Extension(Tokenizer(files), made_of)


Learnt = tuple[str, list[int], tuple[str, str] | None]
"""A new token, the old ids it is made of, and the merge that makes it."""


def _learnt(tokenizer: Tokenizer, texts: Iterable[str], count: int, min_count: int) -> list[Learnt]:
    backend = tokenizer.backend()
    words = Counter[str]()
    for text in texts:
        plain = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        cut = [(plain, (0, 0))] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(plain)
        words.update(word for word, _ in cut)
    frequent = sorted((word for word in words if words[word] >= min_count), key=lambda word: (-words[word], word))
    pieces = {word: [token.value for token in backend.model.tokenize(word)] for word in words}
    kind = tokenizer.files.definition["model"]["type"]
    if kind == "BPE":
        return _merged(tokenizer, [(pieces[word], words[word]) for word in sorted(words)], count, min_count)
    if kind not in ("WordPiece", "Unigram"):
        raise TokenizerError(
            f"a vocabulary of this kind ({kind}) does not learn from texts",
            where=tokenizer.where,
            fix="name the tokens with --tokens",
        )
    vocabulary, unknown = tokenizer.vocabulary, tokenizer.role_tokens.get("unk_token")
    split = [word for word in frequent if len(pieces[word]) > 1 or pieces[word] == [unknown]]
    return [(word, [vocabulary[piece] for piece in pieces[word]], None) for word in split[:count]]


def _merged(tokenizer: Tokenizer, words: Sequence[tuple[list[str], int]], count: int, min_count: int) -> list[Learnt]:
    """BPE from where it stands: `words` are pieces and how often they occur."""
    pairs, places = Counter[tuple[str, str]](), defaultdict[tuple[str, str], set[int]](set)
    for place, (pieces, often) in enumerate(words):
        for pair in pairwise(pieces):
            pairs[pair] += often
            places[pair].add(place)
    old, known = tokenizer.vocabulary, set(tokenizer.vocabulary)
    made: dict[str, list[int]] = {}
    found: list[Learnt] = []
    unusable = set(tokenizer.special_tokens) | {tokenizer.role_tokens.get("unk_token", "")}
    while len(found) < count and pairs:
        pair = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[pair] < min_count:
            break
        token = pair[0] + pair[1]
        if token in known or unusable & set(pair) or any(part.startswith("<0x") for part in pair):
            del pairs[pair]
            continue
        made[token] = [number for part in pair for number in (made[part] if part in made else [old[part]])]
        known.add(token)
        found.append((token, made[token], pair))
        for place in list(places.pop(pair)):
            pieces, often = words[place]
            for before in pairwise(pieces):
                pairs[before] -= often
                if pairs[before] <= 0:
                    del pairs[before]
            pieces[:] = _joined(pieces, pair)
            for after in pairwise(pieces):
                pairs[after] += often
                places[after].add(place)
    return found


def _joined(pieces: Sequence[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(pieces):
        both = tuple(pieces[at : at + 2]) == pair
        out.append(pair[0] + pair[1] if both else pieces[at])
        at += 2 if both else 1
    return out


def _with_learnt(tokenizer: Tokenizer, learnt: Sequence[Learnt]) -> tuple[dict[str, Any], dict[int, Sequence[int]]]:
    """The definition with the learnt tokens in its model."""
    definition = tokenizer.files.definition
    model = dict(definition["model"])
    model["vocab"] = dict(model["vocab"]) if isinstance(model["vocab"], dict) else [*model["vocab"]]
    # Added tokens get the ids behind the vocabulary: they keep theirs only as part of it.
    for token in definition["added_tokens"]:
        _append(model, token["content"], token["id"])
    scores = {place: score for place, (_, score) in enumerate(model["vocab"])} if model["type"] == "Unigram" else {}
    made_of: dict[int, Sequence[int]] = {}
    for number, (token, ids, _) in enumerate(learnt, start=tokenizer.vocab_size):
        score = min(sum(scores.get(place, 0.0) for place in ids) + MARGIN, max(scores.values(), default=0.0))
        _append(model, token, number, score=score)
        made_of[number] = ids
    if model["type"] == "BPE":
        new = [list(pair) for _, _, pair in learnt if pair is not None]
        old = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model["merges"]]
        model["merges"] = [*old, *new]
    return {**definition, "model": model}, made_of


def _append(model: Mapping[str, Any], token: str, identifier: int, *, score: float | None = None) -> None:
    """One token at the end of the vocabulary."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        vocab.setdefault(token, identifier)
    elif identifier == len(vocab):
        least = min((found for _, found in vocab), default=0.0)
        vocab.append([token, least if score is None else score])
