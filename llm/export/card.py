"""The model card of an exported folder."""

from collections.abc import Iterator
from typing import Any

from llm.cost import model_cost
from llm.export.layout import layers_of
from llm.model import Decoder

HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
{licence}tags: [{tags}]
---
# {name}

A causal language model of {parameters:,} parameters whose {depth} layers are {layers}, trained with Braid.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
inputs = tokenizer("Once upon", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```

- {code}
- Weights are {dtype}.
- Every text opens with the document token, which the tokenizer puts there. Pad on the left.
- Needs `{needs}`. Checked at export: {checked}. How it was trained: `training_metadata.json`.
"""
REMOTE_CODE = (
    "`modeling_braid.py` holds all of the model's code and needs torch and transformers only. `trust_remote_code=True` runs that "
    "file and `configuration_braid.py`, nothing else: read them first."
)
NATIVE_CODE = (
    "The architecture is `{format}` of transformers: no code is in this folder, and what serves that architecture serves this."
)
WEIGHTS = {"float32": "float32", "bfloat16": "bfloat16, but for decays, norms and gates' biases, which are float32"}
PARTS = {
    "full": "whole sequence",
    "steps": "token by token from the cache",
    "chunks": "in chunks from the cache",
    "left_padded": "padded on the left",
}


def model_card(name: str, model: Decoder, metadata: dict[str, Any]) -> str:
    """README.md, with the YAML header that model hubs read, from what `training_metadata.json` holds."""
    config, remote = model.config, metadata["format"] == "remote"
    kinds = [layer.mixer.kind for layer in layers_of(config)]
    licence = metadata.get("licence")
    head = HEAD.format(
        name=name,
        parameters=model_cost(config, 1).parameters,
        depth=config.depth,
        layers=" and ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)),
        licence=f"license: {licence}\n" if licence else "",
        tags=", ".join(["braid", *([] if remote else [metadata["format"]])]),
        trust=", trust_remote_code=True" if remote else "",
        code=REMOTE_CODE if remote else NATIVE_CODE.format(**metadata),
        dtype=WEIGHTS[metadata["dtype"]],
        needs=metadata["needs"],
        checked=_checked(metadata["parity"]),
    )
    return head + "".join(_sections(metadata))


def _checked(parity: dict[str, Any]) -> str:
    if "weights" in parity:
        return f"weights are {parity['weights']}"
    largest = parity["largest_difference"]
    parts = ", ".join(PARTS[part] for part in largest)
    low = parity.get("bfloat16_error", {})
    more = f"; in bfloat16, by {max(low.values()):.1e}, at most twice what the training model's own do in it" if low else ""
    most = f"{max(largest.values()):.1e} in float32 ({parts}){more}"
    return f"the reloaded model's logits differ from the training model's by at most {most}"


def _sections(metadata: dict[str, Any]) -> Iterator[str]:
    """Training, data and evaluation, as far as they are known."""
    if "step" in metadata:
        yield f"\n## Training\n\nStep {metadata['step']:,}, {metadata.get('tokens_seen', 0):,} tokens seen.\n"
    if metadata.get("command"):
        yield f"\nThis trains it again, with the config from `training_metadata.json`:\n\n```bash\n{metadata['command']}\n```\n"
    if metadata.get("dataset"):
        data = metadata["dataset"]
        rows = [[source, s["licence"], f"{s['weight']:g}"] for source, s in data["sources"].items()]
        yield f"\n## Data\n\n{data['tokens']:,} tokens in {data['documents']:,} documents (manifest `{data['manifest']}`).\n\n"
        yield _table(["source", "licence", "weight"], rows)
    if metadata.get("evaluation"):
        reports = metadata["evaluation"].items()
        rows = [[report, figure, f"{value:.6g}"] for report, found in reports for figure, value in found.items()]
        yield "\n## Evaluation\n\n" + _table(["evaluation", "figure", "value"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])
