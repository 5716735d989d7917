"""The query encoder as ONNX: equal to torch's, for any text and any number of texts, and served without torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from makelib.data.text import train_tokenizer
from makelib.model.make import MakeModel
from makelib.runtime import UserError
from makelib.search.index import ProductIndex
from makelib.search.onnx import export_queries
from makelib.settings import Index, preset

TEXTS = ["red dress", "a", "", "Ünïcode 红色连衣裙 🙂", "blue striped pot " * 30, "[SEP] pot"]

#: what chapter 6 shows: a query answered without torch
SERVER = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
import numpy as np, onnxruntime, tokenizers
from makelib.search.index import ProductIndex
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
encoder = onnxruntime.InferenceSession(sys.argv[1] + "/query.onnx", providers=["CPUExecutionProvider"])
index = ProductIndex.load(sys.argv[2])
def search(query, k=10):
    tokens = tokenizer.encode(query)
    asked = {"ids": np.array([tokens.ids]), "mask": np.array([tokens.attention_mask])}
    rows, scores = index.search(encoder.run(None, asked)[0], k)
    return index.ids[rows[0]], scores[0]
print(*search("red dress", 3)[0])
"""


@pytest.fixture(scope="module", params=[0, 1], ids=["bag of words", "one layer"])
def exported(request, tmp_path_factory):
    settings = preset("smoke").replace(**{"model.text_layers": request.param, "model.width": 64, "model.dim": 32})
    torch.manual_seed(0)
    tokenizer = train_tokenizer([text * 3 for text in TEXTS], 400)
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer)
    return model, export_queries(model, tmp_path_factory.mktemp("onnx") / "query")


def test_it_says_what_torch_says(exported):
    import onnxruntime
    import tokenizers

    model, folder = exported
    encoder = onnxruntime.InferenceSession(folder / "query.onnx", providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for texts in (*([text] for text in TEXTS), TEXTS):
        tokens = tokenizer.encode_batch(texts)
        asked = {
            "ids": np.array([each.ids for each in tokens]), "mask": np.array([each.attention_mask for each in tokens]),
        }  # fmt: skip
        np.testing.assert_allclose(encoder.run(None, asked)[0], model.encode_queries(texts), atol=1e-5)
    model.save_pretrained(folder.parent / "model")
    assert (folder / "query.onnx").stat().st_size < (folder.parent / "model" / "model.safetensors").stat().st_size / 2


def test_a_server_needs_no_torch(exported, tmp_path):
    model, folder = exported
    vectors = model.encode_queries([f"{text} {number}" for number in range(50) for text in ("pot", "dress", "red")])
    ids = [f"p{row}" for row in range(len(vectors))]
    index = ProductIndex.build(vectors, ids, Index(), model_fingerprint="m", catalogue_fingerprint="c")
    index.save(tmp_path / "index")
    served = subprocess.run(
        [sys.executable, "-c", SERVER, str(folder), str(tmp_path / "index")], capture_output=True, text=True
    )
    assert served.returncode == 0, served.stderr
    rows, _ = index.search(model.encode_queries(["red dress"]), 3)
    assert served.stdout.split() == index.ids[rows[0]].tolist()


def test_what_is_missing_is_said(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install '\.\[onnx\]'"):
        export_queries(exported[0], tmp_path / "query")
