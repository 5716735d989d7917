"""An upper bound: what could weights per product bring, if the gate were told what nobody knows when serving?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from makelib.model.batches import SHARD, encoded
from makelib.search.retriever import Retriever
from makelib.study.baselines import ranked
from makelib.study.metrics import FULL

#: steps and rate of the fit; the logits of some hundred groups settle long before
STEPS, RATE = 60, 0.1
#: scale of the scores in the fit, about what training ends with
SCALE = 20.0
#: what the truth may know of photograph and title: of the generated world, and of careless photographers and terse sellers
KINDS = ("image_kind", "title_kind", "careless", "terse")
#: products that weights are fitted on at most, drawn at random: a few hundred weights need no more
FITTED = 20_000
#: pairs of a query and a product that are scored at once
PAIRS = 2**26


def oracle_run(retriever: Retriever, query_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ranking with the best weight for each category, kind of photograph and kind of title, in the form of `bm25_run`.

    The streams are the trained model's; the weights are fitted on the truth of the very queries that are judged, by the
    cross entropy of their fully relevant products over the whole catalogue, or over `FITTED` products of a larger one. Nothing that
    ranks may do so: this says how far weights alone could go with these encoders, not how far a model got. Needs a fusion that
    splits and `catalog.truth`.
    """
    catalog, model = retriever.catalog, retriever.model
    N, told = len(catalog), [kind for kind in KINDS if kind in catalog.truth]
    kinds = pd.concat([catalog.products["category"].fillna(""), catalog.truth[told]], axis=1)
    group = torch.from_numpy(kinds.groupby(list(kinds), sort=False).ngroup().to_numpy(copy=True))
    logit = torch.zeros(int(group.max()) + 1, requires_grad=True)

    def streams(rows: slice | np.ndarray) -> torch.Tensor:
        kept = retriever.vectors.parts
        parts = encoded(model, catalog, rows).parts if kept is None else kept[rows]
        return F.normalize(torch.from_numpy(parts), dim=-1)  # (n, 2, d); 0 where a modality is missing

    def products(streams: torch.Tensor, rows: slice | np.ndarray) -> torch.Tensor:
        image = torch.sigmoid(logit)[group[rows]]
        return F.normalize((torch.stack([1 - image, image], dim=1)[..., None] * streams).sum(dim=1), dim=-1)

    queries = torch.from_numpy(model.encode_queries(catalog.queries["query"].iloc[query_rows].tolist()))
    fitted = np.sort(np.random.default_rng(0).permutation(N)[:FITTED])
    full = torch.from_numpy(catalog.relevance(query_rows, fitted) >= FULL)
    asked = full.any(dim=1)
    target = full[asked].float() / full[asked].sum(dim=1, keepdim=True)
    seen, optimizer = streams(fitted), torch.optim.Adam([logit], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        scores = SCALE * queries[asked] @ products(seen, fitted).T
        loss = -(target * F.log_softmax(scores, dim=1)).sum(dim=1).mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        shards = [slice(start, min(start + SHARD, N)) for start in range(0, N, SHARD)]
        vectors = torch.cat([products(streams(shard), shard) for shard in shards])
        blocks = queries.split(max(1, PAIRS // N))
        scores = (row for block in blocks for row in (block @ vectors.T + 1).numpy())  # above 0, as `ranked` asks
        return ranked(scores, len(query_rows), N, k)
