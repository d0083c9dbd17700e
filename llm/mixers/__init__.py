"""The table of mixers: `kind` -> (config, module). A new mixer is one file and one line here."""

from llm.mixers.attention import Attention, AttentionConfig
from llm.mixers.mamba import Mamba, MambaConfig
from llm.mixers.mamba2 import Mamba2, Mamba2Config
from llm.mixers.mixer import Mixer
from llm.mixers.mlstm import MLSTM, MLSTMConfig
from llm.mixers.mlstm_paper import MLSTMPaper, MLSTMPaperConfig
from llm.mixers.recurrent import GRUConfig, LSTMConfig, Recurrent
from llm.mixers.retention import Retention, RetentionConfig
from llm.mixers.slstm import SLSTM, SLSTMConfig
from llm.mixers.titans import Titans, TitansConfig

MIXERS: dict[str, tuple[type, type[Mixer]]] = {
    "attention": (AttentionConfig, Attention),
    "gru": (GRUConfig, Recurrent),
    "lstm": (LSTMConfig, Recurrent),
    "mamba": (MambaConfig, Mamba),
    "mamba2": (Mamba2Config, Mamba2),
    "mlstm": (MLSTMConfig, MLSTM),
    "mlstm_paper": (MLSTMPaperConfig, MLSTMPaper),
    "retention": (RetentionConfig, Retention),
    "slstm": (SLSTMConfig, SLSTM),
    "titans": (TitansConfig, Titans),
}
