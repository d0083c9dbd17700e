"""Which mixers the contract suite runs on: every kind of the table, and settings that change how time is crossed."""

from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any
from unittest.mock import patch

from laws import Case, streams

from llm.mixers import MIXERS
from llm.mixers.mamba2 import Mamba2Config
from llm.ops import dispatch, loops
from llm.ops.rotary import RopeScaling

# What a small mixer of any kind is given, as far as its config knows the setting.
SMALL = {"heads": 2}

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("attention", {"heads": 2, "kv_heads": 1, "qk_norm": True}),
    ("attention", {"heads": 2, "window": 9}),
    ("attention", {"heads": 4, "kv_heads": 2, "window": 100, "rope_theta": None}),
    ("attention", {"heads": 2, "window": 1}),
    ("attention", {"heads": 2, "rope_fraction": 0.5, "rope_scaling": RopeScaling("yarn", 4.0, 32)}),
    ("attention", {"heads": 4, "kv_heads": 2, "soft_cap": 1.0, "gate": True}),
    ("attention", {"heads": 2, "recurrent": Mamba2Config(heads=2, groups=2, state=3, head_dim=3)}),
    ("attention", {"heads": 2, "window": 70, "soft_cap": 2.0}),
    ("mamba", {"state": 3, "taps": 2, "dt_rank": 2}),
    ("mamba2", {"heads": 4, "groups": 2, "state": 5, "taps": 2}),
    ("slstm", {"heads": 4, "taps": 0}),
    ("titans", {"heads": 2, "variant": "mag", "window": 9, "persistent": 3, "depth": 2, "chunk": 16}),
    ("titans", {"heads": 2, "variant": "mal", "window": 70, "step_max": 0.05}),
    ("titans", {"heads": 2, "variant": "mac", "chunk": 16, "persistent": 3}),
    ("titans", {"heads": 2, "variant": "mac", "chunk": 64, "depth": 2, "rope_theta": None}),
    ("retention", {"heads": 4, "value_factor": 1, "rope_theta": None}),
)


def small(kind: str) -> Case:
    known = {field.name for field in fields(MIXERS[kind][0])}
    return Case(kind, tuple((name, value) for name, value in SMALL.items() if name in known))


def all_cases() -> list[Case]:
    return [small(kind) for kind in MIXERS] + [Case(kind, tuple(settings.items())) for kind, settings in VARIANTS]


def pytorch_forms() -> AbstractContextManager:
    """The ops as they run off the CPU: no compiled loops."""
    return patch.dict(loops.LOOPS, clear=True)


def has_loops(case: Case) -> bool:
    """Whether an op of this mixer runs as a compiled loop here."""
    found = []
    with patch.object(dispatch, "loop", lambda *args: found.append(loops.loop(*args))):
        case.mixer()(streams(tokens=2))
    return any(found)


def label(case: Case) -> str:
    return "-".join([case.kind, *(f"{name}={value}" for name, value in case.settings)])
