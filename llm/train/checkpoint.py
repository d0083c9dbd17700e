"""Saving and continuing a run under DeepSpeed.

checkpoints/step-N/  engine/            DeepSpeed's: weights, float32 masters and optimizer states as the ranks hold them
                     model.safetensors  float32 weights, whole: what evaluation and export read, with no pickle in it
                     rng-R.pt           each rank's generators
                     carried-R.pt       each rank's states, under `contiguous` packing
                     progress.json      step, tokens, data position, ranks, ZeRO stage
                     config.yaml, tokenizer.json, files.json (sizes and hashes of all these)
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llm.errors import CheckpointError
from llm.train import checkpoint_files as files
from llm.train.carried import Carried
from llm.train.config import RunConfig
from llm.train.run_folder import RunFolder
from llm.train.world import World

ENGINE = "engine"


def save_checkpoint(
    engine: Any, run: RunFolder, config: RunConfig, world: World, step: int, data: dict[str, Any], carried: Carried | None = None
) -> Path:
    """Write `checkpoints/step-N` and remove old ones. `data`: the position of the data stream. All ranks call it together.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final, temporary = run.checkpoints / files.name_of(step), files.temporary_of(run.checkpoints, step)
    try:
        if world.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        world.barrier()
        if carried is not None:
            carried.save(temporary, world)
        _write(engine, run, config, world, temporary, {"step": step, "data": data})
        world.barrier()
        parts = world.gather(files.seal(temporary, world.share(files.content(temporary))))
        if world.first:
            files.publish(temporary, final, {name: entry for part in parts for name, entry in part.items()})
            files.keep_newest(run.checkpoints, config.train.keep_last)
        world.barrier()
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its file writer
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {final} cannot be written ({error}); earlier ones are untouched: "
            f"make room, then resume with `pretrain.py {run.path}`"
        ) from error
    return final


def _write(engine: Any, run: RunFolder, config: RunConfig, world: World, folder: Path, progress: dict[str, Any]) -> None:
    engine.save_checkpoint(str(folder), tag=ENGINE, save_latest=False)
    torch.save(rng_state(world.device), folder / f"rng-{world.rank}.pt")
    weights = full_weights(engine, world)
    if not world.first:
        return
    # DeepSpeed's scripts for converting its own files; model.safetensors is there already
    for script in ("zero_to_fp32.py", "zero_to_torch.py"):
        (folder / script).unlink(missing_ok=True)
    save_file(weights, folder / files.WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(run.config, folder / files.CONFIG)
    shutil.copyfile(run.tokenizer, folder / files.TOKENIZER)
    tokens = progress["step"] * config.train.batch * config.data.sequence_length
    (folder / files.PROGRESS).write_text(
        json.dumps({**progress, "tokens": tokens, "ranks": world.size, "zero": config.parallel.zero}, indent=1) + "\n"
    )


def full_weights(engine: Any, world: World) -> dict[str, torch.Tensor]:
    """Name -> float32 weight on the host, on the first rank; empty on the others. All ranks call it together."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in engine.module.decoder.named_parameters():
        full = safe_get_full_fp32_param(parameter) if engine.zero_optimization_stage() else parameter
        if world.first:
            weights[name] = full.detach().to("cpu", torch.float32, copy=True).contiguous()
    return weights


def load_checkpoint(engine: Any, checkpoint: Path, config: RunConfig, world: World) -> dict[str, Any]:
    """Bring the engine and this rank's generators back to a whole checkpoint; its progress. Raises CheckpointError."""
    progress = json.loads((checkpoint / files.PROGRESS).read_text())
    if progress["ranks"] != world.size and config.parallel.zero:
        raise CheckpointError(
            f"{checkpoint} was saved by {progress['ranks']} ranks and this start has {world.size}; "
            f"ZeRO {config.parallel.zero} splits the optimizer's states by rank: resume with {progress['ranks']} ranks "
            f"(deepspeed --num_accelerators {progress['ranks']} ...)"
        )
    loaded, _ = engine.load_checkpoint(str(checkpoint), tag=ENGINE)
    if loaded is None:
        raise CheckpointError(f"{checkpoint} cannot be loaded by the engine; remove it to resume from the one before")
    generators = checkpoint / f"rng-{world.rank}.pt"
    if generators.is_file():
        set_rng_state(torch.load(generators, weights_only=True), world.device)
    return progress


def newest_whole(folder: Path, world: World) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that all ranks together find whole, and a sentence for each newer one that is not.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    found = world.gather(files.checkpoints(folder))[0]
    passed_over: list[str] = []
    for checkpoint in found:
        names = sorted(files.read_seal(checkpoint) or {})
        verdicts = world.gather(files.damage(checkpoint, world.share(names)))
        wrong = next((verdict for verdict in verdicts if verdict), None)
        if wrong is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint} is not whole ({wrong})")
    if found:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {'; '.join(passed_over)}; restore one from a copy, or remove them to start again"
        )
    return None, []


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of torch's generators on the host and on the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
