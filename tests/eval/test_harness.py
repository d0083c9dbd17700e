"""Our figures are lm-evaluation-harness' own: on the exported checkpoint and the same text, by its model class for transformers."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer
from lm_eval.utils import get_rolling_token_windows
from transformers import AutoTokenizer

from eval.find import Reading, find_model
from eval.harness.model import BraidLM
from eval.harness.task import HarnessConfig, harness
from eval.perplexity import PerplexityConfig, perplexity
from eval.texts import TextConfig, read_texts
from eval.wikitext import detokenized
from eval.windows import cut
from llm.config import configs_root
from llm.errors import ConfigError
from llm.train.world import World
from tests.eval.writing import export

# libraries of others warn about each other
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]

WORDS = "a bright cold day in april and the clocks were striking thirteen Ünïcode = = , . @-@ \n 's".split(" ")
CONTEXT = 16


@pytest.fixture(scope="module")
def exported(subject, tmp_path_factory) -> Path:
    return export(subject.model.decoder, subject.manifest().tokenizer_path, tmp_path_factory.mktemp("harness") / "out", CONTEXT)


@pytest.fixture(scope="module")
def ours(exported):
    return find_model(str(exported)).load(World(0, 1, torch.device("cpu")), Reading(torch.device("cpu")))


@pytest.fixture(scope="module")
def rolling(exported) -> HFLM:
    """As it is for rolling tasks: it puts the opening token in front itself, and the tokenizer would put another."""
    how = {"device": "cpu", "dtype": "float32", "batch_size": 3, "max_length": CONTEXT, "trust_remote_code": True}
    return HFLM(pretrained=str(exported), add_bos_token=False, **how)


@pytest.fixture(scope="module")
def theirs(rolling, exported) -> HFLM:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    return HFLM(pretrained=rolling.model, tokenizer=tokenizer, batch_size=3, max_length=CONTEXT)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """JSON lines: from one word to several windows."""
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("texts") / "text.jsonl"
    lines = [" ".join(rng.choice(WORDS) for _ in range(n)) for n in (1, 3, 9, 40, 80, 25)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, k) for k, args in enumerate(arguments)]


def test_rolling_log_likelihoods_are_the_harness(ours, rolling, texts):
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    asked = requests("loglikelihood_rolling", *((line,) for line in lines))
    expected = rolling.loglikelihood_rolling(asked, disable_tqdm=True)
    found = perplexity(ours, PerplexityConfig(text=str(texts), rule="harness", window=CONTEXT))
    assert found.details["text"]["tokens"] == sum(len(rolling.tok_encode(line)) for line in lines)
    total = found.figures["nats_per_token"].value * found.details["text"]["tokens"]
    assert total == pytest.approx(-sum(expected), rel=1e-6)
    for rows in (1, 2, 16):
        mine = BraidLM(subject=ours, max_length=CONTEXT, batch_size=rows).loglikelihood_rolling(asked)
        assert mine == pytest.approx(expected, rel=1e-6)


def test_log_likelihoods_are_the_harness_at_any_batch_size(ours, theirs):
    pairs = [("a bright", " cold day"), ("", " in april"), ("the clocks ", "were"), ("and " * 30, "the clocks"), ("a", " a" * 7)]
    asked = requests("loglikelihood", *pairs)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    for rows in (1, 2, 16):
        model = BraidLM(subject=ours, max_length=CONTEXT, batch_size=rows)
        found = model.loglikelihood(asked, disable_tqdm=True)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-6)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert model.cut_off == 1
    with pytest.raises(ConfigError, match=r"lm_eval.max_length \(16\) must hold the 40 tokens"):
        model.loglikelihood(requests("loglikelihood", ("a", "9" * 40)), disable_tqdm=True)


def test_generated_texts_are_the_harness(ours, theirs):
    prompts = ["a bright", "in april and the", "the", "clocks were"]
    how = {"until": ["ck"], "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", *((prompt, how) for prompt in prompts))
    expected = theirs.generate_until(asked, disable_tqdm=True)
    for rows in (1, 3):
        assert BraidLM(subject=ours, max_length=CONTEXT, batch_size=rows).generate_until(asked) == expected


def test_a_local_task_gives_the_harness_accuracy(ours, theirs, tmp_path):
    rng = random.Random(2)
    pairs = tmp_path / "pairs.jsonl"
    sentences = [[" ".join(rng.choice(WORDS[:10]) for _ in range(3)) for _ in range(2)] for _ in range(40)]
    pairs.write_text("".join(json.dumps({"sentence_good": good, "sentence_bad": bad}) + "\n" for good, bad in sentences))
    found = harness(ours, HarnessConfig(tasks="minimal_pairs", data=str(pairs), max_length=CONTEXT)).figures["minimal_pairs acc"]
    task = yaml.safe_load((configs_root() / "eval" / "lm_eval" / "minimal_pairs.yaml").read_text())
    expected = simple_evaluate(
        theirs,
        tasks=[{**task, "dataset_kwargs": {"data_files": str(pairs)}}],
        task_manager=TaskManager(include_path=str(configs_root() / "eval" / "lm_eval"), include_defaults=False),
    )
    assert (found.value, found.n) == (expected["results"]["minimal_pairs"]["acc,none"], 40)
    assert found.standard_error == pytest.approx(expected["results"]["minimal_pairs"]["acc_stderr,none"])


def test_the_rolling_windows_are_the_harness():
    for length, window in [(1, 4), (4, 4), (5, 4), (11, 4), (12, 4), (9, 1), (3, 8)]:
        text = list(range(1, length + 1))
        expected = [([*given, scored[-1]], len(scored)) for given, scored in get_rolling_token_windows(text, 0, window, 1)]
        document = [0, *text]
        found = [(document[p.first : p.stop], p.stop - p.scored) for p in cut(np.array([length + 1]), "harness", window, window)]
        assert found == expected


def test_wikitexts_words_and_bytes_are_the_originals(ours, tmp_path):
    page = (
        " = Robert <unk> = \n \n Robert is an English film , television and theatre actor . A guest @-@ star role in 2 @,@ 000 "
        '( 3 @.@ 5 % ) of them : " The Bill " ; it \'s 5 ° .\n'
    )
    assert detokenized(page) == wikitext_detokenizer({"page": page})
    path = tmp_path / "wiki.txt"
    path.write_text(page)
    found = read_texts(ours, TextConfig(text=str(path), detokenize="wikitext"))
    counted = process_results({"page": page}, (0.0,))
    assert (found.words[0], found.text_bytes[0]) == (counted["word_perplexity"][1], counted["byte_perplexity"][1])
    assert found.tokens[0][1:].tolist() == ours.model.encode(wikitext_detokenizer({"page": page}))


@pytest.mark.slow
def test_an_unknown_task_of_the_harness_is_told(ours):
    with pytest.raises(ConfigError, match=r"lm_eval.tasks \(minimal_pair\) is no task"):
        harness(ours, HarnessConfig(tasks="minimal_pair"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "a local one: local_choice, minimal_pairs, rolling_text"),
        ({"tasks": "minimal_pairs", "data": "nowhere"}, r"lm_eval.data \(nowhere\) does not exist"),
        ({"tasks": "minimal_pairs", "limit": 0}, r"lm_eval.limit \(0\)"),
    ],
)
def test_what_the_harness_is_asked_wrongly_is_told(ours, values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        harness(ours, HarnessConfig(**values))
