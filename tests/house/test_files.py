"""Files stay small and speak of the project alone; documents lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from .source import OWN_FOLDERS, PACKAGE, ROOT, text_files

LINES_LIMIT = 500
LONGER = {
    # The whole protocol is read side by side: who sends what, and what answers it.
    PACKAGE / "wire" / "messages.py": 600,
}
MACHINE_PATH = re.compile(r"(?<![\w.}~])/(?:work|root|Users|home|tmp/brief)/[\w.-]+")
REGISTRY_HOST = re.compile(r"\b(?:[\w-]+\.)*(?:py(?:pi|thonhosted)|npm(?:js)|crates)\.(?:org|io|com)\b", re.IGNORECASE)
LEFTOVER = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b|for " r"now\)|breakpoint" r"\(\)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)

PYTHON_FILES = [path for folder in OWN_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_file_is_one_concept_of_readable_size() -> None:
    long = {
        _name(path): count
        for path in PYTHON_FILES
        if (count := len(path.read_text().splitlines())) > LONGER.get(path, LINES_LIMIT)
    }
    assert not long, f"over {LINES_LIMIT} lines, split by concept: {long}"


def test_every_module_says_what_it_is() -> None:
    silent = [
        _name(path)
        for path in PYTHON_FILES
        if path.is_relative_to(PACKAGE) and (text := path.read_text().lstrip()) and not text.startswith(('"""', 'r"""'))
    ]
    assert not silent, f"no docstring at the top: {silent}"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (MACHINE_PATH, "a path of one machine means nothing on another"),
        (REGISTRY_HOST, "which registry to use is the reader's setting, not ours"),
        (LEFTOVER, "unfinished business belongs in an issue"),
    ],
    ids=["machine_path", "registry_host", "leftover"],
)
def test_text_speaks_of_the_project_alone(pattern: re.Pattern[str], why: str) -> None:
    found = []
    for path in text_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{_name(path)}:{number}: {match[0]}")
    assert not found, f"{why}: {found}"


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text())
    for match in LINK.finditer(text):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        path_text, _, anchor = target.partition("#")
        path = (document.parent / path_text).resolve() if path_text else document
        assert path.exists(), f"{_name(document)} links to {target}, which is not there"
        if anchor and path.suffix == ".md":
            headings = {_slug(line.lstrip("#")) for line in path.read_text().splitlines() if line.startswith("#")}
            assert anchor in headings, f"{_name(document)} links to {target}, but {path.name} has no such heading"


def test_every_dependency_is_argued_for() -> None:
    architecture = ROOT / "ARCHITECTURE.md"
    assert architecture.exists(), "ARCHITECTURE.md is missing: it says why the house is as it is"
    text = architecture.read_text().lower()
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in lines]
    missing = [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
    assert not missing, f"ARCHITECTURE.md has no line on why the project depends on {missing}"
