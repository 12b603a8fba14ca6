# SPDX-License-Identifier: Apache-2.0
"""A directory of manifests as tests write it, the source that follows it, and a store in memory."""

import asyncio
import os
import time
from pathlib import Path

from ciliumd.sources.directory import DirectorySource
from ciliumd.sources.lastgood import Documents, LastGood
from ciliumd.sources.manifests import ObjectKey
from ciliumd.tables import Problem, Tables

BAD_POLICY = "ingress: [{fromCIDR: [10.0.0.0/99]}]"
MALFORMED = "key: [unclosed\n"


def pod(name: str, app: str = "web", namespace: str = "default") -> str:
    """A Pod document."""
    return (
        "apiVersion: v1\nkind: Pod\n"
        f"metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\n"
    )


def policy(name: str, field: str = "ingress: []") -> str:
    """A CiliumNetworkPolicy document."""
    return (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: default}}\n"
        f"spec:\n  endpointSelector: {{}}\n  {field}\n"
    )


class Memory:
    """A store of last good documents that outlives the sources of a test, and can refuse to write."""

    name = "memory"

    def __init__(self) -> None:
        self.documents: dict[tuple[str, ObjectKey], str] = {}
        self.saves = 0
        self.refusal: OSError | None = None

    def load(self) -> Documents:
        """What was saved."""
        return dict(self.documents)

    def save(self, documents: Documents) -> None:
        """Keep *documents*, or refuse."""
        if self.refusal is not None:
            raise self.refusal
        self.saves += 1
        self.documents = dict(documents)


class Followed:
    """A followed directory whose files are old enough to be read at once."""

    def __init__(self, path: Path, last_good: LastGood | None = None) -> None:
        self.path = path
        self.last_good = last_good
        self.restart()

    def restart(self) -> None:
        """A new agent: nothing is left but the files and the store."""
        self.tables = Tables()
        self.source = DirectorySource(self.path, self.tables, settle=3.0, last_good=self.last_good)

    def write(self, name: str, text: str | bytes, *, age: float = 10.0) -> None:
        """Write a file that was last changed *age* seconds ago."""
        file = self.path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        moment = time.time() - age
        os.utime(file, (moment, moment))

    def scan(self) -> bool:
        """Look once; a file that vanished needs a second look."""
        return asyncio.run(self.source.scan())

    def remove(self, name: str) -> None:
        """Delete a file and look until it is believed."""
        (self.path / name).unlink()
        self.scan()
        self.scan()

    def pods(self) -> dict[str, str]:
        """Label ``app`` of every pod in force."""
        return {name: row.labels["app"] for (_, name), row in self.tables.pods.items()}

    def policies(self) -> set[str]:
        """Name of every policy in force."""
        return {name for _, _, name in self.tables.policies}

    def problems(self) -> dict[tuple[str, str, str], Problem]:
        """Every problem."""
        return dict(self.tables.problems.items())
