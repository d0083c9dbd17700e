"""The wheel holds the four packages, the configs and the job scripts, and its commands run far from the checkout."""

import re
import sys
import sysconfig
import tomllib
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.checkout import ROOT, copy_to, environment, files, run

pytestmark = pytest.mark.multirank

SOURCES = {".py", ".cpp", ".h"}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, dist = copy_to(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("dist")
    built = run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), "."], source, timeout=100)
    assert built.returncode == 0, built.stdout
    return next(dist.glob("braid_lm-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel; its dependencies are read from the running one, which may hold the checkout too."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    commands = home / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(commands / "python"), "install", "--quiet", "--no-deps", "--no-index"]
    done = run([*pip, str(wheel)], home, timeout=60)
    assert done.returncode == 0, done.stdout
    packages = next(home.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return commands


def test_top_level_names(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"llm", "launch", "eval", "data_prep"}


def test_every_module_source_and_config_is_inside_and_no_test(wheel):
    inside = {Path(name) for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {file for file in files() if file.suffix in SOURCES and file.parts[0] in {"llm", "launch", "eval", "data_prep"}}
    configs = {Path("llm") / file for file in files() if file.parts[0] == "configs"}
    scripts = {Path("launch") / file for file in files() if file.parts[0] == "slurm" and file.suffix == ".sbatch"}
    assert inside == modules | configs | scripts


def test_an_installed_wheel_finds_its_configs_and_not_the_checkout(installed, tmp_path):
    code = "from llm.config import configs_root; print(configs_root())"
    found = run([str(installed / "python"), "-c", code], tmp_path, timeout=60)
    assert found.returncode == 0, found.stdout
    assert Path(found.stdout.strip()).is_relative_to(installed.parent)
    assert (Path(found.stdout.strip()) / "exp" / "demo.yaml").is_file()


@pytest.mark.timeout(300)
def test_every_command_says_how_it_is_used_from_another_folder(installed, tmp_path):
    """All of the wheel's commands, and all scripts of the bare checkout."""
    paths = sorted({target.split(":")[0].replace(".", "/") + ".py" for target in SCRIPTS.values()})
    commands = [[str(installed / script)] for script in SCRIPTS]
    commands += [[sys.executable, str(ROOT / path)] for path in paths]

    def ask(command):
        return run([*command, "--help"], tmp_path, timeout=100, env=environment(PYTHONWARNINGS="default"))

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, commands))
    silent = {" ".join(a.args): a.stdout for a in answers if a.returncode != 0 or not re.search("usage|braid-", a.stdout, re.I)}
    assert not silent
