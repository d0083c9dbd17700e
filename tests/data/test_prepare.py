"""Preparing: from text files to a dataset, the same bytes every time, nothing dropped in silence."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import prepare as prepare_module
from data_prep.clean import Report, clean, read_document
from data_prep.recipe import Recipe, load_recipe
from data_prep.run import main
from data_prep.sources import SOURCES
from data_prep.verify import verify
from llm.config import configs_root, load
from llm.data import Manifest, documents, load_tokenizer
from llm.data.write import DatasetWriter
from llm.errors import ConfigError, DataError

RECIPE = """
out: out
sources:
  prose: {kind: files, files: ["text/**/*.txt"], licence: CC0-1.0, weight: 2}
  code: {kind: files, files: ["text/*.py"], licence: MIT}
tokenizer: {vocabulary: 300}
validation: 0.2
shard_tokens: 2000
"""
INJECTION = "text before <|endoftext|> and after <|endoftext|>"


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and text of every awkward sort, made the working directory."""
    folder = tmp_path / "corpus"
    (folder / "text" / "deep").mkdir(parents=True)
    for k in range(60):
        (folder / "text" / f"{k}.txt").write_text(f"The document number {k} says: {'word ' * k}\n")
        (folder / "text" / f"{k}.py").write_text(f"def f{k}(x):\n    return x + {k}\n")
    (folder / "text" / "deep" / "injected.txt").write_text(INJECTION)
    (folder / "text" / "lines.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree e\xcc\x81")
    (folder / "text" / "empty.txt").write_text(" \n\t")
    (folder / "text" / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    return folder


def prepared(*words: str) -> Manifest:
    return prepare_module.prepare(load_recipe(["recipe.yaml", *words]))


def texts(manifest: Manifest) -> dict[str, list[str]]:
    """By split, the text of every document, decoded."""
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    return {
        split: [tokenizer.decode(d.tokens[1:].tolist(), skip_special_tokens=False) for d in documents(manifest, split)]
        for split in ("train", "validation")
    }


def test_the_dataset_holds_the_cleaned_text(corpus: Path):
    manifest = prepared()
    verify(Manifest.load("out"))
    found = texts(manifest)
    everything = found["train"] + found["validation"]
    assert len(everything) == 122
    assert "one\ntwo\nthree \u00e9" in everything
    assert {split: sum(len(text.encode()) for text in split_texts) for split, split_texts in found.items()} == {
        split: manifest.totals(split).text_bytes for split in found
    }
    assert {name: (source.weight, source.licence) for name, source in manifest.sources.items()} == {
        "prose": (2.0, "CC0-1.0"),
        "code": (1.0, "MIT"),
    }


def test_special_tokens_in_text_stay_text(corpus: Path):
    manifest = prepared()
    assert INJECTION in [text for split in texts(manifest).values() for text in split]
    for split in ("train", "validation"):
        for document in documents(manifest, split):
            assert (document.tokens == manifest.tokenizer.document_token).nonzero()[0].tolist() == [0]
    # the control: without the switch the same text does produce the special id
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    assert manifest.tokenizer.document_token not in tokenizer.encode(INJECTION).ids
    tokenizer.encode_special_tokens = False
    assert manifest.tokenizer.document_token in tokenizer.encode(INJECTION).ids


@given(text=st.text())
def test_every_text_comes_back_from_its_ids(tokenizer_json: bytes, text: str):
    from llm.data.tokenizer import parse_tokenizer

    tokenizer = parse_tokenizer(tokenizer_json)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@given(text=st.text())
def test_cleaning_twice_changes_nothing(text: str):
    assert clean(clean(text)) == clean(text)
    assert "\r" not in clean(text)


def test_drops_are_counted_and_named(corpus: Path):
    prepared()
    card = Path("out/CARD.md").read_text()
    assert "| prose | 64 | 0 | 1 | 1 | 62 |" in card
    assert "- prose, undecodable: `text/latin.txt`" in card
    assert "- prose, empty: `text/empty.txt`" in card
    report = Report()
    assert read_document("gone", Path("gone"), True, report) is None
    assert report.counts == {"read": 1, "unreadable": 1}


def test_prepared_twice_the_bytes_are_the_same(corpus: Path):
    prepared()
    prepared("out=again")
    for path in Path("out").iterdir():
        assert path.read_bytes() == (Path("again") / path.name).read_bytes(), path.name
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in Path("again").iterdir()}


def test_a_second_run_does_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    first = prepared()
    monkeypatch.setattr(prepare_module, "_prepare", None)
    assert prepared() == first


def test_another_recipe_or_other_files_do_not_overwrite(corpus: Path):
    first = prepared()
    with pytest.raises(DataError, match=r"out \(out\) holds a dataset of another recipe or of other files"):
        prepared("tokenizer.vocabulary=280")
    Path("text/new.txt").write_text("new")
    with pytest.raises(DataError, match="--replace"):
        prepared()
    assert Manifest.load("out").hash == first.hash
    second = prepare_module.prepare(load_recipe(["recipe.yaml"]), replace=True)
    assert Manifest.load("out").hash == second.hash != first.hash


