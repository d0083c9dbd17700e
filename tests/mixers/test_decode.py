"""A thousand single steps are one pass, in float32, with documents that start mid-stream; and the state does not grow."""

import pytest
import torch

from llm.docs import Docs
from llm.init import initialise
from llm.mixers import MIXERS

WIDTH, TOKENS = 16, 1000


@pytest.mark.parametrize("kind", MIXERS)
def test_thousand_steps_are_one_pass(kind):
    make, module = MIXERS[kind]
    settings = {"heads": 2} if "heads" in make.__dataclass_fields__ else {}
    mixer = module(make(**settings), WIDTH)
    initialise(mixer, seed=0, depth=1)
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    starts = torch.zeros(2, TOKENS, dtype=torch.bool)
    starts[0, [0, 300]] = starts[1, [0, 301, 777]] = True
    with torch.no_grad():
        whole, _ = mixer(x, None, Docs(starts))
        state, steps = mixer.init_state(2), []
        for t in range(TOKENS):
            y, state = mixer.step(x[:, t], state, starts[:, t])
            steps.append(y)
    error = (torch.stack(steps, 1) - whole).norm() / whole.norm()
    assert error <= 1e-4
    for name, spec in mixer.full_state_spec().items():
        assert spec.grows or state[name].shape[1:] == spec.shape
    assert any(spec.grows for spec in mixer.full_state_spec().values()) == (kind == "attention")
