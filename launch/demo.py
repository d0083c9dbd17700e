"""`braid-demo`: the whole main job on the text of this machine, from sources to a sample of the exported model.

Steps that are done already are not done again. BRAID_DEMO_STEPS=N trains N steps in a run of its own, to see that everything works.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent)]

import json
import os
import subprocess
import time
from dataclasses import dataclass

import torch
from rich.console import Console

from llm.errors import BraidError, ConfigError
from llm.train.config import RunConfig, load_config
from llm.train.run_folder import RunFolder

DATA = "configs/data/stdlib.yaml"
CONFIG = "configs/exp/demo.yaml"
# A model that has learnt is at least so much below the bigram model, in bits per byte.
MARGIN = 0.02
SAMPLE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils import logging
logging.disable_progress_bar()
set_seed(0)
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokens = tokenizer("def ", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=120, do_sample=True, top_p=0.9)[0], skip_special_tokens=True))
"""


@dataclass(frozen=True)
class Step:
    """A command, and the file that it makes from another: newer, and there is nothing to do."""

    title: str
    words: list[str]
    makes: Path | None = None
    of: Path | None = None

    def done(self) -> bool:
        made = self.makes is not None and self.of is not None and self.makes.is_file() and self.of.is_file()
        return made and self.makes.stat().st_mtime >= self.of.stat().st_mtime


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 when a step failed or the model did not learn; 2 after an error that the user can cause."""
    if sys.argv[1:] if argv is None else argv:
        print(__doc__)
        return 0
    console, started = Console(highlight=False, soft_wrap=True), time.perf_counter()
    try:
        words = [CONFIG, *_fewer_steps()]
        config = load_config(words)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for number, step in enumerate(steps := _steps(words, config), 1):
        console.rule(f"[bold]{number}/{len(steps)} {step.title}", align="left")
        begin = time.perf_counter()
        if step.done():
            console.print(f"done already: {step.makes}")
        elif subprocess.run(step.words, env=_environment(), check=False).returncode:
            console.print(f"[red]{step.title} failed[/]; run it alone: {' '.join(step.words)}")
            return 1
        else:
            console.print(f"[dim]{time.perf_counter() - begin:.0f} s[/]")
    return _last_screen(console, config, time.perf_counter() - started)


def _fewer_steps() -> list[str]:
    count = os.environ.get("BRAID_DEMO_STEPS")
    if count and (not count.isdecimal() or int(count) < 2):
        raise ConfigError(f"BRAID_DEMO_STEPS ({count}) is a number of steps; use 2 or more, or leave it unset for the whole demo")
    return [f"name=demo-{count}", f"train.steps={count}", "train.schedule.warmup=1"] if count else []


def _steps(words: list[str], config: RunConfig) -> list[Step]:
    python, run = sys.executable, RunFolder.of(config)
    trained = run.checkpoints / f"step-{config.train.steps}" / "files.json"
    exported = _exported(config)
    deepspeed = [
        str(Path(python).parent / "deepspeed"),
        "--quiet",
        "--num_accelerators",
        str(_ranks(config)),
        _script("launch/pretrain.py"),
        *words,
    ]
    evaluate = [python, _script("eval/run.py"), "--model", str(run.path)]
    return [
        Step("prepare the standard library's sources", [python, _script("data_prep/run.py"), "prepare", DATA]),
        Step("train", deepspeed, trained, trained),
        Step("held-out perplexity", [*evaluate, "perplexity"], run.report / "eval-perplexity.json", trained),
        Step("the bigram baseline", [*evaluate, "bigram"], run.report / "eval-bigram.json", trained),
        Step(
            "export to Hugging Face format",
            [python, _script("launch/export_hf.py"), str(run.path), str(exported), "--replace"],
            exported / "training_metadata.json",
            trained,
        ),
        Step("reload in transformers and generate", [python, "-c", SAMPLE, str(exported)]),
    ]


def _script(name: str) -> str:
    """Of the checkout or the installed package, whatever the working folder is."""
    return os.path.relpath(ROOT / name)


def _exported(config: RunConfig) -> Path:
    return Path("exports") / config.name


def _ranks(config: RunConfig) -> int:
    """As many GPUs as divide the batch, or two processes on the CPU."""
    gpus = torch.cuda.device_count()
    return max(n for n in range(1, gpus + 1) if config.train.batch % n == 0) if gpus else 2


def _environment() -> dict[str, str]:
    """The launcher and the extension builder look for their programs on PATH; two ranks share the cores."""
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # DeepSpeed warns at every start that it found no GPU, unless it is told
    device = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    return {"OMP_NUM_THREADS": threads, **device, **os.environ, "PATH": path}


def _last_screen(console: Console, config: RunConfig, seconds: float) -> int:
    run = RunFolder.of(config)
    ours, bigram = (
        json.loads((run.report / f"eval-{task}.json").read_text())["figures"]["bits_per_byte"]["value"]
        for task in ("perplexity", "bigram")
    )
    below = 1 - ours / bigram
    console.rule(f"[bold]finished in {seconds:.0f} s", align="left")
    console.print(f"bits per byte  [bold]{ours:.4f}[/] held out; a bigram model of the tokens trained on has {bigram:.4f}")
    judged = config.name == "demo"
    learnt = below >= MARGIN
    verdict = f"{below:.1%} below" if below >= 0 else f"{-below:.1%} above"
    console.print(f"               {verdict} the bigram model" + ("" if judged else f" after {config.train.steps} steps"))
    console.print(f"run folder     {run.path.resolve()}")
    console.print(f"loss curve     {(run.report / 'loss.png').resolve()}")
    console.print(f"exported model {_exported(config).resolve()}")
    if judged and not learnt:
        console.print(f"[red]The model did not learn: it must be at least {MARGIN:.0%} below the bigram model.[/]")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
