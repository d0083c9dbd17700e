"""The coordinate check: with muP activations move alike at every width, without it further the wider the model."""

import pytest

from benchmarks.coordinates import BASE, growth

WIDTHS = (64, 256)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_sizes_stay_flat_across_width_with_mup_alone(optimizer: str) -> None:
    for name, (narrow, wide) in growth(optimizer, BASE, WIDTHS).items():
        assert 0.7 < wide / narrow < 1.3, name
    plain = growth(optimizer, None, WIDTHS)
    assert plain["logits"][1] > 1.8 * plain["logits"][0]
    if optimizer == "adamw":
        assert all(wide > 1.8 * narrow for narrow, wide in plain.values())
