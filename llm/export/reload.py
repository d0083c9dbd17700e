"""Run by the exporter in a process of its own: load an exported folder as a stranger would, and measure how far its logits are off.

    python -I reload.py FOLDER EXPECTED.safetensors

EXPECTED holds `tokens` [B, T], `full` and `steps` [B, T, Z], `mask` [B, T] (0: padding on the left) and `padded` [B, T, Z]. Braid's
own packages are barred, so a folder that needs them fails here. Prints one line of JSON: the largest absolute difference of each.
"""

import importlib.abc
import json
import sys

OURS = ("llm", "launch", "eval", "data_prep", "omegaconf", "deepspeed")


class Barred(importlib.abc.MetaPathFinder):
    """Refuses to find Braid's packages, wherever they are installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(folder: str, expected_path: str) -> dict[str, float]:
    sys.meta_path.insert(0, Barred())
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    expected = load_file(expected_path)
    tokens, mask = expected["tokens"], expected["mask"]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        full = model(tokens, use_cache=False).logits
        cache, steps = None, []
        for t in range(tokens.shape[1]):
            out = model(tokens[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
        padded = model(tokens, attention_mask=mask, use_cache=False).logits
    pairs = {
        "full": (full, expected["full"]),
        "steps": (torch.cat(steps, 1), expected["steps"]),
        "left_padded": (padded * mask[..., None], expected["padded"] * mask[..., None]),
    }
    return {name: float((ours - theirs).abs().max()) for name, (ours, theirs) in pairs.items()}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
