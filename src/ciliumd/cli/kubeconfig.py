# SPDX-License-Identifier: Apache-2.0
"""The cluster a command line means: ``--kubeconfig``, then ``KUBECONFIG``, then the file in the home."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ciliumd.cli.errors import UNREACHABLE, USAGE, CommandError

if TYPE_CHECKING:
    from lightkube import Client

VARIABLE: Final = "KUBECONFIG"
TIMEOUT_SECONDS: Final = 10.0


def kubeconfig_path() -> Path:
    """The kubeconfig this user has, whether or not it exists; of several, the first that does."""
    listed = [Path(one) for one in os.environ.get(VARIABLE, "").split(os.pathsep) if one]
    for path in listed:
        if path.is_file():
            return path
    return listed[0] if listed else Path.home() / ".kube" / "config"


def connect(path: Path, *, context: str | None, namespace: str) -> "Client":
    """
    The API server of *context* (None: the current one) in the kubeconfig at *path*.

    Raises CommandError when the file or the context cannot be used; nothing is asked yet.
    """
    import httpx2
    from lightkube import Client, KubeConfig
    from lightkube.core.exceptions import ConfigError

    try:
        config = KubeConfig.from_file(path).get(context)
    except (ConfigError, OSError, ValueError, TypeError) as error:
        raise CommandError(
            f"kubeconfig {path} cannot be used: {error}",
            hint="kubectl config get-contexts",
            code=USAGE,
        ) from error
    if config is None:
        raise CommandError(
            f"kubeconfig {path} has no current context",
            hint="name one with --context, or run: kubectl config use-context NAME",
            code=USAGE,
        )
    return Client(config, namespace=namespace, timeout=httpx2.Timeout(TIMEOUT_SECONDS))


def unreachable(error: Exception) -> CommandError:
    """What to say when the API server does not answer as it should."""
    return CommandError(
        f"cannot reach the API server: {str(error) or type(error).__name__}",
        hint="kubectl version",
        code=UNREACHABLE,
    )
