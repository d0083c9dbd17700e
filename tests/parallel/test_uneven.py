"""Sequences whose length no number of ranks divides: loss, gradients, the state behind and the next token are those of one rank."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from llm.config import build
from llm.docs import Docs
from llm.model import Decoder, ModelConfig, model_kinds
from llm.parallel import Ranks
from llm.parallel.uneven import padded, prefill
from llm.testing import run_ranks

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(1000)]

LAYERS: dict[str, Any] = {
    "a": {"mixer": {"kind": "attention", "heads": 2, "kv_heads": 1}},
    "w": {"mixer": {"kind": "attention", "heads": 2, "window": 9}},
    "m": {"mixer": {"kind": "mamba"}},
    "x": {"mixer": {"kind": "mlstm", "heads": 2}},
    "s": {"mixer": {"kind": "slstm", "heads": 2}},
    "t": {"mixer": {"kind": "titans", "heads": 2, "chunk": 16}},
}
TAPS = 4
# 3 mod 4, 1 mod 2; and fewer for every rank than a convolution looks back
LENGTHS = (151, 11)


def decoder() -> Decoder:
    values = {"width": 16, "depth": 6, "vocab_size": 31, "layers": LAYERS, "pattern": list(LAYERS)}
    return Decoder.create(build(ModelConfig, values, model_kinds("")), seed=0).double()


def sequence(length: int) -> tuple[torch.Tensor, torch.Tensor, Docs]:
    """Tokens, labels, documents; row 1 goes on with what came before."""
    tokens = torch.randint(31, (2, length + 1), generator=torch.Generator().manual_seed(length))
    starts = torch.zeros(2, length, dtype=torch.bool)
    starts[0, [0, length // 3, length - 2]] = True
    starts[1, [length // 2]] = True
    return tokens[:, :-1], tokens[:, 1:], Docs(starts)


def loss_and_gradients(model: Decoder, tokens, labels, docs, ranks=None) -> dict[str, torch.Tensor]:
    loss = model(tokens, None, docs, labels, ranks=ranks).loss_sum
    model.zero_grad()
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()} | {"loss": loss.detach()}
    if ranks is not None:
        for value in found.values():
            dist.all_reduce(value)
    return found


def differences(rank: int, size: int) -> dict[str, float]:
    """Relative, of what ranks find from what one does."""
    model, found = decoder(), {}

    def run(tokens, state, docs, ranks):
        out = model(tokens, state, docs, last_only=True, ranks=ranks)
        return out.logits, out.state

    def compare(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        ours, theirs = ours.double(), theirs.double()
        found[name] = ((ours - theirs).norm() / theirs.norm().clamp(min=1e-6)).item()

    for length in LENGTHS:
        tokens, labels, docs = sequence(length)
        if length > size * TAPS:
            split = Ranks(rank, size, states=False)
            ours = loss_and_gradients(model, *padded(tokens, labels, docs, split), split)
            for name, theirs in loss_and_gradients(model, tokens, labels, docs).items():
                compare(f"{length} {name}", ours[name], theirs)
        with torch.no_grad():
            before = model(sequence(20)[0]).state
            for start, given in (("fresh", None), ("carried", before)):
                last, state = prefill(run, tokens, given, docs, Ranks(rank, size), TAPS - 1)
                want, want_state = run(tokens, given, docs, None)
                compare(f"{length} {start} last token", last, want[:, -1])
                for name in want_state:
                    compare(f"{length} {start} state {name}", state[name], want_state[name])
    return found


def test_any_length_is_that_of_one_rank(four_ranks: list) -> None:
    near_enough([found["uneven"] for found in four_ranks])


@pytest.mark.slow
def test_any_length_over_two_is_that_of_one_rank() -> None:
    near_enough(run_ranks(differences, 2, 2, timeout=180))


def near_enough(by_rank: list[dict[str, float]]) -> None:
    assert len(by_rank[0]) > 100
    for found in by_rank:
        name = max(found, key=found.__getitem__)
        assert found[name] <= 1e-10, f"{name} differs by {found[name]:.1e}"


def test_padding_is_behind_the_end_and_not_scored() -> None:
    tokens, labels, docs = sequence(11)
    shares = [padded(tokens, labels, docs, Ranks(rank, 4)) for rank in range(4)]
    joined = torch.cat([share.tokens_BT for share in shares], 1)
    assert torch.equal(joined[:, :11], tokens)
    assert torch.equal(torch.cat([share.labels_BT for share in shares], 1)[:, 11:], torch.full((2, 1), -100))
    assert torch.equal(shares[0].docs.starts_BT[:, :11], docs.starts_BT)
    assert {share.tokens_BT.shape for share in shares} == {(2, 3)}
