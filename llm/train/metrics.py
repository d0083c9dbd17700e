"""What a run says of itself: metrics.jsonl, TensorBoard, lines on the console."""

import json
import math
import sys
import time
from typing import IO, Any

import torch
from torch import Tensor

from llm.train.engine import StepResult
from llm.train.peak import measured_peak
from llm.train.phases import Phase
from llm.train.run_folder import RunFolder
from llm.train.teacher import flops_per_token
from llm.train.world import World
from llm.whole_file import write_text

BAR = 20


class Meter:
    """Sums over the steps since the last reading; tensors stay on the device until then.

    Args:
        phase: of the run, whose tokens are counted. flops_per_token: of training. peak_flops: of all ranks' devices together.
    """

    def __init__(self, world: World, phase: Phase, flops_per_token: float, peak_flops: float):
        self.world, self.phase, self.flops_per_token, self.peak_flops = world, phase, flops_per_token, peak_flops
        self.restart()

    def restart(self) -> None:
        """Forget what was summed."""
        self.loss_sum: Tensor | float = 0.0
        self.z_sum: Tensor | float = 0.0
        self.scored: Tensor | float = 0.0
        self.steps, self.bad, self.data_wait, self.start = 0, 0, 0.0, time.perf_counter()

    def add(self, result: StepResult, data_wait: float) -> None:
        if result.bad:
            self.bad += 1
        else:
            self.loss_sum, self.scored = self.loss_sum + result.loss_sum, self.scored + result.scored
            if result.z_sum is not None:
                self.z_sum = self.z_sum + result.z_sum
        self.grad_norm = result.grad_norm
        self.steps, self.data_wait = self.steps + 1, self.data_wait + data_wait

    def read(self, step: int, lr: float) -> dict[str, float]:
        """The record of the steps since the last one. Reads from the device; all ranks call it together."""
        assert self.steps, "read before the first step"
        loss_sum = float(self.world.sum(self.loss_sum)) if isinstance(self.loss_sum, Tensor) else math.nan
        seconds = time.perf_counter() - self.start
        rate = self.steps * self.phase.tokens_per_step / seconds
        record = {
            "step": step,
            "tokens": self.phase.tokens_at(step),
            "loss": loss_sum / max(1.0, float(self.scored)),
            "grad_norm": float(self.grad_norm),
            "lr": lr,
            "tokens_per_second": rate,
            "mfu": rate * self.flops_per_token / self.peak_flops,
            "seconds_per_step": seconds / self.steps,
            "data_wait": self.data_wait / seconds,
        }
        if self.phase.of > 1:
            record["phase"] = self.phase.number
        if self.bad:
            record["bad_steps"] = self.bad
        if isinstance(self.z_sum, Tensor):
            record["log_z_squared"] = float(self.world.sum(self.z_sum)) / max(1.0, float(self.scored))
        self.restart()
        return record

    def skip(self) -> None:
        """Leave the time since the last reading (validation, saving) out of the next one."""
        assert self.steps == 0
        self.start = time.perf_counter()


class Writer:
    """Where records go, on the first rank. Those of steps after `step`, left by a start that was killed, are dropped."""

    def __init__(self, folder: RunFolder, steps: int, step: int, tensorboard: bool):
        records = [record for record in read_metrics(folder) if record["step"] <= step]
        write_text(folder.metrics, "".join(json.dumps(record) + "\n" for record in records))
        self.file = folder.metrics.open("a", buffering=1)
        self.console = Console(steps)
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder.tensorboard), purge_step=step + 1)

    def write(self, record: dict[str, float]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.console.show(record)
        if self.board is not None:
            for name, value in record.items():
                if name != "step":
                    self.board.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self.file.close()
        self.console.close()
        if self.board is not None:
            self.board.close()


class Console:
    """One line per record; on a terminal a line with a bar that is overwritten, and kept when it holds a validation."""

    def __init__(self, steps: int, out: IO[str] | None = None):
        self.steps, self.out = steps, out or sys.stdout
        self.bar = self.out.isatty()

    def show(self, record: dict[str, float]) -> None:
        line = progress_line(record, self.steps)
        if not self.bar:
            print(line, file=self.out, flush=True)
            return
        done = round(BAR * record["step"] / self.steps)
        end = "\n" if "validation_loss" in record else ""
        print(f"\r\x1b[K{'━' * done}{'╌' * (BAR - done)} {line}", end=end, file=self.out, flush=True)

    def close(self) -> None:
        if self.bar:
            print(file=self.out, flush=True)


def progress_line(record: dict[str, Any], steps: int) -> str:
    left = (steps - record["step"]) * record["seconds_per_step"]
    parts = [
        f"step {record['step']}/{steps}",
        f"loss {record['loss']:.4f}",
        f"grad norm {record['grad_norm']:.2f}",
        f"lr {record['lr']:.2e}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
        f"MFU {record['mfu']:.1%}",
        f"ETA {duration(left)}",
    ]
    if "validation_loss" in record:
        parts.append(f"validation loss {record['validation_loss']:.4f}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of a run. A last line that was cut off by a kill is left out."""
    if not folder.metrics.is_file():
        return []
    records = []
    for line in folder.metrics.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def create_meter(phase: Phase, world: World) -> Meter:
    """Counts tokens and FLOPs of all ranks; the peak is the sum of what each rank's device reaches."""
    config = phase.config
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    peak = config.train.peak_flops or measured_peak(world.device, dtype)
    total = world.sum(torch.tensor(peak, dtype=torch.float64, device=world.device)).item()
    return Meter(world, phase, flops_per_token(config), total)
