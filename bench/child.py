"""python -m bench.child PEER ROW PARAMETERS: runs one workload in the peer's own environment, and says what came of it
in lines of JSON that begin with @@."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from bench import workloads
from bench.peers import peer_class
from bench.peers.base import Peer, one_line


def say(event: str, **values: Any) -> None:
    print(f"@@{json.dumps({'event': event, **values})}", flush=True)


def keep(peer: Peer) -> None:
    """Keep a pool running until our standard input ends."""
    peer.start()
    say("ready")
    sys.stdin.read()
    peer.stop()


def main() -> int:
    name, row, parameters = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    peer = peer_class(name)()
    if row == "keep":
        keep(peer)
        return 0
    failed = False
    try:
        workloads.WORKLOADS[row](peer, parameters, say)
    except Exception as error:
        failed = True
        import traceback

        traceback.print_exc()
        say("error", message=one_line(error))
    try:
        peer.stop()
    except Exception as error:
        print(f"stop: {one_line(error)}", file=sys.stderr)
    sys.stdout.flush()
    if failed:
        os._exit(1)  # a pool that lost its workers may never let the interpreter end
    return 0


if __name__ == "__main__":
    sys.exit(main())
