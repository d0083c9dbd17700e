"""Importing this makes `transformers` know Braid's models: its Auto classes then load exports without `trust_remote_code`.

The code that runs is then this package's, not the folder's: what `save_pretrained` writes needs the package too.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llm.export.configuration import BraidConfig
from llm.export.modeling import BraidForCausalLM

AutoConfig.register(BraidConfig.model_type, BraidConfig, exist_ok=True)
AutoModel.register(BraidConfig, BraidForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(BraidConfig, BraidForCausalLM, exist_ok=True)
