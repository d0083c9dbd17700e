"""`braid`, a model class of lm-evaluation-harness: any model that `eval/run.py` reads, run folders and checkpoints among them.

The rules are the harness' own (0.4.13): every text opens with one opening token; what is longer than `max_length` is cut off on the
left; rolling windows hold `max_length` tokens with one of context, the last one moved back until it is full.
"""

from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from eval.find import Reading, find_model
from eval.harness.generation import continuations
from eval.score import score
from eval.subject import Subject
from eval.windows import Piece, cut, offsets
from llm.errors import ConfigError
from llm.generate import Sampling
from llm.train.world import World

WINDOW = 1024


@register_model("braid")
class BraidLM(TemplateLM):
    """path: a run folder, checkpoint or Hugging Face folder; or subject: one that is loaded. batch_size: rows of a batch."""

    def __init__(
        self,
        path: str | None = None,
        subject: Subject | None = None,
        max_length: int | None = None,
        batch_size: int | str = 16,
        device: str | None = None,
        dtype: str = "float32",
        mode: str = "parallel",
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if subject is None:
            world = World.from_environment()
            place = torch.device(device) if device else world.device
            subject = find_model(str(path)).load(World(0, 1, place), Reading(place, dtype, mode))  # type: ignore[arg-type]
        self.world, self.subject = subject.world, subject.alone()
        self.model = subject.model
        self.max_length = int(max_length or self.model.positions or self.model.window or WINDOW)
        self.lanes = 16 if batch_size == "auto" else int(batch_size)
        self._rank, self._world_size, self._device = self.world.rank, self.world.size, torch.device("cpu")
        # requests that did not fit into max_length
        self.cut_off = 0

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.world.gather(tensor))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        found = self.world.gather(obj)
        return found if self.rank == dst else None

    def barrier(self) -> None:
        self.world.barrier()

    @property
    def eot_token_id(self) -> int:
        return self.model.opening

    @property
    def tokenizer_name(self) -> str:
        return self.subject.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return ([] if add_special_tokens is False else [self.model.opening]) + self.model.encode(string)

    def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
        documents, pieces = [], []
        for k, (_, context, continuation) in enumerate(requests):
            documents.append(np.array(context + continuation, dtype=np.int64))
            stop = len(documents[-1])
            if len(continuation) > self.max_length:
                raise ConfigError(
                    f"lm_eval.max_length ({self.max_length}) must hold the {len(continuation)} tokens of a continuation; raise it"
                )
            first = max(0, stop - self.max_length - 1)
            self.cut_off += first > 0
            pieces.append(Piece(k, first, max(first + 1, len(context)), stop))
        found = score(self.subject, documents, [p for p in pieces if p.inputs], self.lanes, self.max_length)
        begins = offsets(np.array([len(document) for document in documents]))
        answers = []
        for piece, (strings, _, _) in zip(pieces, requests, strict=True):
            part = slice(begins[piece.document] + piece.scored - 1, begins[piece.document] + piece.stop - 1)
            answers.append((-float(found.nats[part].sum()), bool(found.greedy[part].all())))
            self.cache_hook.add_partial("loglikelihood", strings, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        documents = [np.array(self.tok_encode(request.args[0]), dtype=np.int64) for request in requests]
        lengths = np.array([len(document) for document in documents])
        pieces = cut(lengths, "harness", self.max_length, self.max_length)
        nats = score(self.subject, documents, pieces, self.lanes, self.max_length).nats
        begins = offsets(lengths)
        answers = [-float(nats[begins[k] : begins[k + 1]].sum()) for k in range(len(documents))]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers: dict[int, str] = {}
        for numbers in _alike(requests):
            wanted = normalize_gen_kwargs(requests[numbers[0]].args[1])
            until = handle_stop_sequences(wanted.get("until"), eos=None)
            tokens, room = wanted["max_gen_toks"], self.max_length - wanted["max_gen_toks"]
            if room < 1:
                raise ConfigError(
                    f"lm_eval.max_length ({self.max_length}) must hold a prompt and the {tokens} tokens to generate; raise it"
                )
            sampled = wanted["do_sample"]
            sampling = Sampling(tokens, wanted["temperature"] if sampled else 0.0, wanted.get("top_p", 1.0) if sampled else 1.0)
            prompts = [self.tok_encode(requests[k].args[0]) for k in numbers]
            self.cut_off += sum(len(prompt) > room for prompt in prompts)
            texts = continuations(self.model, [prompt[-room:] for prompt in prompts], sampling, until, self.lanes)
            answers |= dict(zip(numbers, texts, strict=True))
        for k, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, answers[k])
        return [answers[k] for k in range(len(requests))]


def _alike(requests: list[Instance]) -> list[list[int]]:
    """Numbers of the requests that are to be generated alike."""
    groups: dict[str, list[int]] = {}
    for k, request in enumerate(requests):
        groups.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(k)
    return list(groups.values())
