"""An upper bound: what could weights per product bring, if the gate were told what nobody knows when serving?"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from makelib.model.batches import encoded
from makelib.search.retriever import Retriever
from makelib.study.baselines import ranked
from makelib.study.metrics import FULL

#: steps and rate of the fit; the logits of some hundred groups settle long before
STEPS, RATE = 60, 0.1
#: scale of the scores in the fit, about what training ends with
SCALE = 20.0


def oracle_run(retriever: Retriever, query_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ranking with the best weight for each (category, kind of photograph, kind of title), in the form of `bm25_run`.

    The streams are the trained model's; the weights are fitted on the truth of the very queries that are judged, by the
    cross entropy of their fully relevant products over the whole catalogue. Nothing that ranks may do so: this says how far
    weights alone could go with these encoders, not how far a model got. Needs a fusion that splits and `catalog.truth`.
    """
    catalog = retriever.catalog
    truth = catalog.truth
    names = catalog.products["category"].fillna("") + " " + truth["image_kind"] + " " + truth["title_kind"]
    group = torch.from_numpy(names.factorize()[0])
    parts = retriever.vectors.parts
    if parts is None:
        parts = encoded(retriever.model, catalog, slice(0, len(catalog))).parts
    streams = F.normalize(torch.from_numpy(parts), dim=-1)  # (N, 2, d); 0 where a modality is missing
    queries = torch.from_numpy(retriever.model.encode_queries(catalog.queries["query"].iloc[query_rows].tolist()))
    full = torch.from_numpy(catalog.relevance(query_rows) >= FULL)
    asked = full.any(dim=1)
    target = full[asked].float() / full[asked].sum(dim=1, keepdim=True)
    logit = torch.zeros(int(group.max()) + 1, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=RATE)

    def products() -> torch.Tensor:
        image = torch.sigmoid(logit)[group]
        return F.normalize((torch.stack([1 - image, image], dim=1)[..., None] * streams).sum(dim=1), dim=-1)

    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = -(target * F.log_softmax(SCALE * queries[asked] @ products().T, dim=1)).sum(dim=1).mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = (queries @ products().T + 1).numpy()  # above 0, as `ranked` asks
    return ranked(iter(scores), len(query_rows), len(catalog), k)
