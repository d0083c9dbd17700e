"""Configs: YAML files with `include:`, merged left to right, then `key.path=value` overrides, checked against dataclasses.

A value may be another's, `${model.width}`, or a whole part of it: `"${per:${model.width},64}"` is a head for each 64 channels.

Each part's config is a frozen dataclass beside its code. Where a field chooses among kinds (`mixer: {kind: retention, ...}`) the
field is `Any` and the caller passes a table: path pattern -> kind -> dataclass, so that this module imports nothing above it. Where
the table knows a kind `none`, the field may be left out; where the field's default has a kind, the kind may.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.errors import ConfigError, did_you_mean

Schema = TypeVar("Schema")
Kinds = Mapping[str, Mapping[str, type]]


def _per(whole: int, size: int) -> int:
    if whole % size:
        raise ValueError(f"{whole} must be a multiple of {size}; change one of them")
    return whole // size


OmegaConf.register_resolver("per", _per, replace=True)


def configs_root() -> Path:
    """The folder of the configs that ship with Braid: `configs/` of a checkout, `llm/configs/` of an installed wheel."""
    here = Path(__file__).resolve().parent
    return next((p for p in (here / "configs", here.parent / "configs") if p.is_dir()), here / "configs")


def load(schema: type[Schema], words: Sequence[str], kinds: Kinds) -> Schema:
    """Read `FILE.yaml... key.path=value...` into a frozen `schema`.

    Raises:
        ConfigError: a file that is missing or no YAML, an unknown key or kind, a value of the wrong type.
    """
    return build(schema, read(words), kinds)


def read(words: Sequence[str]) -> dict[str, Any]:
    """`FILE.yaml... key.path=value...` as plain keys and values.

    Files are looked up from the working directory, then among the shipped configs. Later words win.

    Raises:
        ConfigError: a file that is missing or no YAML.
    """
    files = [word for word in words if not is_override(word)]
    overrides = [word for word in words if is_override(word)]
    merged: dict = {}
    for file in files:
        merged = merge(merged, _read(_find(file, Path.cwd()), including=()))
    for word in overrides:
        if word.startswith("="):
            raise ConfigError(f"override {word!r} names no key; write key.path=value")
        try:
            merged = merge(merged, _plain(OmegaConf.from_dotlist([word])))
        except Exception as error:
            raise ConfigError(f"{word!r} is not an override: {_one_line(error)}; write key.path=value") from None
    return merged


def is_override(word: str) -> bool:
    """Whether a word is `key.path=value`, and no file or folder below one that has `=` in its name."""
    key, equals, _ = word.partition("=")
    return bool(equals) and not ("/" in key and Path(word).exists())


def build(schema: type[Schema], values: Mapping, kinds: Kinds) -> Schema:
    """A frozen `schema` from plain keys and values. Raises ConfigError."""
    node, defaults = OmegaConf.create(dict(values)), OmegaConf.structured(schema)
    for pattern, table in kinds.items():
        # what a user names has no default
        default = None if "*" in pattern else OmegaConf.select(defaults, f"{pattern}.kind")
        for parent, key, path in _matches(node, pattern.split("."), ""):
            if key in parent or "none" in table:
                parent[key] = _with_kind(parent.get(key, "none"), path, table, default)
    try:
        return OmegaConf.to_object(OmegaConf.merge(defaults, node))  # type: ignore[return-value]
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigError(_misplaced_list(schema, node) or _sentence(error)) from None


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `load` reads back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _find(name: str, folder: Path) -> Path:
    for candidate in (folder / name, configs_root() / name, configs_root().parent / name):
        if candidate.is_file():
            return candidate
    if (folder / name).is_dir():
        raise ConfigError(f"config file {name} is a folder; name a file in it")
    raise ConfigError(
        f"config file {name} does not exist in {folder} nor in {configs_root()}; overrides are written key.path=value"
    )


def _plain(node: DictConfig | ListConfig) -> Any:
    return _named(OmegaConf.to_container(node, resolve=False))


def _named(value: Any) -> Any:
    """Keys as the strings that all of a config's are: YAML reads a source called 2024 as a number."""
    if isinstance(value, dict):
        return {str(key): _named(held) for key, held in value.items()}
    return [_named(held) for held in value] if isinstance(value, list) else value


