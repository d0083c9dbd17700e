"""The model card of an exported folder."""

from typing import Any

from llm.cost import model_cost
from llm.model import Decoder

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [braid]
---
# {name}

A causal language model of {parameters:,} parameters whose {depth} layers are {layers}, trained with Braid.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer("Once upon", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```

- `modeling_braid.py` holds all of the model's code and needs torch and transformers only.
- Every text opens with the document token, which the tokenizer puts there. Pad on the left.
- Checked at export: the reloaded model's logits differ from the training model's by at most {parity:.1e} in float32 (whole
  sequence, token by token from the cache, padded on the left). How it was trained: `training_metadata.json`.
"""


def model_card(name: str, model: Decoder, metadata: dict[str, Any]) -> str:
    """README.md, with the YAML header that model hubs read."""
    config = model.config
    kinds = [config.layers[layer].mixer.kind for layer in config.layer_names()]
    layers = " and ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return CARD.format(
        name=name,
        parameters=model_cost(config, 1).parameters,
        depth=config.depth,
        layers=layers,
        parity=max(metadata["parity"]["largest_difference"].values()),
    )
