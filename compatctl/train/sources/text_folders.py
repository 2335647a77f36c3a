"""transformers: a text model in a folder on disk, as ONNX from token ids to vectors of tokens."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compatctl.errors import InputError
from compatctl.train.sources._model import library
from compatctl.train.sources.transformers_folders import check_config, from_folder

_HIDDEN = "last_hidden_state"


class TokenModel(nn.Module):
    """int64 ids and mask (N, L) to the vectors of the tokens (N, L, F)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return out


def load_token_model(folder: Path) -> tuple[TokenModel, str]:
    """The text model in ``folder``, with its weights from safetensors files, and the library.

    Raises:
        InputError: transformers is not installed; the folder has no model, not all of its weights,
            or needs code of its own.
    """
    where = f"transformers:{folder}"
    check_config(folder, where)
    transformers = library("transformers", "transformers")
    model, missing = from_folder(transformers, folder, where)
    lacking = [name for name in missing if "pooler" not in name]  # which no token passes
    if lacking:
        raise InputError(
            f"{where}: the folder lacks {len(lacking)} tensors of the model: "
            f"{', '.join(lacking[:3])}",
            tip="save the whole model with save_pretrained of transformers",
        )
    return TokenModel(model.eval()), f"transformers {transformers.__version__}"


def export_token_model(model: TokenModel, path: Path) -> None:
    """Write the model as ONNX: input_ids and attention_mask (N, L) to last_hidden_state (N, L, F).

    Both axes are free.
    """
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    ids = torch.ones(2, 8, dtype=torch.int64)
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=[_HIDDEN],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            verbose=False,
        )
    assert program is not None, "dynamo gives a program"
    program.save(str(path), external_data=False)


def pooled_rows(
    model: TokenModel, texts: Sequence[NDArray[np.int64]], pooling: str
) -> NDArray[np.float32]:
    """(n, F) float32 unit rows of texts, each as its token ids and alone, without padding."""
    rows = []
    with torch.no_grad():
        for tokens in texts:
            ids = torch.from_numpy(tokens)[None]
            hidden = model(ids, torch.ones_like(ids))[0].float()
            pooled = {
                "mean": hidden.mean(0),
                "cls": hidden[0],
                "max": hidden.max(0).values,
                "last": hidden[-1],
            }[pooling]
            rows.append(pooled / pooled.norm().clamp_min(1e-12))
    return torch.stack(rows).numpy()
