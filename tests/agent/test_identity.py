"""Who a node is stays the same, and no two agents are the same node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fallow.agent.identity import AGENTS_LIMIT, claim_home, id_of_key
from fallow.model.errors import SettingError
from fallow.model.ids import is_id


def test_the_identity_lasts_and_the_key_is_private(tmp_path: Path) -> None:
    first = claim_home(tmp_path / "home")
    node_id = first.identify()
    first.close()
    again = claim_home(tmp_path / "home")
    assert again.identify() == node_id
    assert is_id(again.identify())
    assert (again.folder / "node.key").stat().st_mode & 0o777 == 0o600
    assert id_of_key(again.private_key().public_key().public_bytes_raw()) == again.identify()
    again.close()


def test_a_lost_id_file_is_made_anew_from_the_key(tmp_path: Path) -> None:
    first = claim_home(tmp_path)
    node_id = first.identify()
    first.close()
    (tmp_path / "node.id").unlink()
    again = claim_home(tmp_path)
    assert again.identify() == node_id
    again.close()


def test_agents_that_share_a_home_are_different_nodes(tmp_path: Path) -> None:
    identities = [claim_home(tmp_path) for _ in range(3)]
    assert len({identity.identify() for identity in identities}) == 3
    assert [identity.folder for identity in identities] == [tmp_path, tmp_path / "2", tmp_path / "3"]
    identities[0].close()
    back = claim_home(tmp_path)
    assert back.identify() == identities[0].identify()
    for identity in (back, *identities[1:]):
        identity.close()


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from fallow.agent.identity import claim_home\n"
    code += "print(claim_home(Path(sys.argv[1])).identify())"
    one, two = (
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert one == two


def test_an_agent_with_a_key_does_not_load_the_cryptography_library(tmp_path: Path) -> None:
    claim = claim_home(tmp_path)
    claim.identify()
    claim.close()
    code = "import sys; from pathlib import Path; from fallow.agent.identity import claim_home\n"
    code += "claim_home(Path(sys.argv[1])).identify(); print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_damaged_key_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_text("nonsense")
    claim = claim_home(tmp_path)
    with pytest.raises(SettingError, match="Move it away"):
        claim.identify()
    claim.close()


def test_a_home_that_is_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="--home"):
        claim_home(tmp_path / "file" / "home")


def test_the_bound_on_agents_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AGENTS_LIMIT > 1
    monkeypatch.setattr("fallow.agent.identity.AGENTS_LIMIT", 1)
    one = claim_home(tmp_path)
    with pytest.raises(SettingError, match="1 agents use"):
        claim_home(tmp_path)
    one.close()
