"""Word vectors for the embeddings of a new model: the setting `model.word_vectors` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trivium.core.method import Method, RoleModel
from trivium.recipe import Recipe
from trivium.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from trivium.tokenizers.vectors import WordVectors


def open_word_vectors(recipe: Recipe, tokenizer: Tokenizer) -> WordVectors | None:
    """The vectors of the tokenizer's words; read before any long work, so that a wrong file is refused at once."""
    from trivium.tokenizers.vectors import WordVectors, token_words

    if recipe.model.word_vectors is None:
        return None
    words = {word for word in token_words(tokenizer) if word is not None}
    return WordVectors.load(recipe.model.word_vectors, only=words | {word.lower() for word in words})


def start_embeddings(
    recipe: Recipe,
    method: Method,
    roles: Mapping[str, RoleModel],
    tokenizer: Tokenizer,
    vectors: WordVectors | None,
) -> list[str]:
    """Puts the vectors into every model that starts from the recipe's preset; says how many rows were set."""
    from trivium.models.word_vectors import set_embeddings
    from trivium.tokenizers.vectors import token_words

    if vectors is None:
        return []
    said = []
    for name, role in method.roles().items():
        if role.path is not None or role.config is not None:
            continue
        model = roles[name].module
        note = set_embeddings(
            model.embed.weight,
            token_words(tokenizer),
            vectors.index,
            vectors.matrix,
            scale=model.config.init_std,
            seed=recipe.seed,
            width=recipe.model.word_vectors_width,
            where=recipe.model.word_vectors or "",
        )
        said.append(f"{name}: {note}")
    return said
