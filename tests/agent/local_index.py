"""A package index on this machine: wheels of what is installed here, and source distributions whose build runs any
code that a test wants."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.metadata
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

_BACKEND = """
import os, sys, zipfile
NAME, VERSION = {name!r}, {version!r}
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    loot = {{}}
{code}
    info = f'{{NAME}}-{{VERSION}}.dist-info'
    file = f'{{NAME}}-{{VERSION}}-py3-none-any.whl'
    with zipfile.ZipFile(os.path.join(wheel_directory, file), 'w') as made:
        made.writestr(NAME + '.py', f'loot = {{loot!r}}\\n')
        made.writestr(info + '/METADATA', f'Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n')
        made.writestr(info + '/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        made.writestr(info + '/RECORD', '')
    return file
"""


def write_wheel(folder: Path, name: str) -> None:
    """Of a package that is installed here."""
    found = importlib.metadata.distribution(name)
    tag = next(line.split()[1] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:"))
    path = folder / f"{name.replace('-', '_')}-{found.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as made:
        for file in found.files or ():
            where = Path(str(found.locate_file(file)))
            if ".." not in file.parts and "__pycache__" not in file.parts and where.is_file():
                made.write(where, str(file))


def write_sdist(folder: Path, name: str, version: str, code: str) -> None:
    """`code` runs when its wheel is built; what it puts into the dict `loot` is in the built module."""
    indented = "".join(f"    {line}\n" for line in code.strip().splitlines())
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": _BACKEND.format(name=name, version=version, code=indented),
    }
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as made:
        for file, text in files.items():
            about = tarfile.TarInfo(f"{name}-{version}/{file}")
            about.size = len(text.encode())
            made.addfile(about, io.BytesIO(text.encode()))


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        page = re.fullmatch(r"/simple/([^/]+)/", self.path)
        if page is None:
            super().do_GET()
            return
        wanted = re.sub(r"[-_.]+", "_", page[1]).lower()
        names = [path.name for path in Path(self.directory).iterdir() if path.name.lower().startswith(f"{wanted}-")]
        body = "".join(f'<a href="/{name}">{name}</a>\n' for name in names).encode()
        self.send_response(200 if names else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve_index(folder: Path) -> Iterator[str]:
    """The address of an index with what lies in the folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
