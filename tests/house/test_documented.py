"""Every command that the documents name is one that the programs take, option by option. None of them is run."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from fallow.cli.main import app, split_command

from .test_files import DOCUMENTS

FENCED = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`(?P<text>[^`]+)`(?!`)")
BENCH = re.compile(r"^python -m bench(?=[ .]|$)")
ASSIGNED = re.compile(r"^[A-Z_]+=\S* ")
ENDS = {"|", ">", ">>", "&", "&&", ";", "2>"}
"""What ends a command in a line of a shell."""
PROSE = "…"


class Named(NamedTuple):
    where: str
    words: list[str]


def _commands() -> Iterator[tuple[str, str]]:
    """Where it stands, and its text on one line."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for fence in FENCED.finditer(text):
            if fence["kind"] in ("sh", "bash", "console"):
                first = text.count("\n", 0, fence.start("text")) + 1
                lines = fence["text"].replace("\\\n", "  ").split("\n")
                yield from ((f"{path.name}:{first + at}", line.removeprefix("$ ")) for at, line in enumerate(lines))
        bare = FENCED.sub(lambda fence: "\n" * fence[0].count("\n"), text)
        for span in INLINE.finditer(bare):
            yield f"{path.name}:{bare.count(chr(10), 0, span.start()) + 1}", " ".join(span["text"].split())


def _named(first: re.Pattern[str]) -> list[Named]:
    found = []
    for where, text in _commands():
        while ASSIGNED.match(text):
            text = text.partition(" ")[2]
        text = text.removeprefix("sudo ")
        if first.match(text) and "..." not in text and PROSE not in text:
            words = shlex.split(text, comments=True)
            stop = next((at for at, word in enumerate(words) if word in ENDS), len(words))
            found.append(Named(where, words[:stop]))
    return found


OF_FALLOW = _named(re.compile(r"^fallow [a-z-]"))
OF_BENCH = _named(BENCH)


def test_there_are_commands() -> None:
    assert len(OF_FALLOW) > 50
    assert len(OF_BENCH) > 10


@pytest.mark.parametrize("named", OF_FALLOW, ids=lambda named: named.where)
def test_fallow_takes_what_the_documents_say(named: Named) -> None:
    """With --help it takes all options apart and runs nothing; what follows the file of `fallow run` is the user's."""
    words, _ = split_command(named.words[1:])
    at = 1 if words[0] == "run" else len(words)
    done = CliRunner().invoke(app, [*words[:at], "--help", *words[at:]])
    assert done.exit_code == 0, f"{' '.join(named.words)}: {done.output}"


@pytest.mark.parametrize("named", OF_BENCH, ids=lambda named: named.where)
def test_the_benchmarks_take_what_the_documents_say(named: Named, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.__main__ import PROGRAMS

    module, words = named.words[2], named.words[3:]
    if module == "bench" and words and words[0] in PROGRAMS:
        module, words = f"bench.{words[0]}", words[1:]
    elif module == "bench":
        module = "bench.__main__"
    try:
        importlib.import_module(module).arguments().parse_args(words)
    except SystemExit as ended:
        if ended.code:
            pytest.fail(f"{' '.join(named.words)}: {capsys.readouterr().err}")
