"""mLSTM's two blocks: xLSTM-7B's against `transformers` with copied weights, the paper's against its parallel form written out."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.xlstm.configuration_xlstm import xLSTMConfig
from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

from llm.init import initialise
from llm.mixers import Mixer
from llm.mixers.mlstm import MLSTM, MLSTMConfig
from llm.mixers.mlstm_paper import MLSTMPaper, MLSTMPaperConfig

WIDTH, HEADS = 32, 4
THEIR_NAMES = {
    "q_proj.weight": "q.weight",
    "k_proj.weight": "k.weight",
    "v_proj.weight": "v.weight",
    "gate_proj.weight": "ogate_preact.weight",
    "input_weight": "igate_preact.weight",
    "input_bias": "igate_preact.bias",
    "forget_weight": "fgate_preact.weight",
    "forget_bias": "fgate_preact.bias",
    "head_norm_weight": "multihead_norm.weight",
    "out_proj.weight": "out_proj.weight",
}


def moved(mixer: Mixer) -> Mixer:
    """With every parameter away from its start, and the input gate open."""
    initialise(mixer, seed=0, depth=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            if name == "input_bias":
                parameter.clamp_(min=-1)
    return mixer


def error(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_large_block_is_that_of_transformers():
    ours = moved(MLSTM(MLSTMConfig(heads=HEADS), WIDTH))
    config = xLSTMConfig(
        hidden_size=WIDTH,
        num_heads=HEADS,
        qk_dim_factor=0.5,
        v_dim_factor=1.0,
        mode="train",
        chunk_size=64,
        autocast_kernel_dtype="float32",
    )
    theirs = xLSTMLayer(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            target = theirs.get_parameter(THEIR_NAMES[name])
            target.copy_(parameter.view_as(target))
    torch.manual_seed(0)
    x, weight = torch.randn(2, 128, WIDTH), torch.randn(2, 128, WIDTH)
    results = []
    for run in (lambda x: ours(x)[0], lambda x: theirs(x)[0]):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        (y * weight).sum().backward()
        results.append((y.detach(), leaf.grad))
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= 1e-5
    gradients = {name: parameter.grad.clone() for name, parameter in ours.named_parameters()}
    ours.double().zero_grad()
    (ours(x.double())[0] * weight).sum().backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(THEIR_NAMES[name]).grad.view_as(parameter.grad)
        # Theirs in float32 against ours in float64. Of the input gate's bias little is left after rounding, here as there: the norm
        # undoes what scales all weights alike.
        assert error(expected, parameter.grad) <= 2e-5, name
        assert error(gradients[name], parameter.grad) <= max(1e-5, 2 * error(expected, parameter.grad)), name


def paper_block(mixer: MLSTMPaper, x: Tensor) -> Tensor:
    """The paper's block from its figure, with the memory in parallel form: eq. 75 without a stabiliser, in float64."""
    u, z = (x @ mixer.up_proj.weight.T).chunk(2, -1)
    T, inner = u.shape[1:]
    padded = torch.cat([u.new_zeros(len(u), 3, inner), u], 1)
    c = F.silu(sum(padded[:, i : i + T] * mixer.conv_weight[:, i] for i in range(4)) + mixer.conv_bias)
    q, k = c @ torch.block_diag(*mixer.q_weight).T, c @ torch.block_diag(*mixer.k_weight).T
    v = u @ torch.block_diag(*mixer.v_weight).T
    gates = torch.cat([q, k, v], -1) @ mixer.gate_weight.T
    log_i, log_f = gates[..., :HEADS] + mixer.input_bias, F.logsigmoid(gates[..., HEADS:] + mixer.forget_bias)
    q, k, v = (s.unflatten(-1, (HEADS, -1)).transpose(1, 2) for s in (q, k, v))
    total = log_f.cumsum(1).transpose(1, 2)
    weights = (total[..., :, None] - total[..., None, :] + log_i.transpose(1, 2)[..., None, :]).exp().tril()
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 * weights
    h = (scores @ v) / scores.sum(-1, keepdim=True).abs().clamp(min=1)
    h = F.layer_norm(h, h.shape[-1:], eps=1e-5).transpose(1, 2).flatten(-2) * mixer.head_norm_weight.flatten()
    return ((h + mixer.skip * c) * F.silu(z)) @ mixer.down_proj.weight.T


def test_paper_block_is_its_parallel_form():
    mixer = moved(MLSTMPaper(MLSTMPaperConfig(heads=HEADS), WIDTH)).double()
    torch.manual_seed(0)
    x = torch.randn(2, 150, WIDTH, dtype=torch.float64)
    inputs = list(mixer.parameters())
    results = []
    for run in (lambda x: mixer(x)[0], lambda x: paper_block(mixer, x)):
        y = run(x)
        results.append([y, *torch.autograd.grad((y * x.cos()).sum(), inputs)])
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= 1e-9
