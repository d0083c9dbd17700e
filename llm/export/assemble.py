"""One modeling file out of Braid's own sources: every module that the exported model needs, in the order of their imports.

Each module's source is put, as it stands, into a function of its own that returns what it defines: names that several modules
use (`linear`, `chunk`, `_reach`, `F`) cannot meet, nothing is renamed, and the file stays plain Python to read, step through and
search. Imports between the modules become assignments. (Several files with relative imports would need `transformers` to follow
folders, which it does not; source in strings would hide the code from its readers.)
"""

import ast
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

TOP = "llm.export.modeling"
CONFIGURATION = "llm.export.configuration"
LIBRARIES = {"torch", "transformers", *sys.stdlib_module_names}
# What stays behind, and what stands for it: the default that says "not set"; loops in C++ and kernels, which here no op has.
STAND_INS = {
    ("omegaconf", "MISSING"): '"???"',
    ("llm.ops.loops", "loop"): "lambda family, x: None",
    ("llm.ops.routes", "kernel_of"): "lambda *call, **settings: None",
}
STAYS_BEHIND = {module for module, _ in STAND_INS}

HEADER = '''\
"""A Braid language model for `transformers`, in one file: torch and transformers are all it needs.

Assembled from the sources of Braid that trained the model: each function below that ends in `return locals()` is one module.
"""

from types import SimpleNamespace

from .configuration_braid import BraidConfig


def _module(body):
    """What a module defines, by name."""
    return SimpleNamespace(**body())

'''


@dataclass(frozen=True)
class _Import:
    """`from module import name as alias`, and the module it needs: `module.name` where that is one."""

    needs: str
    name: str | None
    alias: str


def modeling_source(root: Path) -> str:
    """The text of modeling_braid.py, from the folder `root` that holds `llm/`."""
    parts = [HEADER]
    for module in _in_order(root, TOP)[:-1]:
        if module != CONFIGURATION:
            body = _indented(_rewritten(root, module), module)
            parts.append(f"\n@_module\ndef {_variable(module)}():\n{body}\n    return locals()\n\n")
    parts.append("\n" + _rewritten(root, TOP))
    return "".join(parts)


def configuration_source(root: Path) -> str:
    """The text of configuration_braid.py."""
    return _path(root, CONFIGURATION).read_text()


def _path(root: Path, module: str) -> Path:
    """The file of a module. It exists for modules alone, not for names in them."""
    base = root / Path(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _variable(module: str) -> str:
    return module.replace(".", "_")


def _imports(root: Path, node: ast.ImportFrom) -> list[_Import]:
    found = []
    for alias in node.names:
        inner = f"{node.module}.{alias.name}"
        whole = _path(root, inner).is_file()
        found.append(_Import(inner if whole else str(node.module), None if whole else alias.name, alias.asname or alias.name))
    return found


def _from_imports(tree: ast.AST) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def _ours(tree: ast.AST) -> list[ast.ImportFrom]:
    return [n for n in _from_imports(tree) if str(n.module).split(".")[0] == "llm" and n.module not in STAYS_BEHIND]


def _in_order(root: Path, module: str, done: list[str] | None = None) -> list[str]:
    """`module` and all that it imports of ours, each behind what it needs itself."""
    done = [] if done is None else done
    for node in _ours(ast.parse(_path(root, module).read_text())):
        for found in _imports(root, node):
            if found.needs not in done:
                _in_order(root, found.needs, done)
    if module not in done:
        done.append(module)
    return done


def _rewritten(root: Path, module: str) -> str:
    """A module's source with assignments for its imports of ours."""
    source = _path(root, module).read_text()
    tree = ast.parse(source)
    _refuse_other_libraries(tree, module)
    lines = source.splitlines()
    for node in sorted(_replaced(tree), key=lambda node: -node.lineno):
        indent = " " * node.col_offset
        lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in _assignments(root, node)]
    return "\n".join(lines) + "\n"


def _replaced(tree: ast.AST) -> list[ast.ImportFrom]:
    return _ours(tree) + [node for node in _from_imports(tree) if node.module in STAYS_BEHIND]


def _assignments(root: Path, node: ast.ImportFrom) -> list[str]:
    if node.module in STAYS_BEHIND:
        return [f"{alias.asname or alias.name} = {STAND_INS[str(node.module), alias.name]}" for alias in node.names]
    # The configuration is a file of its own, imported at the top.
    found = [item for item in _imports(root, node) if item.needs != CONFIGURATION]
    return [f"{item.alias} = {_variable(item.needs)}{f'.{item.name}' if item.name else ''}" for item in found]


def _refuse_other_libraries(tree: ast.Module, module: str) -> None:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node not in _replaced(tree):
            names = [str(node.module)]
        foreign = [name for name in names if name.split(".")[0] not in LIBRARIES]
        assert not foreign, f"{module} imports {foreign[0]}, which an exported model must not need"


def _indented(source: str, module: str) -> str:
    """`source` one level deeper. Docstrings may move with it; no other string over several lines may."""
    body = textwrap.indent(source, "    ")
    moved = ast.parse(f"def _():\n{body}")
    assert _texts(moved) == _texts(ast.parse(source)), f"{module} holds a string over several lines, which indenting would change"
    return body


def _texts(tree: ast.AST) -> list[str]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
