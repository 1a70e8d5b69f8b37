"""The pages themselves: generated parts are fresh, links lead somewhere, and files that they name are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tutti.adapters.logs.postgres import LEASE_SECONDS
from tutti.adapters.postgres import CONNECT_SECONDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE_BY_USE = ("contracts/deployments",)
FILES = re.compile(r"(?<![\w/.-])(?:tests|bench|src|examples|deploy|contracts|web|docs)/[\w./-]*\w")

of_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@of_each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@of_each_page
def test_files_that_are_named_are_there(page):
    """Above all the tests that show what a page claims."""
    named = set(FILES.findall(page.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).exists() and not name.startswith(MADE_BY_USE)] == []


def test_the_page_on_replicas_tells_how_long_they_wait():
    text = (ROOT / "docs" / "replicas.md").read_text(encoding="utf-8")
    assert f"lapses after {LEASE_SECONDS:g} s by the database's clock" in text
    assert f"A start waits for an answer for at most {CONNECT_SECONDS:g} s" in text


@pytest.mark.timeout(600)
def test_generated_docs_are_fresh():
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
