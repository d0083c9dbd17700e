"""Speed and memory of reading and writing, against the length of what was read before.

prefill   tokens/s of reading a prompt of L tokens in one pass, B rows at once, logits of the last token alone
first     milliseconds until a prompt of L tokens has its first new token, one row
decode    tokens/s of writing, B rows at once, token by token behind L tokens
state     bytes of one row's state behind L tokens, measured on its tensors, and predicted from the config alone
memory    peak bytes of the device during prefill and decode: CUDA's allocator, or this process's resident memory on a CPU

Each time is the median of `repeats` after one run that is not counted, with its quartiles as spread. Tokens are random.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.figures import Figure, Result
from eval.models.language_model import LanguageModel, ModelState
from eval.subject import Subject
from llm.errors import ConfigError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class ThroughputConfig:
    """lengths: L, tokens before. batch: B. decode: tokens written per repeat. repeats: timed runs of each."""

    lengths: list[int] = field(default_factory=lambda: [128, 512, 2048])
    batch: int = 1
    decode: int = 32
    repeats: int = 5
    seed: int = 0

    def check(self, positions: int | None) -> None:
        """Raises ConfigError. positions: what the model can read at most."""
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"lengths ({self.lengths}) must be numbers of tokens, at least 1 each; write lengths=[128,512]")
        for name in ("batch", "decode", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be at least 1")
        if positions is not None and max(self.lengths) + self.decode > positions:
            raise ConfigError(
                f"lengths ({max(self.lengths)}) and decode ({self.decode}) reach behind the model's {positions} positions; use less"
            )


@dataclass(frozen=True)
class Times:
    """Seconds of the repeats."""

    median: float
    quartiles: tuple[float, float]
    repeats: int

    def rate(self, tokens: int) -> dict[str, Any]:
        """Tokens per second at the median, and at the quartiles of time."""
        return {"median": tokens / self.median, "quartiles": sorted(tokens / q for q in self.quartiles), "repeats": self.repeats}


def throughput(subject: Subject, config: ThroughputConfig) -> Result:
    """Tokens per second, times, bytes by length. Raises ConfigError."""
    config.check(subject.model.positions)
    model, by_length = subject.model, []
    with subject.progress("lengths", len(config.lengths)) as advance:
        for length in sorted(config.lengths):
            by_length.append(at_length(model, length, config))
            advance(1)
    figures = {}
    for found in by_length:
        for name, unit in (("prefill", "tokens per s"), ("decode", "tokens per s"), ("first_token", "ms")):
            # of a median, of what is about normal: 1.25 standard deviations, which are the range between quartiles over 1.35
            low, high = found[name]["quartiles"]
            error = 1.2533 * (high - low) / 1.349 / config.repeats**0.5
            figures[f"{name} {unit} at {found['length']}"] = Figure(found[name]["median"], config.repeats, error)
        figures[f"state bytes at {found['length']}"] = Figure(found["state_bytes"], 1)
    details = {"batch": config.batch, "threads": torch.get_num_threads(), "by_length": by_length}
    return Result(figures, details, f"medians of {config.repeats}, {config.batch} rows, {config.decode} tokens written")


def at_length(model: LanguageModel, length: int, config: ThroughputConfig) -> dict[str, Any]:
    """What is measured behind one length."""
    generator = torch.Generator().manual_seed(config.seed)
    tokens = torch.randint(model.vocab_size, (config.batch, length), generator=generator).to(model.device)
    resets = reset_peak(model.device)
    prefill = timed(lambda _: model.logits(tokens, last_only=True), model.device, config.repeats)
    first = timed(lambda _: model.logits(tokens[:1], last_only=True)[0].argmax(-1).cpu(), model.device, config.repeats)
    _, state = model.logits(tokens, last_only=True)

    def write(state: ModelState) -> None:
        token = tokens[:, :1]
        for _ in range(config.decode):
            logits, state = model.logits(token, state)
            token = logits.argmax(-1)

    # each time from a copy: a model may change the state that it is given
    decode = timed(write, model.device, config.repeats, lambda: copy.deepcopy(state))
    milliseconds = {"median": first.median * 1e3, "quartiles": [q * 1e3 for q in first.quartiles], "repeats": config.repeats}
    return {
        "length": length,
        "prefill": prefill.rate(config.batch * length),
        "first_token": milliseconds,
        "decode": decode.rate(config.batch * config.decode),
        "state_bytes": model.state_bytes(state) / config.batch,
        "predicted_state_bytes": model.predicted_state_bytes(length),
        "peak_memory_bytes": peak(model.device) if resets else None,
    }


def timed(run: Callable[[Any], Any], device: torch.device, repeats: int, before: Callable[[], Any] = lambda: None) -> Times:
    """Seconds of `run`, after one that is not counted. It is given what `before` makes, which is not timed."""
    seconds = []
    for _ in range(repeats + 1):
        given = before()
        synchronize(device)
        started = time.perf_counter()
        run(given)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    low, median, high = np.percentile(seconds[1:], (25, 50, 75))
    return Times(float(median), (float(low), float(high)), repeats)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> bool:
    """Whether the system lets the highest use so far be forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        # 5: the highest resident size (man 5 proc)
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak(device: torch.device) -> int:
    """Bytes at most since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def draw(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """Three panels over the length: prefill, decode with their quartiles, and the state's bytes with the prediction dashed."""
    prefill, decode, state = figure.subplots(1, 3)
    for name, details in results.items():
        rows = details["by_length"]
        x = [row["length"] for row in rows]
        for axes, key in ((prefill, "prefill"), (decode, "decode")):
            y = np.array([row[key]["median"] for row in rows])
            spread = np.abs(np.array([row[key]["quartiles"] for row in rows]).T - y)
            axes.errorbar(x, y, spread, marker=".", capsize=2, label=name)
        (line,) = state.plot(x, [row["state_bytes"] for row in rows], marker=".", label=name)
        if rows[0]["predicted_state_bytes"] is not None:
            state.plot(x, [row["predicted_state_bytes"] for row in rows], "--", color=line.get_color(), lw=0.8)
    prefill.set(title="prefill, tokens/s", ylim=(0, None))
    decode.set(title="decode, tokens/s", ylim=(0, None))
    state.set(title="state, bytes (dashed: predicted)", yscale="log")
    for axes in (prefill, decode, state):
        axes.set(xscale="log", xlabel="tokens before")
        axes.grid(alpha=0.3)
        axes.legend()
