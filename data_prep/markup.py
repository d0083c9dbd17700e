"""Tables and code in Markdown."""

from collections.abc import Iterable


def markdown(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    """Numbers get commas and stand on the right; None is an empty cell."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(cells) and all(row[k][:1] in "0123456789-" for row in cells) for k in range(len(head))]
    rule = ["---:" if numbers else "---" for numbers in right]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *cells])


def code(text: str) -> str:
    """On one line, whatever is in it."""
    text = " ".join(text.split())
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if fence == "``" else f"`{text}`"


def block(text: str) -> str:
    """Indented, so that nothing in it is Markdown."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "\\|")
