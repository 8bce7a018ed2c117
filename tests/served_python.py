"""A stand-in for the Python that shell scripts start: commands run in this process, without their start-up time.

The stand-in is a program that sends its arguments here and prints what comes back; everything else is the real thing.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_CLIENT = """#!{python} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps(sys.argv[1:]).encode())
    server.shutdown(socket.SHUT_WR)
    reply = json.loads(b"".join(iter(lambda: server.recv(65536), b"")))
sys.stdout.write(reply["out"])
sys.stderr.write(reply["err"])
sys.exit(reply["code"])
"""


class Served:
    """``program`` is the stand-in; ``calls`` are the arguments it was started with."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self.calls: list[list[str]] = []
        self._one = threading.Lock()

    def call(self, words: list[str]) -> dict:
        assert words[0] == "-m"
        out, err = io.StringIO(), io.StringIO()
        with self._one, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.calls.append(words[1:])
            try:
                code = importlib.import_module(words[1]).main(words[2:])
            except SystemExit as error:
                code = error.code
            except Exception as error:  # a test must see it
                print(f"Traceback: {error!r}", file=sys.stderr)
                code = 70
        return {"out": out.getvalue(), "err": err.getvalue(), "code": code}


@contextlib.contextmanager
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="mob") as folder:  # addresses of sockets are short
        program, address = Path(folder) / "python", str(Path(folder) / "s")
        program.write_text(_CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)
        commands = Served(program)

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                reply = commands.call(json.loads(self.rfile.read()))
                self.wfile.write(json.dumps(reply).encode())

        with socketserver.ThreadingUnixStreamServer(address, Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            try:
                yield commands
            finally:
                server.shutdown()


def environment(commands: Served, data: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MOB_", "CUDA_", "default_"))}
    return kept | {"MOB_PYTHON": str(commands.program), "MOB_EVAL_DATA": str(data)} | more
