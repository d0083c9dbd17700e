"""`launch/pretrain.py` under fire: the folder BRAID_CHAOS holds the plan of hits, and gets logs of what was hit and what was read.

Started in place of the real script, it wraps functions at the places that the plan names. Production code knows nothing of it.
"""

import os
import sys
from pathlib import Path

from launch.pretrain import main
from tests.train.chaos.injector import Injector

if __name__ == "__main__":
    injector = Injector(Path(os.environ["BRAID_CHAOS"]), int(os.environ["RANK"]))
    try:
        status = main()
    finally:
        injector.close()
    sys.exit(status)
