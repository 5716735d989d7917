"""The tokenizer of a catalogue and its texts as token ids: made once, and kept with the catalogue for whoever asks next."""

from __future__ import annotations

import numpy as np
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from makelib.data.catalog import Catalog
from makelib.data.text import Tokens, fast_tokenizer, identity, segmenter, train_tokenizer, word_starts
from makelib.settings import Settings

#: what decides token ids beside the catalogue and the tokenizer
CODE = ("data/text.py", "data/catalog.py", "data/tokens.py")


def tokenizer_for(catalog: Catalog, settings: Settings) -> PreTrainedTokenizerBase:
    """The tokenizer of a pretrained text encoder, or one trained on titles and training queries, once per catalogue."""
    if settings.model.text_backbone:
        return AutoTokenizer.from_pretrained(settings.model.text_backbone)

    def train() -> dict[str, np.ndarray]:
        queries = catalog.queries["query"].iloc[catalog.query_rows("train")]
        trained = train_tokenizer([*texts_of(catalog, "products"), *queries], settings.text.vocabulary)
        return {"json": np.frombuffer(trained.backend_tokenizer.to_str().encode(), np.uint8)}

    kept = catalog.kept("tokenizer", train, settings.text.vocabulary, CODE)
    return fast_tokenizer(tokenizers.Tokenizer.from_buffer(kept["json"].tobytes()))


def texts_of(catalog: Catalog, table: str) -> list[str]:
    """All titles (`table` is "products"; empty where there is none) or query strings ("queries")."""
    return (catalog.products["title"].fillna("") if table == "products" else catalog.queries["query"]).tolist()


def tokens_of(catalog: Catalog, table: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Tokens:
    """Token ids of `texts_of` a table, cut once per catalogue, tokenizer and length."""

    def cut() -> dict[str, np.ndarray]:
        tokens = vars(Tokens.of(tokenizer, texts_of(catalog, table), length))
        return {name: tokens[name] for name in ("ids", "starts", "written")}

    kept = catalog.kept(f"tokens-{table}", cut, [identity(tokenizer), length], CODE)
    return Tokens(**kept, pad=tokenizer.pad_token_id)


def title_word_starts(catalog: Catalog, tokenizer: PreTrainedTokenizerBase, length: int) -> np.ndarray:
    """`word_starts` of all titles, in the order of the ids that `tokens_of` gives."""
    kept = catalog.kept(
        "title-words",
        lambda: {"starts": word_starts(tokenizer, texts_of(catalog, "products"), length)},
        [identity(tokenizer), length, segmenter()],
        CODE,
    )
    return kept["starts"]
