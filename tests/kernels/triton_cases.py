"""The routes whose kernels are Triton's, at the smallest sizes that hold more than one chunk."""

from tests.kernels.cases import (
    Case,
    conv_streams,
    elementwise_streams,
    linear_streams,
    memory_streams,
    mlstm_streams,
    recurrent_streams,
    ssd_streams,
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
