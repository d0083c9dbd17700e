"""What an exported folder says of its model's training."""

import json
from pathlib import Path
from typing import Any

METADATA = "training_metadata.json"


def metadata(folder: Path) -> dict[str, Any]:
    """What an export of ours says of its training; of other folders, nothing."""
    try:
        return json.loads((folder / METADATA).read_text())
    except (OSError, ValueError):
        return {}
