# SPDX-License-Identifier: Apache-2.0
"""
A request as the executable passes it: CNI_* variables and the network configuration.

Decoding judges what can be judged without the node: versions, names, and what each command needs.
"""

from enum import StrEnum
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ciliumd.cni.errors import CniError, Code

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification that are spoken, oldest first; ``executable/main.c`` has them too."""


class Command(StrEnum):
    """VERSION is answered by the executable."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"


SINCE = {Command.CHECK: "0.4.0", Command.STATUS: "1.1.0", Command.GC: "1.1.0"}
"""The version a command came with; a configuration of an older one does not allow it."""


class Attachment(NamedTuple):
    """What a runtime calls a pod's device; of one network, ours."""

    container_id: str
    ifname: str


class PodName(NamedTuple):
    """A Kubernetes pod."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ValidAttachment(BaseModel):
    """One of ``cni.dev/valid-attachments``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    container_id: str = Field(alias="containerID")
    ifname: str


class NetConf(BaseModel):
    """The network configuration; what is for the executable or for others is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    cni_version: str = Field(default="0.1.0", alias="cniVersion")
    name: str = ""
    previous: dict[str, Any] | None = Field(default=None, alias="prevResult")
    valid_attachments: tuple[ValidAttachment, ...] | None = Field(
        default=None, alias="cni.dev/valid-attachments"
    )


class Request(BaseModel):
    """One request, sound in itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Command
    container_id: str
    netns: str
    ifname: str
    args: str
    path: str
    config: NetConf

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The request in a frame's bytes.  Raises CniError."""
        try:
            request = cls.model_validate_json(data)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            in_config = all(one["loc"][:1] == ("config",) for one in error.errors())
            code = Code.INVALID_CONFIG if in_config else Code.DECODING_FAILURE
            raise CniError(code, f"cannot use the request: {'; '.join(lines)}") from error
        _check(request)
        return request

    @property
    def attachment(self) -> Attachment:
        """Which device it is about."""
        return Attachment(self.container_id, self.ifname)

    @property
    def pod(self) -> PodName:
        """Which pod it is about.  Raises CniError when the runtime does not say."""
        pairs = dict(pair.partition("=")[::2] for pair in self.args.split(";"))
        namespace, name = pairs.get("K8S_POD_NAMESPACE", ""), pairs.get("K8S_POD_NAME", "")
        if not namespace or not name:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                "CNI_ARGS has no K8S_POD_NAMESPACE and K8S_POD_NAME: only pods get a device",
            )
        return PodName(namespace, name)

    @property
    def valid_attachments(self) -> frozenset[Attachment]:
        """What a GC must keep.  Raises CniError when the configuration does not say."""
        valid = self.config.valid_attachments
        if valid is None:
            raise CniError(Code.INVALID_CONFIG, "GC without cni.dev/valid-attachments would remove every pod")
        return frozenset(Attachment(one.container_id, one.ifname) for one in valid)

    @property
    def previous(self) -> dict[str, Any]:
        """The result of the ADD before.  Raises CniError when there is none."""
        if self.config.previous is None:
            raise CniError(Code.INVALID_CONFIG, f"{self.command} needs prevResult, the result of the ADD")
        return self.config.previous


def _check(request: Request) -> None:
    """What the fields together must be.  Raises CniError."""
    version = request.config.cni_version
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion {version} is not spoken",
            details=f"supported versions: {', '.join(VERSIONS)}",
        )
    since = SINCE.get(request.command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"{request.command} came with cniVersion {since}, the configuration has {version}",
        )
    if request.command is Command.ADD and request.config.previous is not None:
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            "prevResult: ciliumd makes the pod's device and must be the first of its chain",
        )