def test_a_damaged_dataset_is_made_anew_with_replace(corpus: Path):
    first = prepared()
    Path("out/shard-00000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.tar is missing; copy it again or prepare the dataset again with --replace"):
        prepared()
    assert main(["prepare", "recipe.yaml", "--replace"]) == 0
    assert Manifest.load("out").hash == first.hash


def test_an_interrupted_run_leaves_no_dataset_and_is_made_good(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    whole = prepared("out=whole")

    def killed(writer: DatasetWriter) -> Manifest:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "close", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared("shard_tokens=100")
    assert list(Path("out").glob("shard-*.tar"))
    with pytest.raises(DataError, match="does not exist"):
        Manifest.load("out")
    again = prepared()
    assert again.hash == whole.hash
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in Path("whole").iterdir()}


def test_a_document_keeps_its_side_when_others_come(corpus: Path):
    before = texts(prepared())
    for k in range(20):
        Path(f"text/new{k}.txt").write_text(f"new text {k}")
    after = texts(prepared("out=more"))
    assert set(before["validation"]) <= set(after["validation"])
    assert set(before["train"]) <= set(after["train"])


def test_the_share_held_out_is_the_one_asked_for(corpus: Path):
    half = prepared("validation=0.5")
    # 122 documents, each a coin: four standard deviations
    assert abs(half.totals("validation").documents - 61) < 22
    with pytest.raises(DataError, match=r"split 'validation' of .* is empty \(there is: train\)"):
        prepared("validation=0", "out=none").split("validation")


def test_a_given_tokenizer_is_taken_as_it_is(corpus: Path, tokenizer_json: bytes):
    Path("given.json").write_bytes(tokenizer_json)
    manifest = prepared("tokenizer.path=given.json")
    assert manifest.tokenizer_path.read_bytes() == tokenizer_json
    Path("bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"is no tokenizer\.json"):
        prepared("out=bad", "tokenizer.path=bad.json")
    Path("without.json").write_bytes(tokenizer_json.replace(b"<|endoftext|>", b"<|other|>"))
    with pytest.raises(DataError, match=r"lacks the token <\|endoftext\|>"):
        prepared("out=bad", "tokenizer.path=without.json")
    with pytest.raises(DataError, match=r"tokenizer\.path \(none\.json\) does not exist"):
        prepared("out=bad", "tokenizer.path=none.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validation=1.5"], r"validation \(1\.5\) is the share"),
        (["shard_tokens=0"], r"shard_tokens \(0\) must be positive"),
        (["tokenizer.vocabulary=256"], r"tokenizer\.vocabulary \(256\) must hold"),
        (["sources.prose.weight=-1"], r"sources\.prose\.weight \(-1\.0\) must not be negative"),
        (["sources.prose.kind=file"], r"sources\.prose\.kind \(file\) is unknown; did you mean 'files'"),
        (["sources.prose.licens=MIT"], "licens"),
        (["vocabulary=300"], "vocabulary"),
        (["sources.x.kind=python-stdlib", "sources.x.files=[a]"], "files"),
    ],
)
def test_bad_recipes_are_refused(corpus: Path, words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(["recipe.yaml", *words])


def test_sources_without_text_are_refused(corpus: Path):
    with pytest.raises(DataError, match=r"files \(none/\*\) match nothing"):
        prepared("sources.code.files=[none/*]")
    with pytest.raises(DataError, match="hold no text at all"):
        prepared("sources.code.files=[text/empty.txt]", "sources.prose.files=[text/latin.txt]")
    assert not Path("out/manifest.json").exists()


def test_the_standard_library_is_found_without_tests_and_packages():
    names = [name for name, _ in SOURCES["python-stdlib"]().documents()]
    assert {"dataclasses.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "/test/" in f"/{name}"]
    assert names == sorted(names, key=lambda name: Path(name))


def test_the_shipped_recipes_are_valid():
    shipped = sorted((configs_root() / "data").glob("*.yaml"))
    assert shipped
    for path in shipped:
        assert load(Recipe, [str(path)], {"sources.*": SOURCES}).out.startswith("data/")


def test_the_command_line_prepares_verifies_and_shows(corpus: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", "recipe.yaml"]) == 0
    assert "train: " in capsys.readouterr().out
    assert main(["verify", "out"]) == 0
    assert "are whole" in capsys.readouterr().out
    assert main(["show", "out", "2", "--split", "validation"]) == 0
    assert capsys.readouterr().out.count("--- document") == 2
    shard = Path("out/shard-00000.tar")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["verify", "out"]) == 2
    assert capsys.readouterr().err.startswith("error: shard out/shard-00000.tar has")


def test_the_script_runs_from_any_folder(corpus: Path):
    script = Path(prepare_module.__file__).with_name("run.py")
    command = [sys.executable, str(script), "prepare", "recipe.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert Manifest.load("out").totals("train").documents > 50
