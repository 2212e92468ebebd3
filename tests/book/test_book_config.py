"""Settings that would break the book silently, and facts that stand in more than one file."""

import re
import tomllib

import yaml

import screpro
from screpro import paths

ROOT = paths.root()
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_only_pages_become_pages_and_nothing_is_executed_by_sphinx():
    assert CONFIG["only_build_toc_files"] is True
    assert CONFIG["execute"] == {"execute_notebooks": "off", "stderr_output": "remove"}
    assert "nb_custom_formats" not in str(CONFIG)
    # .venv and .pytest_cache hold markdown files
    assert ".*" in CONFIG["exclude_patterns"]


def test_repository_is_the_same_everywhere():
    url = PROJECT["urls"]["Repository"]
    assert CONFIG["repository"] == {"url": url, "path_to_book": "", "branch": "executed"}
    assert CITATION["repository-code"] == url
    for page in (ROOT / "README.md", ROOT / "book" / "how_to_run.md"):
        assert f"git clone {url}\n" in page.read_text(encoding="utf-8")


def test_version_and_licence_are_the_same_everywhere():
    assert PROJECT["version"] == screpro.__version__ == str(CITATION["version"])
    assert PROJECT["license"] == CITATION["license"] == "BSD-3-Clause"
    assert f"## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("BSD 3-Clause License")


def test_citation_file_has_what_the_format_requires():
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    assert len(CITATION["references"]) == 3
    assert all({"type", "title", "authors"} <= set(r) for r in CITATION["references"])


def test_files_that_settings_name_exist():
    config = CONFIG["sphinx"]["config"]
    for folder in config["html_static_path"]:
        for name in config["html_css_files"]:
            assert (ROOT / folder / name).is_file()
    for name in CONFIG["bibtex_bibfiles"]:
        assert (ROOT / name).is_file()


def test_every_citation_has_an_entry():
    known = set(re.findall(r"^@\w+\{([\w:]+),", (ROOT / "book" / "refs.bib").read_text(), re.MULTILINE))
    for page in [*(ROOT / "book").rglob("*.md"), *(ROOT / "notebooks").rglob("*.py")]:
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text(encoding="utf-8")):
            assert set(re.split(r"\s*,\s*", keys)) <= known, page


def test_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target
