"""Ask a server of tests/support/pool.py to run a command: SOCKET RANKS COMMAND...; needs no imports of ours."""

import json
import os
import signal
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    request = {
        "ranks": int(sys.argv[2]),
        "command": sys.argv[3:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    code = int(server.recv(16) or 1)
if code < 0:  # as the ranks ended
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
