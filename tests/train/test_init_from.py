"""`init_from`: another run's weights, with all else new; what does not fit is refused before anything starts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm.data import Batches, Manifest, TokenStream
from llm.errors import ConfigError
from llm.model import Decoder
from llm.testing import run_ranks
from llm.train.config import RunConfig, load_config
from llm.train.init_from import check_source
from llm.train.load import load_model
from tests.train.conftest import VOCABULARY
from tests.train.test_resume import records, start

Words = Callable[..., list[str]]
GROWN = VOCABULARY + 43


def starts(rank: int, words: list[str], runs: Path) -> list[str]:
    """A run; one from its weights, on longer sequences; one from its export in bfloat16, with more vocabulary; and the first again
    when its source is gone."""
    from llm.train.checkpoint_files import checkpoints, discard

    said = [start([*words, "name=source", "train.steps=4", "train.schedule.warmup=1"])]
    source = load_model(runs / "source")[0].state_dict()
    (runs / "export").mkdir()
    save_file({f"model.{name}": value.bfloat16() for name, value in source.items()}, runs / "export/model.safetensors")
    new = [*words, "train.steps=3", "train.schedule.warmup=1", "train.optimizer.lr=0.002", "train.checkpoint_every=2"]
    longer = [*new, "name=longer", f"init_from={runs / 'source'}", "data.sequence_length=48", "parallel.zero=3"]
    said.append(start(longer))
    grown = [*new, "name=grown", f"init_from={runs / 'export'}", "grow_vocab=true", f"model.vocab_size={GROWN}"]
    said.append(start(grown))
    (runs / "source").rename(runs / "moved")
    discard(checkpoints(runs / "longer/checkpoints")[0])
    return [*said, start(longer), start([str(runs / "longer")])]


def first_loss(model: Decoder, config: RunConfig, manifest: Manifest) -> float:
    """The oracle: these weights on the new run's first batch."""
    stream = TokenStream(manifest, "train", config.data, config.seed, config.train.batch)
    batches = Batches(stream, config.train.batch, 0, 1, config.train.batch)
    (batch,) = next(batches)
    batches.close()
    with torch.no_grad():
        return float(model(batch.tokens_BT, None, batch.docs, batch.labels_BT).loss_sum / batch.scored)


@pytest.mark.multirank
def test_a_run_starts_from_the_weights_of_another(words: Words, manifest: Manifest, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert run_ranks(starts, 1, words("train.precision=fp32"), runs, timeout=110) == [
        ["step 4", "step 3", "step 3", "step 3", "step 3"]
    ]
    source, *_ = load_model(runs / "moved")
    longer, grown = (load_config([str(runs / name / "config.yaml")]) for name in ("longer", "grown"))
    assert records(runs / "longer")[0]["loss"] == pytest.approx(first_loss(source, longer, manifest), abs=1e-5)
    assert json.loads((runs / "longer/init_from.json").read_text()) == {
        "init_from": str(runs / "source"),
        "weights": str(runs / "source/checkpoints/step-4"),
    }
    wider = Decoder.create(grown.model, grown.seed)
    for (name, new), old in zip(wider.named_parameters(), source.parameters(), strict=True):
        rows = slice(VOCABULARY if name == "embedding" else None)
        with torch.no_grad():
            new[rows] = old.bfloat16()
    assert records(runs / "grown")[0]["loss"] == pytest.approx(first_loss(wider, grown, manifest), abs=1e-5)
    assert len(records(runs / "longer")) == 3


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["init_from=nowhere"], r"init_from \(nowhere\) holds no weights; give a run folder"),
        (
            ["init_from=export", "model.width=64"],
            r"must hold the weights of `model`: embedding is \[257, 32\] there and \[257, 64\] in",
        ),
        (["init_from=export", "model.depth=3"], r"blocks\.2\.\S+ \[\d+.*\] is in the model only"),
        (["init_from=export", "model.depth=1", "model.pattern=[r]"], r"blocks\.1\.\S+ \[\d+.*\] is in export only"),
        (["init_from=export", "model.vocab_size=300"], r"vocab_size \(300\) is more than the 257 .* or grow_vocab=true"),
        (["init_from=export", "model.vocab_size=200", "grow_vocab=true"], r"embedding is \[257, 32\] there and \[200"),
    ],
)
def test_weights_that_do_not_fit_are_refused(more: list[str], sentence: str, words: Words, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("export").mkdir()
    save_file(dict(Decoder.create(load_config(words()).model, seed=0).state_dict()), "export/weights.safetensors")
    given = [word for word in words(*more) if "model.depth=1" not in more or not word.startswith("model.layers.a")]
    with pytest.raises(ConfigError, match=sentence):
        check_source(load_config(given))
