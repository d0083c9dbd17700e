"""A mixer's only window on other tokens: `Seq`, with a method per operation, and the specs of what each operation keeps."""

from llm.sequence.seq import Seq
from llm.sequence.states import (
    POSITION,
    attention_state,
    context_state,
    conv_state,
    elementwise_state,
    linear_state,
    memory_state,
    mlstm_state,
    named,
    recurrent_state,
    scan_state,
)

__all__ = [
    "POSITION",
    "Seq",
    "attention_state",
    "context_state",
    "conv_state",
    "elementwise_state",
    "linear_state",
    "memory_state",
    "mlstm_state",
    "named",
    "recurrent_state",
    "scan_state",
]
