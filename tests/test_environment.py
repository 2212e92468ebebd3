"""pyproject.toml, constraints.txt and environment.yml describe one environment."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from screpro import paths

ROOT = paths.root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [line for line in LINES if line and not line.startswith("#")]
EXTRAS = ("baselines", "book", "dev", "text")


def pinned() -> dict[str, Version]:
    return {canonicalize_name(name): Version(version) for name, version in (pin.split("==") for pin in PINS)}


def declared() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [line for each in project["optional-dependencies"].values() for line in each]
    return [Requirement(line) for line in project["dependencies"] + extras + PROJECT["build-system"]["requires"]]


def test_pins_are_exact_sorted_unique_and_free_of_addresses():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in PINS)
    names = [canonicalize_name(pin.split("==")[0]) for pin in PINS]
    assert names == sorted(set(names))
    assert pinned()["torch"] == Version("2.13.0")


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_every_dependency_has_a_pin_that_satisfies_it(requirement):
    version = pinned()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def test_conda_installs_the_same_environment():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert pip == ["-c constraints.txt", f"-e .[{','.join(EXTRAS)}]"]
    # everything else comes from the pins; a second place for a version would drift
    assert [line for line in conda if "=" in line] == ["python=3.11"]
    (python,) = re.findall(r"python=([\d.]+)", " ".join(conda))
    assert Requirement(f"python{PROJECT['project']['requires-python']}").specifier.contains(python)


def test_make_installs_the_same_environment():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'-c constraints.txt -e ".[{",".join(EXTRAS)}]"' in text


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_help_names_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split():
        assert re.search(rf"^  {target}\s", shown, re.MULTILINE), target
