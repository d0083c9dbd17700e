"""Short causal depthwise convolution by CUDA and Triton kernels. Definition: `naive.py`.

Both run on the tail and the tokens as one sequence: the documents of the tail's and the row's tokens are numbered, or cut, alike.
The new tail is cut out of the same inputs.
"""

from typing import Any

import torch
from torch import Tensor

from llm.docs import Docs, Stretch
from llm.ops import kernels
from llm.ops.conv.chunk import tail_of
from llm.ops.kernels import HALF, Route, extent

CAUSAL_CONV1D = "causal_conv1d:causal_conv1d_fn"
FLA = "fla.modules.causal_conv1d:causal_conv1d"


def facts(x: Tensor, weight_DW: Tensor, *_: Any) -> dict[str, Any]:
    return {"sizes": {"D": x.shape[2], "W": weight_DW.shape[1]}, "extent": extent(x)}


def causal_conv1d(x, weight, bias, tail, *, at: Stretch) -> tuple[Tensor, Tensor]:
    inputs, W = torch.cat([tail, x], 1), weight.shape[1]
    ids = None
    if at.documents is not None:
        # the tail is of the document that the row goes on with, 0
        ids = torch.nn.functional.pad(at.documents.id_BT, (W - 1, 0)).int()
    # [B, D, T] with neighbouring channels beside each other, as the kernel wants it under document numbers
    y = kernels.entry(CAUSAL_CONV1D)(inputs.transpose(1, 2), weight, bias, seq_idx=ids)
    return y.transpose(1, 2)[:, W - 1 :], tail_of(inputs, at.starts_BT, W)


def fla(x, weight, bias, tail, *, at: Stretch) -> tuple[Tensor, Tensor]:
    inputs, W = torch.cat([tail, x], 1), weight.shape[1]
    if at.documents is None:
        y, _ = kernels.entry(FLA)(inputs, weight, bias, backend="triton")
        return y[:, W - 1 :], tail_of(inputs, None, W)
    segments = _with_tail(at.documents, W).segments
    where = {"cu_seqlens": segments.cu_seqlens, "cu_seqlens_cpu": segments.host}
    y, _ = kernels.entry(FLA)(inputs.flatten(0, 1)[None], weight, bias, backend="triton", **where)
    return y[0].unflatten(0, inputs.shape[:2])[:, W - 1 :], tail_of(inputs, at.starts_BT, W)


def _with_tail(docs: Docs, taps: int) -> Docs:
    """The documents with the tail's tokens before them."""
    longer = [None if s is None else torch.nn.functional.pad(s, (taps - 1, 0)) for s in (docs.starts_BT, docs.host_BT)]
    assert longer[0] is not None
    return Docs(longer[0], longer[1])


ROUTES = (
    Route(
        name="causal_conv1d",
        package="causal-conv1d",
        entry=CAUSAL_CONV1D,
        extra="mamba-ssm",
        run=causal_conv1d,
        dtypes=(*HALF, torch.float32),
        widths={"W": (2, 4, 1), "D": (8, 1 << 20, 8)},
        exact_float32=True,
        int32=True,
    ),
    Route(
        name="fla",
        package="flash-linear-attention",
        entry=FLA,
        extra="fla",
        run=fla,
        dtypes=(*HALF, torch.float32),
        widths={"W": (2, 8, 1)},
        exact_float32=True,
    ),
)
