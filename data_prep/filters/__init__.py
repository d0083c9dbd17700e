"""Which documents are worth training on: published rules, grouped into profiles for kinds of source, and language.

| profile | rules, in this order | for |
|---|---|---|
| `prose` | Gopher's repetition and quality (`gopher.py`) | books, articles, documentation: layout stays as it is |
| `web` | Gopher's, C4's (`c4.py`), FineWeb's (`fineweb.py`) | pages whose paragraphs are one line each; FineWeb's recipe |
| `code` | line lengths, share of letters (`code_files.py`) | source code, which the rules for prose drop |
| `none` | none | text chosen by hand |

C4's rules rewrite a page line by line, without indentation, and FineWeb's take repeated and short lines for menus: both harm text
that is wrapped at a column or has markup. The language rule comes first, in any profile, once `language.keep` names a language.
"""

from data_prep.filters.profiles import PROFILES, FilterConfig, Filters
from data_prep.filters.report import FilterReport, RuleReport, Sample

__all__ = ["PROFILES", "FilterConfig", "FilterReport", "Filters", "RuleReport", "Sample"]
