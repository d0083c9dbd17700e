"""What each layer reads of the past, and how long its state keeps it.

attention_maps   the map of every layer on one text, averaged over heads; how far back a token looks, weighted by |A|; and how far
                 the layer's output is from the one made of its maps
timescales       tokens after which a state's entry has fallen to 1/e, -1 / mean log decay, of every head or channel
logit_lens       nats per token when the norm and the head read the stream behind each layer (nostalgebraist 2020), and how often
                 the most likely token is already the model's
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from eval.figures import Figure, Result
from eval.probes.watched import decoder_of, watched_layers
from eval.subject import Subject
from eval.texts import TextConfig, read_texts
from llm.errors import ConfigError, DataError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# a decay of 1 has no time scale
LONGEST = 1e9


@dataclass(frozen=True)
class LayersConfig(TextConfig):
    """tokens: of the first document that is so long; maps have its square as size."""

    tokens: int = 64

    def check(self) -> None:
        """Raises ConfigError."""
        super().check()
        if self.tokens < 3:
            raise ConfigError(f"tokens ({self.tokens}) must be at least 3")


def read_tokens(subject: Subject, config: LayersConfig) -> torch.Tensor:
    """`[1, T]`. Raises ConfigError, DataError."""
    config.check()
    texts = read_texts(subject, config)
    found = next((document for document in texts.tokens if len(document) >= config.tokens), None)
    if found is None:
        longest = max(map(len, texts.tokens))
        raise DataError(f"tokens ({config.tokens}) are more than the longest document of the text has ({longest}); use fewer")
    return torch.from_numpy(found[: config.tokens])[None].long().to(subject.model.device)


def attention_maps(subject: Subject, config: LayersConfig) -> Result:
    """Raises ConfigError, DataError."""
    decoder = decoder_of(subject, "attention_maps")
    figures, maps = {}, []
    for layer, seen, error in watched_layers(decoder, read_tokens(subject, config)):
        for op, found in seen.items():
            weight_HTS = found.map_BHTS[0].double().abs()
            share_HTS = weight_HTS / weight_HTS.sum(-1, keepdim=True).clamp(min=1e-30)
            t = torch.arange(weight_HTS.shape[-1], device=weight_HTS.device)
            back_H = (share_HTS * (t[:, None] - t)).sum(-1).mean(-1)
            figures[f"layer {layer} tokens back"] = Figure(float(back_H.mean()), len(back_H))
            figures[f"layer {layer} error"] = Figure(error, 1)
            shares = [[round(x, 5) for x in row] for row in share_HTS.mean(0).tolist()]
            maps.append({"layer": layer, "op": op, "error": error, "tokens_back": back_H.tolist(), "share": shares})
    return Result(figures, {"maps": maps}, f"{config.tokens} tokens of one document; shares of |A|, averaged over heads")


def timescales(subject: Subject, config: LayersConfig) -> Result:
    """Raises ConfigError, DataError."""
    decoder = decoder_of(subject, "timescales")
    figures, found = {}, []
    for layer, seen, _ in watched_layers(decoder, read_tokens(subject, config)):
        for op, of in seen.items():
            if of.log_decay is None:
                continue
            mean = of.log_decay.double().mean((0, 1)).flatten()
            scales = (-1 / mean.clamp(max=-1 / LONGEST)).cpu().numpy()
            figures[f"layer {layer} median timescale"] = Figure(float(np.median(scales)), len(scales))
            quantiles = {str(q): float(np.quantile(scales, q)) for q in QUANTILES}
            edges = 2.0 ** np.arange(-4, 31)
            counts = np.histogram(scales.clip(edges[0], edges[-1]), edges)[0]
            found.append({"layer": layer, "op": op, "n": len(scales), "quantiles": quantiles, "counts": counts.tolist()})
    if not found:
        raise ConfigError(f"timescales need layers with decays, and {subject.name} has none; leave the task out")
    return Result(figures, {"edges": edges.tolist(), "layers": found}, f"{config.tokens} tokens of one document; in tokens")


@torch.no_grad()
def logit_lens(subject: Subject, config: LayersConfig) -> Result:
    """Raises ConfigError, DataError."""
    decoder = decoder_of(subject, "logit_lens")
    tokens = read_tokens(subject, config)
    kept: list[torch.Tensor] = []
    last_BTD, _ = decoder.hidden(F.embedding(tokens, decoder.embedding), kept=kept)
    streams = {"embedding": kept[0]} | {f"layer {i}": x for i, x in enumerate(kept[1:])}
    read = {name: decoder.norm(x) * decoder.config.width_ratio for name, x in streams.items()}
    read[f"layer {len(kept) - 1}"] = last_BTD
    final = decoder.logits(last_BTD).argmax(-1)
    figures, found = {}, []
    for name, x_BTD in read.items():
        logits = decoder.logits(x_BTD)
        nats = F.cross_entropy(logits[0, :-1].double(), tokens[0, 1:], reduction="none").cpu().numpy()
        alike = float((logits.argmax(-1) == final).double().mean())
        figures[f"{name} nats"] = Figure(float(nats.mean()), len(nats), float(nats.std(ddof=1) / len(nats) ** 0.5))
        found.append({"behind": name, "nats": float(nats.mean()), "as_the_model": alike})
    return Result(figures, {"layers": found}, f"{config.tokens} tokens of one document")


def draw_maps(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """A row of each model: its layers' maps, on a logarithmic scale. results: by model."""
    from matplotlib.colors import LogNorm

    columns = max(len(details["maps"]) for details in results.values())
    panels = figure.subplots(len(results), columns, squeeze=False)
    for row, (name, details) in zip(panels, results.items(), strict=True):
        for axes in row[len(details["maps"]) :]:
            axes.set_axis_off()
        for axes, found in zip(row, details["maps"], strict=False):
            drawn = axes.imshow(np.array(found["share"]), norm=LogNorm(1e-4, 1, clip=True), cmap="magma")
            axes.set_title(f"{name}: layer {found['layer']}", fontsize=8)
    figure.colorbar(drawn, ax=panels, shrink=0.8, label="share of |A|")


def draw_lens(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """Nats per token, and agreement with the model's own choice, against depth. results: by model."""
    loss, alike = figure.subplots(1, 2)
    for name, details in results.items():
        depth = np.linspace(0, 1, len(details["layers"]))
        loss.plot(depth, [found["nats"] for found in details["layers"]], marker=".", label=name)
        alike.plot(depth, [found["as_the_model"] for found in details["layers"]], marker=".", label=name)
    loss.set(xlabel="share of the layers", ylabel="nats per token")
    alike.set(xlabel="share of the layers", ylabel="most likely token is the model's", ylim=(0, 1.05))
    for axes in (loss, alike):
        axes.grid(alpha=0.3)
        axes.legend()


def draw_timescales(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """A histogram of each layer, one panel per model. results: by model."""
    for axes, (name, details) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for found in details["layers"]:
            shares = np.array(found["counts"]) / found["n"]
            axes.stairs(shares, details["edges"], label=f"layer {found['layer']}")
        axes.set(xscale="log", xlabel="time scale, tokens", ylabel="share of heads or channels", title=name)
        axes.legend(fontsize=8)
