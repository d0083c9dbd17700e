"""Puts this folder's modules within reach of its tests, and keeps tiny tensors on one thread."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
