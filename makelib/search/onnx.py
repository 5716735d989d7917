"""The query encoder as an ONNX file and its tokenizer as JSON: a server needs neither torch nor makelib (extra `onnx`)."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn

from makelib.model.make import MakeModel
from makelib.runtime import UserError, atomic_folder

#: a text for the exporter to follow; any will do
EXAMPLE = ((2, 3, 4), (2, 3, 4))


class _Query(nn.Module):
    """`MakeModel.query` as the whole of a model."""

    def __init__(self, model: MakeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.query(ids, mask)


def export_queries(model: MakeModel, folder: Path | str) -> Path:
    """Write `query.onnx` (`ids`, `mask` int64 (Q, L) -> `vector` float32 (Q, d), of any Q and L) and `tokenizer.json`, which cuts to
    the model's length by itself, into a folder, whole or not at all.

    Raises `UserError` where the extra `onnx` is missing.
    """
    try:
        import onnxscript  # noqa: F401  torch's exporter imports it late, and says less when it is not there
    except ImportError:
        raise UserError("Exporting needs onnx and onnxscript; install them with `pip install '.[onnx]'`.") from None
    query = _Query(copy.deepcopy(model).cpu()).eval()
    example = torch.tensor(EXAMPLE)
    shape = {0: torch.export.Dim("queries"), 1: torch.export.Dim("tokens")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about names of axes
        program = torch.onnx.export(
            query, (example, torch.ones_like(example)), input_names=["ids", "mask"], output_names=["vector"],
            dynamic_shapes=(shape, shape), dynamo=True, verbose=False,
        )  # fmt: skip
    told = json.loads(model.tokenizer.backend_tokenizer.to_str())
    if model.tokenizer.split_special_tokens:
        told[
            "added_tokens"
        ] = []  # a query that holds "[SEP]" is text like any other; the file has no other way to say so
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(told))
    tokenizer.enable_truncation(model.config.query_tokens)
    tokenizer.enable_padding(pad_id=model.tokenizer.pad_token_id, pad_token=model.tokenizer.pad_token)
    with atomic_folder(Path(folder)) as draft:
        program.save(str(draft / "query.onnx"))
        tokenizer.save(str(draft / "tokenizer.json"))
    return Path(folder)
