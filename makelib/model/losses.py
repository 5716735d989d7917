"""The training objectives, pure functions on tensors: no module, no state, no data.

`objectives` computes those with a weight and returns them by name; the sum is one line in `makelib.model.training`.
None of the formulas below is quoted from the MAKE paper; they are ours, after the works that each names.

B batch (rows are queries, columns are products), d retrieval width.
`positives`, `negatives` (B, B) bool: product j is a known positive of, may serve as a negative of, query i. A pair may be neither.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from makelib.settings import Keywords, Objectives

#: stands for log 0: finite, so that half precision and rows without any negative stay free of NaN
LOG_ZERO = -1e4


def full(tensor: Tensor) -> Tensor:
    """In single precision, or double where it came so: sums of exponentials are off by a tenth in half."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class Block(NamedTuple):
    """Some rows of a batch, whose share of each objective is computed by itself, so that no array is (B, B).

    `positives`, `negatives` bool (b, B) are columns `rows` of the whole batch's masks; `there`, `back` say how many rows and how
    many columns of the whole batch have a positive, `shown` how many rows one with a photograph.
    """

    rows: slice
    positives: Tensor
    negatives: Tensor
    there: Tensor
    back: Tensor
    shown: Tensor


def info_nce(
    logits: Tensor,
    positives: Tensor,
    negatives: Tensor,
    extra_negatives: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """InfoNCE with several positives per row and some pairs left out (van den Oord 2018; Khosla 2020), scalar float32.

    Each positive k of row i competes with the row's negatives only: `-log e^{s_ik} / (e^{s_ik} + Σ_{j ∈ negatives} e^{s_ij})`;
    averaged over the row's positives, then over rows that have one. Another positive never stands in the denominator.

    Args: logits (B, C); positives, negatives bool (B, C); extra_negatives, further negative logits (B, H); count, over how many rows
        to average where these are not all.
    """
    logits = full(logits)
    against = torch.where(negatives, logits, LOG_ZERO)
    if extra_negatives is not None:
        against = torch.cat([against, full(extra_negatives)], dim=1)
    loss = F.softplus(against.logsumexp(dim=1, keepdim=True) - logits)  # (B, C)
    counts = positives.sum(dim=1)
    per_row = (loss * positives).sum(dim=1) / counts.clamp(min=1)
    return per_row.sum() / ((counts > 0).sum() if count is None else count).clamp(min=1)


def contrast(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    margin: float = 0.0,
    log_popularity: Tensor | None = None,
    hard: Tensor | None = None,
    block: Block | None = None,
) -> Tensor:
    """Both directions of `info_nce` between unit vectors `rows` and `columns`, each (B, d).

    `margin`: additive margin on the cosine of positives, AM-softmax (Wang 2018). `log_popularity` (B,) of the columns: subtracted
    from the logits of in-batch negatives, the logQ correction (Yi 2019), for rows → columns only. `hard` (B, d): one mined
    negative per row. Masks serve both directions: the second uses their transposes. `block`: its rows' and columns' share alone.
    """
    at = slice(None) if block is None else block.rows
    cosine = full(rows[at]) @ full(columns).T  # (b, B)
    logits = scale * (cosine - margin * positives)
    forward = logits if log_popularity is None else torch.where(positives, logits, logits - log_popularity)
    extra = None if hard is None else scale * (full(rows[at]) * full(hard[at])).sum(dim=-1, keepdim=True)
    if block is None:
        there, back = info_nce(forward, positives, negatives, extra), info_nce(logits.T, positives.T, negatives.T)
    else:
        behind = scale * (full(columns[at]) @ full(rows).T - margin * block.positives)
        there = info_nce(forward, positives, negatives, extra, block.there)
        back = info_nce(behind, block.positives, block.negatives, count=block.back)
    return (there + back) / 2


def distillation(teacher: Tensor, student: Tensor, candidates: Tensor) -> Tensor:
    """`KL(stopgrad P(·|q⁺) ‖ P(·|q))` over each row's candidates, scalar; carries what an enriched query knows to the raw one.

    Args: teacher, student logits (B, B); candidates bool (B, B).
    """
    teacher = torch.where(candidates, full(teacher.detach()), LOG_ZERO).log_softmax(dim=1)
    student = torch.where(candidates, full(student), LOG_ZERO).log_softmax(dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def matching(logits: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """Binary matching: logits (B, 2) of true pairs and of sampled false ones; valid bool (B,); `count` as for `info_nce`.

    The prior is ½ for each: a loss that stays at ln 2 = 0.6931 has learned nothing.
    """
    labels = torch.tensor([1.0, 0.0], device=logits.device).expand_as(logits)
    loss = F.binary_cross_entropy_with_logits(full(logits), labels, reduction="none")
    return (loss * valid[:, None]).sum() / (2 * (valid.sum() if count is None else count)).clamp(min=1)


def gate_entropy(weights: Tensor, both: Tensor) -> Tensor:
    """`ln 2` minus the entropy of the batch mean of w over products with both modalities, scalar ≥ 0.

    Keeps the gate from collapsing onto one modality at the start, without asking any single product to be undecided.
    """
    mean = (full(weights) * both[:, None]).sum(dim=0) / both.sum().clamp(min=1)
    return math.log(2) + torch.xlogy(mean, mean.clamp(min=1e-9)).sum() if bool(both.any()) else weights.sum() * 0


def finetuning(weights: Objectives) -> Objectives:
    """The weights of fine-tuning: `query_product` and `distillation` as they are, everything else 0."""
    kept = ("query_product", "distillation", "margin", "popularity_correction")
    return dataclasses.replace(weights, **{f.name: 0.0 for f in dataclasses.fields(weights) if f.name not in kept})


def objectives(
    features: dict[str, Tensor],
    batch: dict[str, Tensor],
    weights: Objectives,
    keywords: Keywords,
    *,
    fusion: str,
    progress: float = 0.0,
    block: Block | None = None,
) -> dict[str, Tensor]:
    """The objectives that have a weight and that this fusion can be trained with, by name, each a scalar *not yet* weighted.

    Args:
        features: what `MakeModel.forward` returns, of all rows; of the `block` alone what comes from the matching heads.
        batch: with `positives`, `negatives` (B, B) or those of the block (b, B), `present` (B, 2), `log_popularity` (B,) and, where
            words are masked, `masked_count`, how many there are in the whole batch, per process.
        progress: share of pre-training done, for terms that decay.
        block: compute the share of some rows; the shares of all blocks add up to the objectives.
    """
    q, p, u_t, u_v, scale = (features[name] for name in ("q", "p", "u_t", "u_v", "scale"))
    positives, negatives, present = batch["positives"], batch["negatives"], batch["present"] > 0
    both, shown = present.all(dim=1), present[:, 1]
    at, behind = (slice(None), negatives.T) if block is None else (block.rows, block.negatives)
    part = len(negatives) / len(q)  # of what is a mean over rows
    popularity = batch["log_popularity"] if weights.popularity_correction else None
    terms: dict[str, Tensor] = {}
    if weights.query_product:
        terms["query_product"] = contrast(
            q, p, scale, positives, negatives,
            margin=weights.margin, log_popularity=popularity, hard=features.get("p_hard"), block=block,
        )  # fmt: skip
    if weights.title_image and fusion not in ("title", "image"):
        places = torch.arange(len(q), device=q.device)
        pairs = both[at, None] & both
        own, others = (places[at, None] == places) & pairs, negatives & behind & pairs
        same = block and block._replace(positives=own, negatives=others, there=both.sum(), back=both.sum())
        terms["title_image"] = contrast(u_t, u_v, scale, own, others, block=same)
    if weights.query_image and fusion != "title":
        seen = block and block._replace(
            positives=block.positives & shown[at, None],
            negatives=behind & shown[at, None],
            there=block.shown,
            back=shown.sum(),
        )
        terms["query_image"] = contrast(q, u_v, scale, positives & shown, negatives & shown, block=seen)
    if "title_image_logits" in features:
        terms["title_image_matching"] = matching(features["title_image_logits"], both[at], both.sum())
    if "query_product_logits" in features:
        terms["query_product_matching"] = part * matching(features["query_product_logits"], torch.ones_like(both[at]))
    if "word_loss" in features:
        terms["masked_language"] = part * features["word_loss"].sum() / batch["masked_count"]
    if "q_plus" in features:
        target = p.detach() if keywords.detach_product else p
        if weights.keyword_enhanced:
            terms["keyword_enhanced"] = contrast(
                features["q_plus"], target, scale, positives, negatives, log_popularity=popularity, block=block
            )
        if weights.distillation:
            teacher, student = scale * features["q_plus"][at] @ target.T, scale * q[at] @ target.T
            terms["distillation"] = part * distillation(teacher, student, positives | negatives)
    if weights.gate_entropy and fusion in ("gate", "adaptive") and progress < 1:
        terms["gate_entropy"] = part * (1 - progress) * gate_entropy(features["w"], both)
    return terms


def total(terms: dict[str, Tensor], weights: Objectives) -> Tensor:
    """The loss, scalar: the weighted sum of `objectives`."""
    return sum(getattr(weights, name) * term for name, term in terms.items())
