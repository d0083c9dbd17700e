"""How far two forms of a layer are apart: in each output, and in the gradient of each input and parameter."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from llm.init import initialise
from llm.mixers import Mixer
from llm.ops import dispatch, loops

FLOAT32, BFLOAT16 = 1e-5, 1e-2
DTYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)], ids=["fp32", "bf16"])

Form = Callable[..., Sequence[Tensor]]


def forms(family: str) -> pytest.MarkDecorator:
    """Runs a test with each implementation of an op, as `op`."""
    definition, chunked = dispatch.IMPLEMENTATIONS[family]
    ops = {"definition": definition, "chunk": chunked}
    if family in loops.LOOPS:
        ops["loop"] = loops.LOOPS[family][1]
    return pytest.mark.parametrize("op", ops.values(), ids=ops.keys())


def differences(ours: Form, theirs: Form, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Relative Frobenius norms of ours - theirs. Both take the inputs by name and return outputs; detached ones add no gradient."""
    both = [_values_and_gradients(form, inputs) for form in (ours, theirs)]
    (outputs, gradients), (their_outputs, their_gradients) = both
    found = {f"output {n}": error(a, b) for n, (a, b) in enumerate(zip(outputs, their_outputs, strict=True))}
    return found | {f"d{name}": error(gradients[name], their_gradients[name]) for name in gradients}


def _values_and_gradients(form: Form, inputs: dict[str, Tensor]) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    outputs = form(**leaves)
    generator = torch.Generator().manual_seed(3)
    real = [torch.view_as_real(y) if y.is_complex() else y for y in outputs if y.requires_grad]
    loss = sum((y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum() for y in real)
    return outputs, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    a, b = (x.detach().to(torch.complex128) for x in (a, b))
    return ((a - b).norm() / b.norm()).item()


def layer_differences(
    mixer: Mixer, layer: nn.Module, weights: Callable[[dict[str, Tensor]], dict[str, Tensor]], x_BTD: Tensor
) -> dict[str, float]:
    """`differences` of a mixer and a peer's layer whose parameters are, by its names, `weights` of the mixer's by ours."""

    def theirs(x: Tensor, **ours: Tensor) -> list[Tensor]:
        given = weights(ours)
        assert given.keys() == dict(layer.named_parameters()).keys()
        return [functional_call(layer, given, x)]

    inputs = {"x": x_BTD} | dict(mixer.named_parameters())
    return differences(lambda x, **ours: [functional_call(mixer, ours, x)[0]], theirs, inputs)


def moved(mixer: Mixer, by: float = 0.2) -> Mixer:
    """Initialised, then every parameter moved away from its start."""
    initialise(mixer, seed=0, depth=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return mixer


def within(found: dict[str, float], bound: float) -> None:
    """Asserts that every difference is at most the bound."""
    assert all(difference <= bound for difference in found.values()), found
