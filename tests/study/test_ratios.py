"""The benchmark's ratios: the names that outside checks read, and a missing peer in one sentence."""

import json
import sys

import numpy as np
import pytest

from makelib.runtime import UserError
from makelib.settings import preset
from makelib.study import ratios


def test_search_ratios_are_written_flat_with_their_parts(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    written = ratios.write(tmp_path, "search", ratios.search(vectors, vectors[:8], products=4000))
    assert set(written) == {"search_vs_faiss_1e6", "ann_recall_1e6", "ann_time_vs_exact_1e6"}
    held = json.loads((tmp_path / "search.json").read_text())
    assert held["ratios"] == written
    assert 0.8 < written["ann_recall_1e6"] <= 1
    assert held["products"] == 4000


def test_a_missing_peer_is_said_before_anything_is_timed(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install '\.\[bench\]'"):
        ratios.training(None, preset("smoke"))
