"""What a preparation found, read from its work folder: the same whether it was killed meanwhile or not."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_prep.clean import Report
from data_prep.decontaminate import FileReport
from data_prep.dedup_report import SourceCounts
from data_prep.ledger import Processed, Row, rows
from data_prep.markup import markdown
from data_prep.recipe import Recipe
from data_prep.stages import documents
from data_prep.stages.tokenizer import SPLITS
from data_prep.stages.tokens import lengths
from data_prep.stages.work import Work, load


@dataclass(frozen=True)
class Outcome:
    """Of the stages that are done. reading, processed: by source. duplicates: the report of `dedup_report`."""

    recipe: Recipe
    work: Work
    reading: dict[str, Report]
    processed: dict[str, Processed]
    duplicates: dict[str, Any] | None

    @classmethod
    def of(cls, recipe: Recipe, work: Work) -> "Outcome":
        return cls(recipe, work, documents.reading(work), documents.ledgers(recipe, work), load(work.duplicates))

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """The ledger of every source."""
        return {name: rows(self.reading[name], self.processed[name], self.counts(name)) for name in self.recipe.sources}

    def counts(self, source: str) -> SourceCounts | None:
        """The duplicates of a source; None: they were not looked for."""
        return None if self.duplicates is None else SourceCounts(**self.duplicates["sources"].get(source, {}))

    @property
    def documents(self) -> int:
        """That are left."""
        return sum(rows[-1].left for rows in self.rows.values())

    @property
    def text_bytes(self) -> int:
        """Of the documents that are left."""
        return sum(rows[-1].bytes_left for rows in self.rows.values())

    def evaluations(self) -> dict[str, FileReport]:
        """By evaluation file, what is in it and what matched it."""
        if self.recipe.decontamination is None:
            return {}
        known = documents.evaluations(self.recipe.decontamination).reports
        found = {name: FileReport(report.texts, report.too_short, report.ngrams) for name, report in known.items()}
        for processed in self.processed.values():
            for name, report in processed.evaluations.items():
                found[name].merge(report)
        return found

    def figures(self, stage: str) -> str:
        """What there is to say after a stage, for people."""
        if stage == "tokenizer":
            return f"tokenizer: {self.work.tokenizer}"
        if stage == "tokens":
            return markdown(["split", "documents", "tokens", "bytes of text"], [[name, *self._totals(name)] for name in SPLITS])
        return self.ledger()

    def ledger(self) -> str:
        """A table of what each step took."""
        head = ["source", "step", "dropped", "bytes", "documents left", "bytes left"]
        return markdown(head, [[name, *row] for name, found in self.rows.items() for row in found])

    def _totals(self, split: str) -> list[int]:
        found = [lengths(self.work, part, split)[:2] for part in range(len(self.work.sources))]
        tokens, text = (sum(int(each[k].sum()) for each in found) for k in (0, 1))
        return [sum(len(each[0]) for each in found), tokens, text]
