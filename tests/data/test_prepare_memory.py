"""Ten times the text does not take more memory."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.preparing import WORDS

ROOT = Path(__file__).resolve().parents[2]
# parts of 0.5 MB, so that the smaller corpus has as many as are ever in memory
CODE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from data_prep.stages import documents
documents.PART = 500_000
from data_prep.run import main
if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
"""
# what 40 MB may take more than 4 MB do, where a copy of the texts would be 36
MOST_MB = 20


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_times_the_text_takes_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int):
    monkeypatch.chdir(tmp_path)
    Path("prepare.py").write_text(CODE)
    rng = random.Random(1)
    peaks = []
    for size, name in ((4_000_000, "small"), (40_000_000, "large")):
        with Path(f"{name}.jsonl").open("w") as file:
            while file.tell() < size:
                text = "the of " + " ".join(rng.choice(WORDS[4:]) + rng.choice(WORDS[:4]) for _ in range(rng.randrange(10, 600)))
                file.write(json.dumps({"text": text}) + "\n")
        words = [f"out={name}", f"sources.a.read={{kind: jsonl, root: {name}.jsonl}}", "sources.a.filters.profile=prose"]
        words += ["tokenizer.sample_bytes=500000", "shard_tokens=200000", f"workers={workers}"]
        subprocess.run([sys.executable, "prepare.py", *words], check=True, timeout=500)
        peaks.append(json.loads(Path(f"{name}/report/run.json").read_text())["peak_mb"])
    print(peaks)
    assert all(peaks[1][who] <= peaks[0][who] + MOST_MB for who in peaks[0])
