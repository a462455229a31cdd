"""What tasks print reaches whoever runs the script, however short the script is."""

from __future__ import annotations

import pytest

from tests.sdk.conftest import Script


@pytest.mark.slow  # starts a pool
def test_the_only_line_of_a_task_comes_before_its_script_ends(script: Script) -> None:
    done = script(
        """
        import fallow

        app = fallow.App("hello")

        @app.function()
        def hello(x):
            print("hello from", x)
            return x

        print(hello.remote(7))
        """
    )
    assert done.stdout.splitlines() == ["[hello] hello from 7", "7"], done.stdout + done.stderr
