"""The matching objectives: do two belong together, and with whom the false pairs are made.

b rows of a batch of B, L tokens, P patches, D encoder width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makelib.model.encoders import mean_pool


class MatchingHead(nn.Module):
    """Do two sequences belong together? One attends to the other, the mean of that gives a logit (ours; ALBEF's idea)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.score = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, states: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        taken, _ = self.attention(states, other, other, key_padding_mask=other_mask == 0, need_weights=False)
        return self.score(torch.cat([mean_pool(states, mask), mean_pool(taken, mask)], dim=-1)).squeeze(-1)  # (B,)


def joined(H_t: Tensor, mask: Tensor, H_v: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Title and image as one sequence: states (b, L + P, D), and 1 (b, L + P) where there is something to see."""
    seen = torch.cat([mask * present[:, :1], present[:, 1:].expand(len(H_v), H_v.shape[1])], dim=1)
    return torch.cat([H_t, H_v], dim=1), seen


def sampled(logits: Tensor, negatives: Tensor, draws: Tensor, first: int = 0) -> Tensor:
    """For each row one column sampled in proportion to exp(logits) among its negatives, int64 (b,).

    A row without any negative takes the next one's product, so that shapes stay; `negatives` keeps false ones out (docs/method.md: a trap).
    Args: logits (b, B) and negatives bool (b, B), rows of the batch from the `first` on; draws (b,), uniform in [0, 1).
    """
    b, B = logits.shape
    logits = logits.detach().float().masked_fill(~negatives, -1e4)
    chance = (logits - logits.amax(dim=1, keepdim=True)).exp() * negatives
    following = (torch.arange(b, device=logits.device) + first + 1) % B
    chance = torch.where(negatives.any(dim=1, keepdim=True), chance, F.one_hot(following, B))
    reached = chance.cumsum(dim=1)
    return torch.searchsorted(reached, draws[:, None] * (1 - 1e-6) * reached[:, -1:], right=True).squeeze(1)
