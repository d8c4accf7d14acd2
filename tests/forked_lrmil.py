"""An ``lrmil`` that starts at once: a server that has imported everything heavy, and forks for each command line.

``python -m tests.forked_lrmil FOLDER`` serves, and writes the program ``FOLDER/lrmil``, which hands its arguments,
folder and streams over to it and ends as the command did. For tests of what starts dozens of commands. A command dies
with the program that was called: its shell may be killed as if it were the command itself.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

from tests.killing import HEAVY

PROGRAM = """#!{python} -ES
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect({address!r})
    socket.send_fds(s, [json.dumps([sys.argv[1:], os.getcwd()]).encode()], [0, 1, 2])
    code = int(s.recv(16) or b"-9")
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def serve(connection: socket.socket) -> None:
    """In a process of its own: a command in another one, its exit code sent back."""
    message, fds, *_ = socket.recv_fds(connection, 2**16, 3)
    args, folder = json.loads(message)
    child = os.fork()
    if child == 0:
        from lrmil_cli.app import run

        connection.close()
        os.chdir(folder)
        for fd, given in enumerate(fds):
            os.dup2(given, fd)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        os._exit(run(args))
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([connection], [], [], 0.02)[0]:  # nothing is sent: the program is gone
            os.kill(child, signal.SIGKILL)
    connection.send(str(os.waitstatus_to_exitcode(ended[1])).encode())


def main(folder: Path) -> None:
    for name in HEAVY:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address := str(folder / "socket"))
        listener.listen(100)
        program = folder / "lrmil"
        program.write_text(PROGRAM.format(python=sys.executable, address=address))
        program.chmod(0o755)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                try:
                    serve(connection)
                finally:
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
