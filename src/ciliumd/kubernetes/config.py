# SPDX-License-Identifier: Apache-2.0
"""
Where the API server is and how to prove who we are: the pod's service account, or a kubeconfig.

A service account's token is a file that the kubelet replaces before it expires; whoever is refused reads
it again.
"""

import ssl
from pathlib import Path

import msgspec
import yaml
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError

_UNUSABLE = (
    *(ConfigError, OSError, yaml.YAMLError, msgspec.ValidationError),
    *(KeyError, TypeError, AttributeError),  # another document than a kubeconfig
)

__all__ = ["ConfigInvalid", "SingleConfig", "authorization", "load", "ssl_context"]


class ConfigInvalid(Exception):
    """There is no usable way to the API server; the text says what to do."""


def load(kubeconfig: Path | None = None, *, server: str = "") -> SingleConfig:
    """
    How to reach the API server: *kubeconfig*, else the service account of the pod we are in.

    *server* (``https://host:port``) is used instead of the address found there: before services work, an
    agent cannot reach the API server through its service.  Raises ConfigInvalid.
    """
    try:
        if kubeconfig is not None:
            config = KubeConfig.from_file(kubeconfig).get()
        else:
            config = KubeConfig.from_service_account().get()
    except _UNUSABLE as error:
        where = f"kubeconfig {kubeconfig}" if kubeconfig else f"service account in {SERVICE_ACCOUNT}"
        todo = "" if kubeconfig else "; outside of a pod name a kubeconfig by --k8s-kubeconfig-path"
        raise ConfigInvalid(f"{where} cannot be used: {error}{todo}") from error
    if config is None:
        raise ConfigInvalid(f"kubeconfig {kubeconfig} has no current context")
    if server:
        config.cluster.server = server
    config.cluster.server = config.cluster.server.rstrip("/")
    if config.user is not None and (config.user.exec or config.user.auth_provider):
        raise ConfigInvalid(
            f"kubeconfig {kubeconfig} logs in by a plugin; a token, a token file or a certificate is needed"
        )
    return config


def ssl_context(config: SingleConfig) -> ssl.SSLContext:
    """
    What is trusted, and our client certificate if there is one.  Raises ConfigInvalid.

    As every other client of Kubernetes we take a cluster's CA as it is: from 3.13 on Python would refuse one
    that does not say what its key is for.
    """
    if config.user is None:
        raise ConfigInvalid(f"context {config.context_name} has no user")
    try:
        context = verify_cluster(config.cluster, config.user, config.abs_file, trust_env=False)
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(f"certificates of {config.cluster.server} cannot be read: {error}") from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def authorization(config: SingleConfig) -> str:
    """The ``Authorization`` header as of now; empty for who shows a certificate.  Raises ConfigInvalid."""
    user = config.user
    if user is None:
        return ""
    if user.token_file is not None:
        try:
            return f"Bearer {Path(user.token_file).read_text().strip()}"
        except OSError as error:
            raise ConfigInvalid(f"token {user.token_file} cannot be read: {error}") from error
    return f"Bearer {user.token}" if user.token else ""
