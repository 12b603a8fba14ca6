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
family = socket.AF_INET6 if ":" in address else socket.AF_INET
client = socket.socket(family, socket.SOCK_DGRAM)
refused = client.connect_ex((address, int(port)))
inode = str(os.fstat(client.fileno()).st_ino)
with open("/proc/self/net/udp6" if ":" in address else "/proc/self/net/udp") as table:
    (remote,) = [words[2] for words in map(str.split, table) if words[9] == inode] if not refused else [None]
if remote:
    host, port = remote.split(":")
    words = [bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8)]
    remote = [socket.inet_ntop(family, b"".join(words)), int(port, 16)]
print(json.dumps([refused, None if refused else client.getpeername()[:2], remote]))
"""


# Enters the group, has somebody outside of it answer, asks without connecting, and says who answered.
ASKER = """
import json, os, socket, sys
group, address, port, there, listens = sys.argv[1:]
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind((there, int(listens)))
with open(group + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
client.settimeout(5)
try:
    client.sendto(b"?", (address, int(port)))
except OSError as error:
    print(json.dumps(error.errno))
else:
    _, asker = server.recvfrom(9)
    server.sendto(b"!", asker)
    print(json.dumps(client.recvfrom(9)[1][:2]))
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


def exchange(group: Cgroup, address: str, port: int, *, server: tuple[str, int]) -> object:
    """Who answers a datagram that *server* has got, as the application is told; or the errno of sending."""
    done = subprocess.run(
        [sys.executable, "-c", ASKER, group.path, address, str(port), server[0], str(server[1])],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


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
