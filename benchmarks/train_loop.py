"""What our training costs beside a plain PyTorch loop of the same model: seconds per step, in turns, in one process.

    python benchmarks/train_loop.py [--check] [--rounds 7] [--zero 1 2 3]

Sides: a plain loop (forward, backward, clipping, fused AdamW) on batches that are there already; `optimizer_step` under ZeRO on the
same; and `loop` with everything on - reading and packing ahead, metrics, console, TensorBoard, a record per step. Checkpoints and
validation are as dear as they are frequent, and left out. A step's time is the least of its rounds: others share the machine.
"""

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from llm.data import DOCUMENT_TOKEN, Batches, Manifest, TokenStream
from llm.data.manifest import Source
from llm.data.write import DatasetWriter
from llm.model import Decoder
from llm.testing import free_port
from llm.train.config import RunConfig, load_config
from llm.train.optimizer import create_optimizer
from llm.train.start import quiet
from llm.train.world import World

STEPS = 3
# of a plain loop's step: under ZeRO 1 and 2, and with everything on
LAWS = {"ZeRO 1": 1.20, "everything on": 1.25}


def dataset(folder: Path) -> Manifest:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(special_tokens=[DOCUMENT_TOKEN], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    writer = DatasetWriter(folder, tokenizer.to_str().encode(), {"text": Source(1.0, "CC0-1.0")})
    rng = random.Random(0)
    for _ in range(400):
        tokens = [rng.randrange(1, 257) for _ in range(rng.randint(50, 800))]
        writer.add("text", "train", tokens, len(tokens))
    return writer.finish()


def config_of(folder: Path, zero: int) -> RunConfig:
    words = [
        "base.yaml",
        "model/hybrid-10m.yaml",
        "model.vocab_size=4096",
        "data.sequence_length=256",
        f"data.manifest={folder / 'data'}",
    ]
    words += ["train.steps=10000", "train.batch=4", "train.log_every=1", "train.precision=fp32", "train.peak_flops=1e11"]
    return load_config([*words, f"runs={folder / 'runs'}", f"name=zero{zero}", f"parallel.zero={zero}"])


def plain(config: RunConfig, batches: list) -> Callable[[], None]:
    model = Decoder.create(config.model, config.seed)
    optimizer = create_optimizer(config.train.optimizer, model, 0, "fp32", 0)

    def steps() -> None:
        for (batch,) in batches:
            optimizer.zero_grad()
            loss = model(batch.tokens_BT, None, batch.docs, batch.labels_BT).loss_sum / batch.scored
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return steps


def engine_alone(config: RunConfig, batches: list, world: World) -> Callable[[], None]:
    from llm.train.engine import create_engine, optimizer_step

    engine = create_engine(config, world)

    def steps() -> None:
        for micro_batches in batches:
            optimizer_step(engine, micro_batches, 1e-3, 1.0, world, step=1)

    return steps


def everything(config: RunConfig, manifest: Manifest, world: World) -> Callable[[], None]:
    from llm.train import loop as training
    from llm.train.bad_steps import BadSteps
    from llm.train.engine import create_engine
    from llm.train.guard import Guard
    from llm.train.metrics import Writer
    from llm.train.phases import phases_of
    from llm.train.run_folder import RunFolder
    from llm.train.save import Saver
    from llm.train.sent import Sent
    from llm.train.startup import StartUp
    from llm.train.stop import StopRequest

    folder = RunFolder.of(config)
    folder.write(config, manifest)
    batches = Batches(stream_of(config, manifest), config.train.batch, 0, 1, config.train.batch)
    with contextlib.redirect_stdout(io.StringIO()):
        writer = Writer(folder, config.train.steps, 0, tensorboard=True)
    (phase,) = phases_of(config)
    saver, meter = Saver(folder, config, world), training.create_meter(phase, world)
    engine, guard, bad = create_engine(config, world), Guard(folder, world, 15, StopRequest()), BadSteps(config.train.bad_steps)
    sent, startup = Sent(world, None), StartUp()
    run = training.Run(phase, folder, world, engine, batches, None, None, None, meter, sent, writer, saver, guard, bad, [], 0)

    def steps() -> None:
        train = replace(config.train, steps=run.step + STEPS)
        (run.phase,) = phases_of(replace(config, train=train))
        run.guard = Guard(folder, world, 15, StopRequest())
        with run.guard, run.guard.stop:
            training.loop(run, startup)

    return steps


def stream_of(config: RunConfig, manifest: Manifest) -> TokenStream:
    return TokenStream(manifest, "train", config.data, config.seed, config.train.batch)


def measured(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each side, by round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, steps in sides.items():
            start = time.perf_counter()
            steps()
            if turn:
                seconds[name].append((time.perf_counter() - start) / STEPS)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--zero", type=int, nargs="*", default=[1])
    parser.add_argument("--check", action="store_true", help="fail above the laws")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    os.environ["MASTER_PORT"] = str(free_port())
    quiet()
    world = World.from_environment()
    world.connect()
    with (
        tempfile.TemporaryDirectory() as temporary,
        mock.patch("llm.train.save.Saver.save"),
        mock.patch("llm.train.loop.plot_loss"),
        # one writer serves all rounds
        mock.patch("llm.train.metrics.Writer.close"),
    ):
        folder = Path(temporary)
        manifest = dataset(folder / "data")
        config = config_of(folder, 1)
        reader = Batches(stream_of(config, manifest), config.train.batch, 0, 1, config.train.batch)
        batches = [next(reader) for _ in range(STEPS)]
        reader.close()
        sides = {"plain loop": plain(config, batches)}
        for zero in given.zero:
            sides[f"ZeRO {zero}"] = engine_alone(config_of(folder, zero), batches, world)
        sides["everything on"] = everything(config, manifest, world)
        seconds = measured(sides, given.rounds)
    world.close()
    best = {name: min(values) for name, values in seconds.items()}
    for name, value in best.items():
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds["plain loop"], strict=True))
        print(f"{name:14} {value:7.3f} s  x {value / best['plain loop']:.3f}  (median of rounds x {ratios[len(ratios) // 2]:.3f})")
    above = [name for name, law in LAWS.items() if name in best and best[name] > law * best["plain loop"]]
    if given.check and above:
        print(f"above the laws {LAWS}: {', '.join(above)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
