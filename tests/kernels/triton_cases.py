"""The routes whose kernels are Triton's, at the smallest sizes that hold more than one chunk."""

from tests.kernels.cases import (
    Case,
    conv_streams,
    elementwise_streams,
    head_norm_streams,
    linear_streams,
    loss_streams,
    memory_streams,
    mlstm_streams,
    norm_streams,
    recurrent_streams,
    rotary_streams,
    ssd_streams,
    swiglu_streams,
)

CASES = [
    Case("retention, simple GLA", "linear", "fla", linear_streams("fixed"), {"scale": 0.25}),
    Case("one decay per head, simple GLA", "linear", "fla", linear_streams("per head"), {"scale": 0.25}),
    Case("one decay per channel, GLA", "linear", "fla", linear_streams("per channel"), {"scale": 0.25}),
    Case("SSD, simple GLA", "ssd", "fla", ssd_streams),
    Case("SSD, chunk scan", "ssd", "mamba_ssm", ssd_streams, tokens=130, documents=False),
    Case("retention, chunk scan", "linear", "mamba_ssm", linear_streams("fixed"), {"scale": 0.25}, tokens=130, documents=False),
    Case("mLSTM, simple GLA", "mlstm", "fla", mlstm_streams, {"scale": 0.25}),
    Case("mLSTM, xl_chunk", "mlstm", "mlstm_kernels", mlstm_streams, {"scale": 0.25}, tokens=256, documents=False, gradient=False),
    Case("Titans, linear memory", "memory", "triton", memory_streams, {"chunk": 16}),
    Case("elementwise, HGRN", "elementwise", "fla", elementwise_streams, exact=("decay", "state")),
    Case("LSTM, fused", "recurrent", "flashrnn", recurrent_streams("lstm"), {"cell": "lstm"}, tokens=7),
    Case("sLSTM, fused", "recurrent", "flashrnn", recurrent_streams("slstm"), {"cell": "slstm"}, tokens=7, state_gradient=False),
    Case("convolution", "conv", "fla", conv_streams),
]

NORM = {"eps": 1e-6}
PINNED = ("weight", "bias")


def tokenwise(name: str, family: str, route: str, streams, settings=None, **more) -> Case:
    return Case(name, family, route, streams, settings or {}, documents=False, **more)


def loss_of(name: str, Z: int, tokens: int = 12, **settings) -> Case:
    """Of the second output, the squares, there is no gradient."""
    return tokenwise(name, "cross_entropy", "fla", loss_streams(Z), settings, exact=(), tokens=tokens, state_gradient=False)


# 40 channels: one block of many tokens; 600: a block per token; neither is a power of two
TOKENWISE = [
    tokenwise("RMSNorm", "norm", "fla", norm_streams(40), NORM, exact=PINNED),
    tokenwise("RMSNorm, wide", "norm", "fla", norm_streams(600), NORM, exact=PINNED, tokens=20),
    tokenwise("RMSNorm, no weight", "norm", "fla", norm_streams(40, weight=False), NORM),
    tokenwise("norm of heads", "head norm", "fla", head_norm_streams(bias=False), NORM, exact=PINNED),
    tokenwise("norm of heads, bias", "head norm", "fla", head_norm_streams(bias=True), NORM, exact=PINNED),
    tokenwise("rotary", "rotary", "flash", rotary_streams(24), {"theta": 10000.0}),
    tokenwise("rotary, some channels", "rotary", "flash", rotary_streams(24, rows=1), {"theta": 10000.0, "channels": 8}),
    tokenwise("SwiGLU", "swiglu", "fla", swiglu_streams),
    loss_of("cross-entropy", 300),
    loss_of("cross-entropy, cap, z-loss", 300, cap=3.0, z_loss=1e-2),
    loss_of("cross-entropy, split vocabulary", 70_000, tokens=2),
]
