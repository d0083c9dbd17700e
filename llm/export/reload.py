"""Run by the exporter in a process of its own: load exported folders as a stranger would, and measure how far their logits are off.

    python -I reload.py FOLDER EXPECTED.safetensors [FOLDER EXPECTED.safetensors ...]

EXPECTED holds `tokens` [B, T] and the training model's logits [B, T, Z] of them: `full`; `steps`, of a prompt's last token and of
those behind it, one by one from the cache; and, where the architecture can do it, `chunks`, continued from the cache at each of
`cuts`, and `left_padded`, with `mask` [B, T] (0: padding). With `bfloat16` the model is loaded again, by `dtype="auto"`: the root
mean square of what it is off then is `bfloat16_full` and `bfloat16_steps`. Braid's own packages are barred, so a folder that needs
them fails here. Prints one line of JSON for each folder: the largest absolute difference of each.
"""

import importlib.abc
import inspect
import json
import pathlib
import sys

OURS = ("llm", "launch", "eval", "data_prep", "omegaconf")


class Barred(importlib.abc.MetaPathFinder):
    """Refuses to find Braid's packages, wherever they are installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def differences(folder: str, expected_path: str) -> dict[str, float]:
    """The largest absolute difference between the folder's logits and each kind that is expected."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    expected = load_file(expected_path)
    tokens = expected["tokens"]
    # code is run from our own exports alone, not from what is imported
    ours = json.loads((pathlib.Path(folder) / "config.json").read_text())["model_type"] == "braid"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=ours, dtype=torch.float32).eval()
    found = {}
    with torch.no_grad():
        found["full"] = model(tokens, use_cache=False).logits - expected["full"]
        found["steps"] = _steps(model, tokens, expected["steps"].shape[1]) - expected["steps"]
        if "chunks" in expected:
            found["chunks"] = _chunks(model, tokens, expected["cuts"].tolist()) - expected["chunks"]
        if "left_padded" in expected:
            mask = expected["mask"]
            takes_positions = "position_ids" in inspect.signature(model.forward).parameters
            positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if takes_positions else {}
            padded = model(tokens, attention_mask=mask, use_cache=False, **positions).logits
            found["left_padded"] = (padded - expected["left_padded"]) * mask[..., None]
        if "bfloat16" in expected:
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=ours, dtype="auto").eval()
            assert model.dtype == torch.bfloat16, f"loaded in {model.dtype} by itself"
            found["bfloat16_full"] = _mean(model(tokens, use_cache=False).logits - expected["full"])
            found["bfloat16_steps"] = _mean(_steps(model, tokens, expected["steps"].shape[1]) - expected["steps"])
    return {name: float(difference.abs().max()) for name, difference in found.items()}


def _mean(difference):
    return difference.square().mean().sqrt()


def _steps(model, tokens, count):
    """The last `count` logits, of `generate` made to write `tokens`: what the model's own cache gives, one token at a time."""
    import torch
    from transformers import LogitsProcessorList

    def forced(written, scores):
        wanted = tokens[:, written.shape[1], None]
        return torch.full_like(scores, -float("inf")).scatter(1, wanted, 0.0)

    # one more than is compared, so that the last token's logits are among them
    tokens = torch.cat([tokens, tokens[:, :1]], 1)
    prompt = tokens[:, :-count]
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        logits_processor=LogitsProcessorList([forced]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, 1)


def _chunks(model, tokens, cuts):
    import torch

    cache, parts = None, []
    for first, last in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        out = model(tokens[:, first:last], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    return torch.cat(parts, 1)


def main(paths: list[str]) -> None:
    sys.meta_path.insert(0, Barred())
    import torch

    torch.set_num_threads(1)
    for folder, expected in zip(paths[::2], paths[1::2], strict=True):
        print(json.dumps(differences(folder, expected)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
