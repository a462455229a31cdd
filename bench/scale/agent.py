"""python -m bench.scale.agent ADDRESS NAME SLOTS HOME: the agent of `fallow join`, workers and all."""

from __future__ import annotations

import sys
from pathlib import Path

from fallow.agent.main import AgentOptions, run_agent
from fallow.wire.address import parse_address


def main() -> int:
    address, name, slots, home = sys.argv[1:]
    return run_agent(
        AgentOptions(parse_address(address), name, int(slots), Path(home), ready=lambda: print("ready", flush=True))
    )


if __name__ == "__main__":
    sys.exit(main())
