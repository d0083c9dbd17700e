"""Preparing: from text files to a dataset, the same bytes every time, nothing dropped in silence."""

import errno
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import prepare as prepare_module
from data_prep.clean import clean
from data_prep.filters import PROFILES
from data_prep.readers import READERS
from data_prep.recipe import load_recipe
from data_prep.run import main
from data_prep.verify import verify
from llm.config import configs_root
from llm.data import Manifest, documents, load_tokenizer
from llm.data.plan import plan_path, planned
from llm.errors import ConfigError, DataError
from tests.data.preparing import INJECTION, content, make_corpus, prepared, texts


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and text, made the working directory."""
    make_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    for line in (
        "| prose | read | 0 |  | 64 |  |",
        "| prose | undecodable | 1 |  | 63 |  |",
        "| prose | empty | 1 | 3 | 62 | ",
        "- prose, undecodable: `latin.txt`",
    ):
        assert line in card
    assert "### empty\n\n- `prose:empty.txt`" in Path("out/report/drops.md").read_text()


def test_prepared_twice_the_bytes_are_the_same(corpus: Path):
    prepared()
    prepared("out=again")
    assert content(Path("out")) == content(Path("again"))
    assert not list(Path().glob("*/.*"))


def test_a_second_run_does_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    first = prepared()
    monkeypatch.setattr(prepare_module, "_stages", None)
    assert prepared() == prepared("workers=2") == first


def test_another_recipe_or_other_files_do_not_overwrite(corpus: Path):
    first = prepared()
    with pytest.raises(DataError, match=r"out \(out\) holds a dataset of another recipe or of other files"):
        prepared("tokenizer.vocabulary=280")
    Path("text/new.txt").write_text("new")
    with pytest.raises(DataError, match="--replace"):
        prepared()
    assert Manifest.load("out").hash == first.hash
    second = prepared(replace=True)
    assert Manifest.load("out").hash == second.hash != first.hash


def test_a_damaged_dataset_is_made_anew_with_replace(corpus: Path):
    first = prepared()
    Path("out/shard-00000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.tar is missing; copy it again or prepare the dataset again with --replace"):
        prepared()
    assert main(["prepare", "recipe.yaml", "--replace"]) == 0
    assert Manifest.load("out").hash == first.hash


def test_another_recipe_or_other_files_start_the_work_afresh(corpus: Path):
    assert main(["prepare", "recipe.yaml", "shard_tokens=100", "--until", "tokens"]) == 0
    before = set(Path("out/.work").iterdir())
    assert main(["prepare", "recipe.yaml", "--until", "documents"]) == 0
    assert len(before & set(Path("out/.work").iterdir())) == 1, "only the lock stays"
    Path("text/new.txt").write_text("new")
    assert "new" in {text for split in texts(prepared()).values() for text in split}


def test_the_dataset_there_is_whole_until_the_new_one_has_its_shards(corpus: Path):
    first = prepared()
    assert main(["prepare", "recipe.yaml", "tokenizer.vocabulary=280", "--replace", "--until", "tokens"]) == 0
    verify(Manifest.load("out"))
    assert Manifest.load("out").hash == first.hash
    assert prepared("tokenizer.vocabulary=280", replace=True).hash != first.hash


def test_a_replacement_goes_on_beside_a_plan_and_files_of_others(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    first = prepared()
    plan = plan_path(Path("out"), "train", 16)
    planned(first, "train", 16)
    Path("out/README.md").write_text("of mine")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module.shards, "run", killed)
        assert main(["prepare", "recipe.yaml", "tokenizer.vocabulary=280", "--replace"]) == 130
    assert not Path("out/manifest.json").exists()
    second = prepared("tokenizer.vocabulary=280")
    assert second.hash != first.hash
    assert not plan.exists(), "it packs other documents"
    assert planned(second, "train", 16).manifest == second.hash
    assert Path("out/README.md").read_text() == "of mine"


def test_what_the_system_refuses_ends_in_a_sentence(corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    for error, said in (
        (PermissionError(errno.EACCES, "Permission denied", "out"), "error: out cannot be used (Permission denied)"),
        (OSError(errno.EIO, "Input/output error"), "error: a disk cannot be used (Input/output error)"),
    ):
        monkeypatch.setattr(prepare_module.work, "opened", Mock(side_effect=error))
        assert main(["prepare", "recipe.yaml"]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(prepare_module.work, "opened", Mock(side_effect=FileNotFoundError(errno.ENOENT, "No such file", "x")))
    with pytest.raises(FileNotFoundError):
        main(["prepare", "recipe.yaml"])


def test_the_work_of_another_recipe_is_kept_by_one_that_is_done(corpus: Path):
    prepared()
    assert main(["prepare", "recipe.yaml", "shard_tokens=100", "--replace", "--until", "documents"]) == 0
    (other,) = (path for path in Path("out/.work").iterdir() if path.is_dir())
    prepared()
    assert other.is_dir()


def test_a_folder_is_prepared_by_one_process_at_a_time(corpus: Path):
    with (
        prepare_module.work.opened(Path("out"), "key"),
        pytest.raises(DataError, match=r"out \(out\) is being prepared by another process"),
    ):
        prepared()
    prepared()


def test_a_full_disk_and_ctrl_c_are_told_and_gone_on_from(corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    whole = prepared("out=whole")
    for error, status, said in (
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: out (out) cannot be written (No space left on device)"),
        (KeyboardInterrupt(), 130, "stopped; prepare goes on from here"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("data_prep.stages.shards.write_shard", Mock(side_effect=error))
            assert main(["prepare", "recipe.yaml"]) == status
        assert said in capsys.readouterr().err
    assert prepared() == whole


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
        (["sources.prose.read.kind=txt"], r"sources\.prose\.read\.kind \(txt\) is unknown; did you mean 'text'"),
        (["sources.prose.read.root=''"], r"sources\.prose\.read\.root \(none\) must be given"),
        (["sources.prose.read.max_bytes=0"], r"sources\.prose\.read\.max_bytes \(0\) must be at least 1"),
        (["sources.x.weight=1"], r"sources\.x\.read is not set"),
        (["sources.prose.licens=MIT"], "licens"),
        (["vocabulary=300"], "vocabulary"),
        (["sources.x.read.kind=python-stdlib", "sources.x.read.files=[a]"], "files"),
        (["sources.x.read.kind=jsonl", "sources.x.read.root=a", "sources.x.read.metadata=[url]"], "metadata has no effect"),
        (["sources.prose.filters.profile=pros"], r"sources\.prose\.filters\.profile \(pros\) is unknown"),
        (["sources.prose.filters.code.max_line=7"], r"sources\.prose\.filters\.code has no effect"),
        (["dedup.exact=false"], r"dedup\.exact and dedup\.near \(both false\)"),
        (["dedup.processes=2"], "processes"),
        (["decontamination.files=[]"], r"decontamination\.files \(none\) must name"),
        (["decontamination.files=[a.pdf]"], r"decontamination\.files \(a\.pdf\) must end in"),
        (["workers=0"], r"workers \(0\) are processes"),
    ],
)
def test_bad_recipes_are_refused(corpus: Path, words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(["recipe.yaml", *words])


def test_a_name_that_ids_cannot_open_with_is_refused(corpus: Path):
    Path("names.yaml").write_text("out: out\nsources: {'a:b': {read: {kind: text, root: text}}}\n")
    with pytest.raises(ConfigError, match=r"sources\.a:b is no name for a source"):
        load_recipe(["names.yaml"])


def test_sources_without_text_are_refused(corpus: Path):
    with pytest.raises(DataError, match=r"files \(none/\*\) match nothing in text"):
        prepared("sources.code.read.files=[none/*]")
    only = ["sources.code.read.files=[empty.txt]", "sources.prose.read.files=[latin.txt]"]
    with pytest.raises(DataError, match=r"hold no text at all \(1 undecodable, 1 empty\)"):
        prepared(*only)
    with pytest.raises(DataError, match=r"evaluation file gone\.txt cannot be read"):
        prepared("decontamination.files=[gone.txt]", "out=gone")
    assert not Path("out").exists()


def test_a_source_without_training_documents_is_named(corpus: Path, capsys: pytest.CaptureFixture[str]):
    code = "sources.code.filters"
    assert main(["prepare", "recipe.yaml", f"{code}.profile=code", f"{code}.code.min_alphanumeric=1"]) == 0
    assert "warning: source code has no document to train on" in capsys.readouterr().out
    assert "**code has no document to train on**" in Path("out/CARD.md").read_text()


def test_the_shipped_recipes_are_valid():
    shipped = sorted((configs_root() / "data").glob("*.yaml"))
    assert len(shipped) > 1
    for path in shipped:
        assert load_recipe([str(path)]).out.startswith("data/")


def test_the_recipe_of_the_docs_is_valid(tmp_path: Path):
    page = configs_root().parent / "docs" / "preparing.md"
    (tmp_path / "recipe.yaml").write_text(page.read_text().split("```yaml\n")[1].split("```")[0])
    recipe = load_recipe([str(tmp_path / "recipe.yaml")])
    assert {kind for kind in READERS if f"| `{kind}` |" in page.read_text()} == set(READERS)
    assert {profile for profile in PROFILES if f"| `{profile}` |" in page.read_text()} == set(PROFILES)
    assert (recipe.workers, recipe.decontamination.fields) == (None, ["question", "answer"])


def test_the_recipe_on_the_card_is_the_recipe(corpus: Path):
    prepared()
    yaml = Path("out/CARD.md").read_text().split("```yaml\n")[1].split("```")[0]
    Path("again.yaml").write_text(f"out: out\n{yaml}")
    assert load_recipe(["again.yaml"]).hash == load_recipe(["recipe.yaml"]).hash
    assert "gopher" not in yaml


def test_a_source_is_tried_without_writing(corpus: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["read", "recipe.yaml", "prose", "100", "sources.prose.filters.profile=prose"]) == 0
    found = capsys.readouterr().out
    for line in ("--- dropped: prose:empty.txt (empty)", "--- not read: latin.txt (undecodable)", "| gopher_few_words | 0"):
        assert line in found
    assert "--- dropped: prose:0.txt (gopher_" in found
    assert main(["read", "recipe.yaml", "2"]) == 0
    assert capsys.readouterr().out.count("\n--- ") + 1 == 4
    assert not Path("out").exists()


def test_the_command_line_prepares_verifies_and_shows(corpus: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", "recipe.yaml"]) == 0
    assert "train: " in capsys.readouterr().out
    assert main(["prepare", "recipe.yaml", "out=other", "--until", "duplicates"]) == 0
    assert "| prose | exact duplicates | 0 | 0 | 62 | " in capsys.readouterr().out
    assert main(["prepare", "recipe.yaml", "out=other", "--until", "tokens"]) == 0
    assert "| train | " in capsys.readouterr().out
    assert main(["verify", "out"]) == 0
    assert "are whole" in capsys.readouterr().out
    assert main(["show", "out", "2", "--split", "validation"]) == 0
    assert capsys.readouterr().out.count("--- document") == 2
    assert main(["plan", "out", "64"]) == 0
    assert capsys.readouterr().out.startswith("out/train.bestfit-64.plan: ")
    assert main(["plan", "out", "0"]) == 2
    assert "sequence_length (0) must be at least 1" in capsys.readouterr().err
    assert main(["plan", "out", "9" * 30]) == 2
    assert "must be at least 1 and below 2^48" in capsys.readouterr().err
    shard = Path("out/shard-00000.tar")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["verify", "out"]) == 2
    assert capsys.readouterr().err.startswith("error: shard out/shard-00000.tar has")


def test_the_script_runs_from_any_folder(corpus: Path):
    script = Path(prepare_module.__file__).with_name("run.py")
    command = [sys.executable, str(script), "prepare", "recipe.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    assert Manifest.load("out").totals("train").documents > 50
