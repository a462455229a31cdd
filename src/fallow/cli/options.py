"""Options that many commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Home = Annotated[Path | None, typer.Option("--home", help="Folder for state; default FALLOW_HOME or ~/.fallow.")]


def set_home(home: Path | None) -> None:
    """Have this program, and what it starts, use another folder for state."""
    if home is not None:
        os.environ["FALLOW_HOME"] = str(home.expanduser().absolute())
