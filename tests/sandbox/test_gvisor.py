"""gVisor is refused in words: it is never replaced by less."""

from __future__ import annotations

import pytest

from fallow.model.errors import SandboxUnavailable
from fallow.model.lending import SandboxSettings
from fallow.sandbox.choose import choose


@pytest.mark.parametrize("own_pool", [True, False])
def test_gvisor_is_refused_with_what_to_choose(own_pool: bool) -> None:
    with pytest.raises(SandboxUnavailable, match="gVisor cannot carry workers") as caught:
        choose(SandboxSettings(backend="gvisor"), own_pool)
    assert "bubblewrap" in caught.value.remedy
