# SPDX-License-Identifier: Apache-2.0
"""Processes that connect a socket, and say to whom, or that bind one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.cgroup import Cgroup

# Enters the group, connects a datagram socket, and says to whom: by its own account, and the kernel's.
CLIENT = """
import json, os, socket, sys
group, address, port = sys.argv[1:]
with open(group + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused = client.connect_ex((address, int(port)))
inode = str(os.fstat(client.fileno()).st_ino)
with open("/proc/self/net/udp") as table:
    (remote,) = [words[2] for words in map(str.split, table) if words[9] == inode] if not refused else [None]
if remote:
    host, port = remote.split(":")
    remote = [socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(port, 16)]
print(json.dumps([refused, None if refused else client.getpeername(), remote]))
"""


# Enters the group, binds an address by each protocol, and says how that ended.
SERVER = """
import json, os, socket, sys
group, family, address, port = sys.argv[1:]
with open(group + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
ended = []
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with socket.socket(getattr(socket, family), kind) as server:
        try:
            server.bind((address, int(port)))
        except OSError as error:
            ended.append(error.errno)
        else:
            ended.append(0)
print(json.dumps(ended))
"""


# In a network namespace of its own, with the loopback device that every one has.
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def bind(
    group: Cgroup, address: str, port: int, *, family: str = "AF_INET", alone: bool = False
) -> list[int]:
    """Errno of binding by TCP and by UDP; *alone*: in a namespace of its own."""
    done = subprocess.run(
        [*(ALONE if alone else ()), sys.executable, "-c", SERVER, group.path, family, address, str(port)],
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return answer


def connect(group: Cgroup, address: str, port: int, *, alone: bool = False) -> list[object]:
    """Errno, the peer the application sees, the peer the kernel has; *alone*: in a namespace of its own."""
    done = subprocess.run(
        [*(ALONE if alone else ()), sys.executable, "-c", CLIENT, group.path, address, str(port)],
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return answer
