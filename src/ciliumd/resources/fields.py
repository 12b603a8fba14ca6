# SPDX-License-Identifier: Apache-2.0
"""
Fields every kind shares: how documents are read, metadata, ports, addresses, prefixes.

Types are strict, as the API server is: a number is not a string.  Which fields a kind has is said where
the kind is.
"""

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
)
from pydantic.alias_generators import to_camel

from ciliumd.model.net import Addr, Prefix, holds
from ciliumd.resources.errors import not_enabled, not_enforced

Row = tuple[str, Any, Any]
"""One row for the tables: (table name, key, row)."""

Shared = Annotated[str, AfterValidator(sys.intern)]
"""A text that thousands of objects have, such as a node's name: in memory once."""

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_SERVICE_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_CIDR = re.compile(r"[0-9A-Fa-f:.]+/(0|[1-9][0-9]{0,2})")
_PORT_MAX = 65535


class Lenient(BaseModel):
    """A mapping of which we read some fields; the others are no concern of ours."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, alias_generator=to_camel)


class Exact(Lenient):
    """A mapping of which every field must be understood: ignoring one could open or close traffic."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)


def unless_enforced(needs: str) -> BeforeValidator:
    """Of a valid field whose meaning is not implemented: using it refuses the object, for want of *needs*."""

    def refuse(value: object) -> None:
        if value is not None:
            raise not_enforced(needs)

    return BeforeValidator(refuse)


def only_with(option: str, value: str) -> BeforeValidator:
    """Of a field that is enforced with *option* only, which is named so in the context of a validation."""

    def refuse(given: object, info: ValidationInfo) -> object:
        if given is not None and option not in (info.context or ()):
            raise not_enabled(option, value)
        return given

    return BeforeValidator(refuse)


def _whole(pattern: re.Pattern[str], limit: int, expected: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if len(value) > limit or not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {expected}")
        return value

    return check


def _timestamp(value: object) -> object:
    # YAML readers turn an unquoted timestamp into a datetime.
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return value


ObjectName = Annotated[str, AfterValidator(_whole(_DNS_SUBDOMAIN, 253, "a lower-case DNS name"))]
NamespaceName = Annotated[str, AfterValidator(_whole(_DNS_LABEL, 63, "a namespace name"))]
PortName = Annotated[str, AfterValidator(_whole(_SERVICE_NAME, 15, "a port name (IANA_SVC_NAME)"))]
Timestamp = Annotated[str, BeforeValidator(_timestamp)]
PortNumber = Annotated[int, Field(ge=1, le=_PORT_MAX)]


def label_key(key: str) -> str:
    """*key* if Kubernetes allows it as a label's key; ValueError otherwise."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _DNS_SUBDOMAIN.fullmatch(prefix)):
        raise ValueError(f"{key!r} is not a label key: {prefix!r} is not a DNS name")
    if not _LABEL_NAME.fullmatch(name):
        raise ValueError(f"{key!r} is not a label key")
    return key


def label_value(value: str) -> str:
    """*value* if Kubernetes allows it as a label's value; ValueError otherwise."""
    if value and not _LABEL_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a label value")
    return value


def is_port_name(text: str) -> bool:
    """Whether *text* is a port name and not a number."""
    return _SERVICE_NAME.fullmatch(text) is not None


def _port(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= _PORT_MAX:
            raise ValueError(f"{value} is not a port between 1 and {_PORT_MAX}")
        return value
    if isinstance(value, str) and is_port_name(value):
        return value
    raise ValueError(f"{value!r} is neither a port number nor a port name")


def parse_address(text: str) -> Addr:
    """The address written as *text*; an IPv4 address in IPv6 clothes is refused."""
    try:
        addr = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if isinstance(addr, IPv6Address) and (addr.ipv4_mapped is not None or addr.scope_id is not None):
        raise ValueError(f"{text!r} is not a plain IPv4 or IPv6 address")
    return addr


def parse_prefix(text: str) -> Prefix:
    """The prefix written as *text* (address/length); bits beyond the length are cut off."""
    if not _CIDR.fullmatch(text):
        raise ValueError(f"{text!r} is not a CIDR (address/length)")
    parse_address(text.partition("/")[0])
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a CIDR: the length does not fit the address") from None


def parse_prefix_or_address(text: str) -> Prefix:
    """The prefix written as *text*; an address alone is a prefix of one."""
    return parse_prefix(text) if "/" in text else ip_network(parse_address(text))


def _from_text(parse: Callable[[str], Any]) -> PlainValidator:
    def check(value: object) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a string")  # noqa: TRY004 - pydantic reports ValueError
        return parse(value)

    return PlainValidator(check)


PortNumberOrName = Annotated[int | str, PlainValidator(_port)]
Address = Annotated[Addr, _from_text(parse_address)]
CIDR = Annotated[Prefix, _from_text(parse_prefix)]
CIDROrAddress = Annotated[Prefix, _from_text(parse_prefix_or_address)]
LabelKey = Annotated[str, AfterValidator(label_key)]
LabelValue = Annotated[str, AfterValidator(label_value)]
LabelMap = dict[LabelKey, LabelValue]


class ObjectMeta(Lenient):
    """What we read of an object's metadata."""

    name: ObjectName
    namespace: NamespaceName | None = None
    uid: str = ""
    labels: LabelMap | None = None
    creation_timestamp: Timestamp | None = None
    deletion_timestamp: Timestamp | None = None

    @property
    def scope(self) -> str:
        """The namespace of a namespaced object; as for kubectl, ``default`` when none is written."""
        return self.namespace or "default"


def check_excepts(prefix: Prefix, excepts: list[Prefix]) -> None:
    """Every one of *excepts* must be a part of *prefix*; ValueError otherwise."""
    for excepted in excepts:
        if not holds(prefix, excepted):
            raise ValueError(f"{excepted} is not inside {prefix}")
