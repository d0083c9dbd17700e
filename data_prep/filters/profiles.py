"""Rules by kind of source, applied to one document after the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

from data_prep.filters.c4 import C4, clean_page
from data_prep.filters.code_files import CODE_RULES, CodeFiles
from data_prep.filters.fineweb import FINEWEB_RULES, FineWeb
from data_prep.filters.gopher import QUALITY_RULES, REPETITION_RULES, GopherQuality, GopherRepetition
from data_prep.filters.language import LANGUAGE_RULES, LanguageConfig, judge
from data_prep.filters.report import FilterReport
from data_prep.filters.view import Rule, View, verdicts
from llm.errors import ConfigError, did_you_mean

GOPHER = ("gopher_repetition", "gopher_quality")
PROFILES: dict[str, tuple[str, ...]] = {
    "none": (),
    "prose": GOPHER,
    "web": (*GOPHER, "c4", "fineweb"),
    "code": ("code",),
}
RULES: dict[str, tuple[Rule, ...]] = {
    "gopher_repetition": REPETITION_RULES,
    "gopher_quality": QUALITY_RULES,
    "fineweb": FINEWEB_RULES,
    "code": CODE_RULES,
}


@dataclass(frozen=True)
class FilterConfig:
    """profile: one of PROFILES. The others: thresholds of the sections that the profile uses; null turns a rule off.

    c4: as FineWeb used it, lines without terminal punctuation stay.
    """

    profile: str = "none"
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    c4: C4 = field(default_factory=lambda: C4(terminal_punctuation=False))
    fineweb: FineWeb = field(default_factory=FineWeb)
    code: CodeFiles = field(default_factory=CodeFiles)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def check(self, where: str = "filters") -> None:
        """Raises ConfigError: an unknown profile, a threshold out of bounds, or one that this profile does not use."""
        if self.profile not in PROFILES:
            raise ConfigError(f"{where}.profile ({self.profile}) is unknown; {did_you_mean(self.profile, PROFILES)}")
        default = FilterConfig()
        for name in (f.name for f in fields(self) if f.name not in ("profile", "language")):
            section = getattr(self, name)
            section.check(f"{where}.{name}")
            if name not in PROFILES[self.profile] and section != getattr(default, name):
                users = ", ".join(profile for profile, sections in PROFILES.items() if name in sections)
                raise ConfigError(f"{where}.{name} has no effect in the profile {self.profile}; remove it, or use {users}")
        self.language.check(f"{where}.language")
        if not self.language.keep and self.language != default.language:
            raise ConfigError(f"{where}.language has no effect without languages to keep; write keep: [en], or remove it")

    def unused(self) -> list[str]:
        """The sections that have no effect."""
        sections = [f.name for f in fields(self) if f.name not in ("profile", "language", *PROFILES[self.profile])]
        return sections if self.language.keep else [*sections, "language"]


class Filters:
    """The rules of one source. `apply` a document after the other; `report` tells what became of them. Needs no other state, so
    each process may have its own, their reports merged.

    Raises ConfigError.
    """

    def __init__(self, config: FilterConfig, report: FilterReport | None = None):
        config.check()
        self.config, self.report = config, FilterReport() if report is None else report
        for name in self._rules():
            self.report.rule(name)

    def apply(self, id: str, text: str) -> str | None:
        """The text, which C4's rules may have changed, or None when it is dropped by the first rule that it fails."""
        view = View(text)
        for section in self._sections():
            view, found = self._judge(section, view)
            for name, fails in found:
                if fails:
                    self.report.rule(name).drop(id, text)
                    return None
                self.report.rule(name).kept += 1
        return view.text

    def _sections(self) -> tuple[str, ...]:
        language = ("language",) if self.config.language.keep else ()
        return (*language, *PROFILES[self.config.profile])

    def _judge(self, section: str, view: View) -> tuple[View, Iterator[tuple[str, bool]]]:
        """The document after these rules, and (rule, whether it drops the document) up to the first that does."""
        config = getattr(self.config, section)
        if section == "language":
            return view, _up_to(judge(view.text, config), LANGUAGE_RULES)
        if section == "c4":
            text, reason = clean_page(view.text, config, self.report.lines)
            return view if text == view.text else View(text), _up_to(reason, config.rules())
        return view, verdicts(view, config, RULES[section])

    def _rules(self) -> Iterator[str]:
        for section in self._sections():
            config = getattr(self.config, section)
            if section == "language":
                yield from LANGUAGE_RULES
            elif section == "c4":
                yield from config.rules()
            else:
                yield from (rule.name for rule in RULES[section] if getattr(config, rule.setting) is not None)


def _up_to(reason: str | None, rules: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for name in rules:
        yield name, name == reason
        if name == reason:
            return
