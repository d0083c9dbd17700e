"""Killed anywhere and started again, a preparation makes the same bytes as undisturbed, with any number of workers."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.prepare import prepare
from data_prep.recipe import load_recipe
from tests.data.preparing import content, sentence

ROOT = Path(__file__).resolve().parents[2]
# so that each source has several parts
PARTS = "from data_prep.stages import documents; documents.PART = 16000"
RECIPE = """
out: out
sources:
  prose: {read: {kind: text, root: text}, filters: {profile: prose}}
  lines: {read: {kind: jsonl, root: lines.jsonl}}
decontamination: {files: [quiz.txt]}
tokenizer: {vocabulary: 300}
validation: 0.2
shard_tokens: 9000
"""

# Each process that is forked off is killed before its write number `after` gives the file its name, with half a file there: at each
# write, or at every `stride`th. Where that leaves the work folder as it was, as in the last stage, the next one comes further.
KILLER = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import matplotlib.figure, matplotlib.backends.backend_agg
from data_prep.recipe import load_recipe
from data_prep.prepare import prepare
{PARTS}

def run(after):
    writes, replace = 0, Path.replace
    def killing(self, target):
        nonlocal writes
        writes += 1
        if writes == after:
            os.truncate(self, self.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(self, target)
    Path.replace = killing
    prepare(load_recipe(["recipe.yaml", "workers=1"]))

def work():
    return {{path for path in Path("out/.work").rglob("*") if path.suffix != ".tmp"}}

stride = int(sys.argv[1])
killed, after = 0, 1
while True:
    before, child = work(), os.fork()
    if not child:
        run(after)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    killed, after = killed + 1, stride + 1 if work() != before else after + stride
print(killed)
"""


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources with duplicates of each other, near and exact, bad prose, and text of a quiz."""
    rng = random.Random(5)
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    quiz = sentence(rng, 40)
    Path("quiz.txt").write_text(quiz)
    found = [sentence(rng, rng.randrange(40, 300)) for _ in range(40)]
    found[3], found[4] = found[2], found[5] + "more"
    found[6] += quiz
    for k, text in enumerate(found):
        Path(f"text/{k}.txt").write_text(text)
    Path("text/latin.txt").write_bytes(b"caf\xe9")
    more = found[20:30] + [sentence(rng, rng.randrange(1, 300)) for _ in range(40)] + [""]
    Path("lines.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in more) + "{\n")
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def whole(corpus: Path) -> dict[str, bytes]:
    """The dataset of an undisturbed run."""
    prepare(load_recipe(["recipe.yaml", "out=whole", "workers=1"]))
    found = content(Path("whole"))
    assert sum(name.endswith(".tar") for name in found) > 5
    return found


def start(words: list[str]) -> subprocess.Popen:
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{PARTS}\nfrom data_prep.run import main\n"
    code += "if __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n"
    Path("small_parts.py").write_text(code)
    command = [sys.executable, "small_parts.py", "prepare", "recipe.yaml", *words]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


@pytest.mark.multirank
@pytest.mark.parametrize(("stride", "least"), [(5, 6), pytest.param(1, 26, marks=pytest.mark.slow)], ids=["some", "all"])
def test_killed_at_writes_the_bytes_are_the_same(whole: dict[str, bytes], stride: int, least: int):
    command = [sys.executable, "-c", KILLER, str(stride)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    # parts and their ledgers, duplicates, tokenizer, tokens, shards and their records, reports
    assert int(result.stdout) >= least
    assert content(Path("out")) == whole


@pytest.mark.slow
@pytest.mark.multirank
def test_killed_with_its_workers_at_any_time_the_bytes_are_the_same(whole: dict[str, bytes]):
    rng = random.Random(time.time_ns())
    for workers in (2, 1, 3):
        process = start([f"workers={workers}"])
        time.sleep(rng.uniform(2, 7))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(["workers=3"])
    assert process.wait(timeout=90) == 0
    assert content(Path("out")) == whole


@pytest.mark.multirank
def test_workers_end_when_their_parent_is_killed(corpus: Path):
    process = start(["workers=2"])
    workers = f"/proc/{process.pid}/task/{process.pid}/children"
    while len(children := Path(workers).read_text().split()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    # two workers and the process that tracks their resources
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
