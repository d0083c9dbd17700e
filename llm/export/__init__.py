"""Hugging Face format. Importing this package makes `transformers` know Braid's models without `trust_remote_code`."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llm.export.configuration import BraidConfig
from llm.export.modeling import BraidForCausalLM

AutoConfig.register(BraidConfig.model_type, BraidConfig, exist_ok=True)
AutoModel.register(BraidConfig, BraidForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(BraidConfig, BraidForCausalLM, exist_ok=True)