def _read(path: Path, including: tuple[Path, ...]) -> dict:
    if path in including:
        raise ConfigError(f"{path} includes itself: {' -> '.join(str(p) for p in (*including, path))}; break the circle")
    try:
        node = _plain(OmegaConf.load(path))
    except Exception as error:
        raise ConfigError(f"{path} is no valid YAML: {_one_line(error)}; correct it there") from None
    if not isinstance(node, dict):
        raise ConfigError(f"{path} holds a list; a config file holds keys and values")
    included = node.pop("include", [])
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: include ({included}) must name files; write include: [FILE.yaml, ...]")
    merged: dict = {}
    for name in names:
        merged = merge(merged, _read(_find(name, path.parent), (*including, path)))
    return merge(merged, node)


def merge(below: dict, above: Mapping) -> dict:
    """`above` wins. A node whose `kind` changes starts afresh: settings of another kind do not carry over. A list's items go by
    their number: `train.phases.1.steps=10`.
    """
    merged = dict(below)
    for key, new in above.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(new, dict):
            # `mixer: retention` is short for `mixer: {kind: retention}`
            old = {"kind": old}
        if isinstance(old, dict) and isinstance(new, dict) and new.get("kind", old.get("kind")) == old.get("kind"):
            new = merge(old, new)
        elif isinstance(old, list) and isinstance(new, dict) and all(number.isdecimal() for number in new):
            items = {str(k): item for k, item in enumerate(old)}
            if new.keys() - items.keys():
                raise ConfigError(f"{key} has {len(old)} items, counted from 0, and none is {', '.join(new.keys() - items.keys())}")
            new = list(merge(items, new).values())
        merged[key] = new
    return merged


def _matches(node: Any, pattern: list[str], path: str) -> list[tuple[DictConfig, str, str]]:
    """(parent, key, path) of every place that `pattern` names; `*` stands for any key. The last key may be absent."""
    if not isinstance(node, DictConfig):
        return []
    head, *rest = pattern
    found: list[tuple[DictConfig, str, str]] = []
    for key in map(str, node) if head == "*" else [head] if head in node or not rest else []:
        here = f"{path}.{key}" if path else key
        found += _matches(node[key], rest, here) if rest else [(node, key, here)]
    return found


def _with_kind(node: Any, path: str, table: Mapping[str, type], default: str | None) -> DictConfig:
    if isinstance(node, str):
        node = OmegaConf.create({"kind": node})
    if default and isinstance(node, DictConfig) and "kind" not in node:
        node = OmegaConf.merge({"kind": default}, node)
    if not isinstance(node, DictConfig) or "kind" not in node:
        raise ConfigError(f"{path} ({node}) names no kind; write {path}: {{kind: ...}} with one of {', '.join(sorted(table))}")
    if node.kind not in table:
        raise ConfigError(f"{path}.kind ({node.kind}) is unknown; {did_you_mean(str(node.kind), table)}")
    try:
        return OmegaConf.merge(OmegaConf.structured(table[node.kind]), node)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error, path)) from None


def _sentence(error: Exception, prefix: str = "") -> str:
    """One line from OmegaConf's several, with the full path of the key in front."""
    key = ".".join(part for part in (prefix, str(getattr(error, "full_key", None) or "")) if part)
    law = str(error).splitlines()[0]
    if "missing mandatory value" in law.lower():
        return f"{key} is not set; it has no default"
    return f"{key} must be a list; write {key}=[...]" if "is not a ListConfig" in law else f"{key}: {law}"


def _misplaced_list(schema: type, node: DictConfig) -> str | None:
    """The sentence about a list where keys and values belong, which OmegaConf reports without its key; None: there is none."""
    for path, value in _lists(node, ""):
        with suppress(AttributeError):  # below a plain value
            if isinstance(OmegaConf.select(OmegaConf.structured(schema), path, throw_on_missing=False), ListConfig):
                continue
        alone = OmegaConf.create({})
        OmegaConf.update(alone, path, value, force_add=True)
        try:
            OmegaConf.merge(OmegaConf.structured(schema), alone)
        except (OmegaConfBaseException, TypeError):
            return f"{path} ({value}) is a list where keys and values belong; write {path}: {{NAME: ...}}"
    return None


def _lists(node: Any, path: str) -> list[tuple[str, ListConfig]]:
    """(path, value) of the lists below a node, in reading order."""
    if isinstance(node, ListConfig):
        return [(path, node)]
    if not isinstance(node, DictConfig) or node._is_none():
        return []
    return [found for key in map(str, node) for found in _lists(node._get_node(key), f"{path}.{key}" if path else key)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
