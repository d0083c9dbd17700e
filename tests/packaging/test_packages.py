"""What the distribution holds is what the folders hold, and the top level of the repository stays as agreed."""

import tomllib

from tests.checkout import ROOT, files

PACKAGES = {"llm", "launch", "eval", "data_prep"}
FOLDERS = PACKAGES | {"configs", "tests", "slurm", "docs", "benchmarks", ".ci"}
FILES = {
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints-cuda.txt",
    "constraints.txt",
    "pyproject.toml",
}

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_list_is_what_the_folders_hold():
    on_disk = {".".join(file.parent.parts) for file in files() if file.suffix == ".py" and file.parts[0] in PACKAGES}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == on_disk | {"llm.configs", "launch.slurm"}


def test_every_package_has_an_init():
    folders = {file.parent for file in files() if file.suffix == ".py" and file.parts[0] in PACKAGES}
    assert not {str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()}


def test_the_top_level_is_exactly_the_agreed_one():
    top = {file.parts[0] for file in files()}
    assert top == FOLDERS | FILES


def test_configs_are_yaml_only():
    assert {file.suffix for file in files() if file.parts[0] == "configs"} == {".yaml"}


def test_constraints_pin_every_direct_dependency():
    def names(requirements):
        return {name.split("[")[0].replace("_", "-").lower() for name in map(_name, requirements)}

    pinned = names((ROOT / "constraints.txt").read_text().splitlines())
    extras = SETTINGS["project"]["optional-dependencies"]
    assert names([*SETTINGS["project"]["dependencies"], *extras["hf"], *extras["dev"]]) <= pinned


def _name(requirement: str) -> str:
    for end in "<>=!~;# ":
        requirement = requirement.split(end)[0]
    return requirement
