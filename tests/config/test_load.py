"""Configs: files, includes, overrides, kinds, and what is said about mistakes."""

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import MISSING

from llm.config import build, configs_root, load, read, to_yaml
from llm.errors import ConfigError


@dataclass(frozen=True)
class Square:
    kind: str = "square"
    side: int = MISSING


@dataclass(frozen=True)
class Circle:
    kind: str = "circle"
    radius: float = 1.0


@dataclass(frozen=True)
class Nothing:
    kind: str = "none"


@dataclass(frozen=True)
class Item:
    shape: Any = MISSING
    edge: Any = MISSING


@dataclass(frozen=True)
class Root:
    name: str = MISSING
    rate: float = 0.5
    count: int | None = None
    mode: Literal["fast", "exact"] = "fast"
    sizes: list[int] = field(default_factory=list)
    items: dict[str, Item] = field(default_factory=dict)


KINDS = {"items.*.shape": {"square": Square, "circle": Circle}, "items.*.edge": {"none": Nothing, "circle": Circle}}


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_later_words_win_and_includes_lie_below(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", base="rate: 1e-3\nname: base\nsizes: [1, 2]\n")
    write(tmp_path, one="include: [parts/base.yaml]\nname: one\n", two="count: 7\n")
    monkeypatch.chdir(tmp_path)
    config = load(Root, ["one.yaml", "two.yaml", "rate=2e-3", "sizes=[3]", "mode=exact"], KINDS)
    assert config == Root(name="one", rate=2e-3, count=7, mode="exact", sizes=[3])
    with pytest.raises(FrozenInstanceError):
        config.name = "other"


def test_kinds_choose_their_dataclass(tmp_path):
    write(tmp_path, a="name: a\nitems:\n  x: {shape: {kind: square, side: 3}}\n  y: {shape: circle, edge: circle}\n")
    config = load(Root, [str(tmp_path / "a.yaml"), "items.y.shape.radius=2"], KINDS)
    assert config.items["x"] == Item(Square(side=3), Nothing())
    assert config.items["y"] == Item(Circle(radius=2.0), Circle())


def test_a_key_may_be_a_number(tmp_path):
    write(tmp_path, a="name: a\nitems: {2024: {shape: {kind: square, side: 3}}}\n")
    config = load(Root, [str(tmp_path / "a.yaml"), "items.2024.shape.side=4", "items.7={shape: circle}"], KINDS)
    assert config.items == {"2024": Item(Square(side=4), Nothing()), "7": Item(Circle(), Nothing())}


def test_items_of_a_list_go_by_number(tmp_path):
    write(tmp_path, a="name: a\nsizes: [1, 2, 3]\n")
    assert load(Root, [str(tmp_path / "a.yaml"), "sizes.1=7", "sizes[2]=9"], KINDS).sizes == [1, 7, 9]
    with pytest.raises(ConfigError, match=r"'sizes.3=4' is not an override: sizes has 3 items, counted from 0, and none is 3"):
        load(Root, [str(tmp_path / "a.yaml"), "sizes.3=4"], KINDS)


def test_another_kind_starts_afresh(tmp_path):
    write(tmp_path, a="name: a\nitems: {x: {shape: {kind: square, side: 3}}}\n", b="items: {x: {shape: {kind: circle}}}\n")
    config = load(Root, [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")], KINDS)
    assert config.items["x"].shape == Circle()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rat=1"], "rat.*Did you mean: 'rate'"),
        (["items.x.shap.kind=square"], "items.x.shap.*Did you mean: 'shape'"),
        (["items.x.shape.kind=sqare"], r"items.x.shape.kind \(sqare\) is unknown; did you mean 'square'"),
        (["items.x.shape.side=3"], "items.x.shape .* names no kind"),
        (["items.x.shape.kind=square", "items.x.shape.sides=3"], "items.x.shape.sides.*Did you mean: 'side'"),
        (["items.x.shape.kind=square"], "items.x.shape.side is not set"),
        (["count=many"], "count: Value 'many'.*Integer"),
        (["count=1.5"], "count: Value '1.5'"),
        (["mode=slow"], "mode: Invalid value 'slow'"),
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        (["name"], "overrides are written key.path=value"),
    ],
)
def test_mistakes_get_a_sentence(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load(Root, ["name=a", *words], KINDS)


def test_missing_setting_is_named():
    with pytest.raises(ConfigError, match="name is not set"):
        load(Root, [], KINDS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("include: a.yaml\n", "includes itself"),
        ("- 1\n", "holds a list"),
        ("a: [1\n", "no valid YAML"),
        ("include: b.yaml\n", "b.yaml does not exist"),
    ],
)
def test_broken_files_get_a_sentence(tmp_path, text, sentence):
    write(tmp_path, a=text)
    with pytest.raises(ConfigError, match=sentence):
        load(Root, [str(tmp_path / "a.yaml")], KINDS)


items = st.builds(
    Item,
    st.one_of(st.builds(Square, side=st.integers(-9, 9)), st.builds(Circle, radius=st.floats(-1e9, 1e9))),
    st.one_of(st.builds(Nothing), st.builds(Circle, radius=st.floats(allow_nan=False, allow_infinity=False))),
)


@given(
    st.builds(
        Root,
        name=st.text("abc-_01 :#'\"", min_size=1),
        rate=st.floats(allow_nan=False),
        count=st.none() | st.integers(),
        mode=st.sampled_from(["fast", "exact"]),
        sizes=st.lists(st.integers()),
        items=st.dictionaries(st.text("abcdef", min_size=1), items, max_size=3),
    )
)
def test_resolved_config_reads_back_equal(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(to_yaml(config))
    assert load(Root, [str(path)], KINDS) == config


def test_every_shipped_experiment_is_well_formed():
    from llm.train.config import load_config

    files = sorted((configs_root() / "exp").glob("*.yaml"))
    assert files
    for file in files:
        # these go with a model of the user's
        model = ["model/hybrid-10m.yaml", "model.vocab_size=64", "data.manifest=here"] if file.name.startswith("distill") else []
        config = load_config([*model, str(file)])
        config.model.check()
        config.train.check()


@pytest.mark.parametrize("width", [64, 192])
def test_heads_of_the_ladder_grow_with_its_width(width: int):
    from llm.train.config import load_config

    layers = load_config(["exp/ladder.yaml", f"model.width={width}"]).model.layers
    assert (layers["m"].mixer.heads, layers["a"].mixer.heads) == (2 * width // 16, width // 16)
    with pytest.raises(ConfigError, match=r"layers\.m\.mixer\.heads: .*100 must be a multiple of 8"):
        load_config(["exp/ladder.yaml", "model.width=100"])


def test_a_file_below_a_folder_with_an_equals_sign_is_a_file(tmp_path):
    folder = tmp_path / "a=b"
    folder.mkdir()
    (folder / "x.yaml").write_text("name: here\n")
    assert read([str(folder / "x.yaml"), "sources.c4/en=2"]) == {"name": "here", "sources": {"c4/en": 2}}


def test_build_from_plain_values():
    assert build(Root, {"name": "a", "sizes": [1]}, KINDS) == Root(name="a", sizes=[1])
