"""What a start says of its parameters, by class: how many, in which precision, how they began and how they are trained."""

import json
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llm.init import parameter_roles
from llm.model import Decoder
from llm.train.run_folder import RunFolder
from llm.whole_file import write_text

NAME = "parameters.json"


def parameter_classes(decoder: Decoder, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """A record per role and group of the optimizer, of weights as they are now: initial ones, before ZeRO splits them."""
    roles, held = parameter_roles(decoder), dict(decoder.named_parameters())
    found = []
    for group in optimizer.param_groups:
        for role in dict.fromkeys(roles[name] for name in group["names"]):
            parameters = [held[name].detach() for name in group["names"] if roles[name] == role]
            count = sum(p.numel() for p in parameters)
            mean = sum(p.double().sum().item() for p in parameters) / count
            variance = sum((p.double() - mean).square().sum().item() for p in parameters) / count
            found.append(
                {
                    "role": role,
                    "tensors": len(parameters),
                    "parameters": count,
                    "dtype": str(parameters[0].dtype).removeprefix("torch."),
                    "init_mean": mean,
                    "init_std": variance**0.5,
                    "optimizer": "muon" if group["orthogonal"] else "adamw",
                    "weight_decay": group["weight_decay"],
                    "lr_scale": group["lr_scale"],
                }
            )
    return sorted(found, key=lambda record: -record["parameters"])


def report_parameters(decoder: Decoder, optimizer: torch.optim.Optimizer, folder: RunFolder) -> None:
    """A table on the console, and `report/parameters.json`. The first rank calls it."""
    classes = parameter_classes(decoder, optimizer)
    write_text(folder.report / NAME, json.dumps(classes, indent=1) + "\n")
    table = Table(title="parameters", title_justify="left", box=None)
    for heading in ("role", "tensors", "parameters", "kept in", "begins at", "optimizer", "decay", "rate"):
        table.add_column(heading, justify="left" if heading in ("role", "kept in", "optimizer") else "right", no_wrap=True)
    for each in classes:
        table.add_row(
            each["role"],
            f"{each['tensors']:,}",
            f"{each['parameters']:,}",
            each["dtype"],
            f"{each['init_mean']:.3g} ± {each['init_std']:.3g}",
            each["optimizer"],
            f"{each['weight_decay']:g}",
            f"x {each['lr_scale']:g}",
        )
    Console(width=132, highlight=False).print(table)
