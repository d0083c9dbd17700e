"""`init_from`: a new run starts from the weights of another, with data, sequence length, optimizer and schedule of its own.

PATH is a run folder (its newest whole checkpoint is taken), a checkpoint, or a folder of safetensors such as an export.
"""

import json
from pathlib import Path

import torch

from llm.errors import CheckpointError, ConfigError
from llm.model import Decoder
from llm.train import checkpoint_files as files
from llm.train.checkpoint import damage, newest_whole
from llm.train.config import RunConfig
from llm.train.fragments import fragments, refresh_weights
from llm.train.run_folder import RunFolder
from llm.train.shards import Pieces, Wanted, fill, same_shapes, weights_of
from llm.train.world import World
from llm.whole_file import write_text

# what the vocabulary's size shows in
ROWS_OF_VOCABULARY = ("embedding", "head")
# of the decoder inside an exported model
EXPORT = "model."


def check_source(config: RunConfig) -> None:
    """Raise ConfigError unless `init_from` holds weights that fit the model. Reads headers; before a process group starts."""
    assert config.init_from is not None
    path = Path(config.init_from)
    folder = next(iter(files.checkpoints(RunFolder(path).checkpoints)), path)
    _prefix(Pieces.merged([Pieces.read(folder, _names(folder, config))]), config)


def start_from(engine: object, config: RunConfig, run: RunFolder, world: World) -> Path:
    """Write the weights into the engine; where they came from, which the run folder records. All ranks call it together.

    Raises:
        CheckpointError: they are damaged. ConfigError: they do not fit.
    """
    assert config.init_from is not None
    folder = _whole(Path(config.init_from), world)
    pieces = Pieces.merged(world.gather(Pieces.read(folder, world.share(_names(folder, config)))))
    prefix = _prefix(pieces, config)
    # rows of a grown vocabulary lie behind the old ones: in no file, so they keep their own start
    fill(pieces, [Wanted(prefix + name, start, weight) for name, start, weight in weights_of(fragments(engine))])
    refresh_weights(engine)
    if world.first:
        write_text(run.path / "init_from.json", json.dumps({"init_from": config.init_from, "weights": str(folder)}) + "\n")
    return folder


def _whole(path: Path, world: World) -> Path:
    """The folder of the weights, verified by all ranks together where it can be."""
    newest, _ = newest_whole(RunFolder(path).checkpoints, world)
    if newest is not None:
        return newest
    wrong = damage(path, world) if (path / files.FILES).is_file() else None
    if wrong:
        raise CheckpointError(f"init_from ({path}) is not whole ({wrong}); take another checkpoint of that run")
    return path


def _names(folder: Path, config: RunConfig) -> list[str]:
    """The files of the weights. Raises ConfigError when there are none."""
    weights = folder / files.WEIGHTS
    # beside a checkpoint's weights lie generators and carried states
    place = weights if weights.is_dir() else folder
    names = sorted(str(path.relative_to(folder)) for path in place.glob("*.safetensors"))
    if not names:
        raise ConfigError(
            f"init_from ({config.init_from}) holds no weights; give a run folder (runs/NAME), a checkpoint of one "
            "(runs/NAME/checkpoints/step-N) or a folder of safetensors"
        )
    return names


def _prefix(pieces: Pieces, config: RunConfig) -> str:
    """What the weights' names begin with. Raises ConfigError unless they fit the model."""
    prefix = EXPORT if all(key.startswith(EXPORT) for key in pieces.shapes) else ""
    with torch.device("meta"):
        wanted = {prefix + name: tuple(parameter.shape) for name, parameter in Decoder(config.model).named_parameters()}
    for key in (prefix + name for name in ROWS_OF_VOCABULARY):
        old, new = pieces.shapes.get(key, ()), wanted.get(key, ())
        if old and new and old[0] < new[0] and old[1:] == new[1:]:
            if not config.grow_vocab:
                raise ConfigError(
                    f"model.vocab_size ({new[0]}) is more than the {old[0]} that init_from ({config.init_from}) has; "
                    f"set model.vocab_size={old[0]}, or grow_vocab=true, which starts the new rows from the seed"
                )
            wanted[key] = old
    wrong = same_shapes(pieces, wanted)
    if wrong:
        raise ConfigError(f"init_from ({config.init_from}) must hold the weights of `model`: {wrong}; give both the same layers")
    return prefix
