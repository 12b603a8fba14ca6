# SPDX-License-Identifier: Apache-2.0
"""What the next version has in ``src/ciliumd/bpf/migrate.py`` in place of ``SUCCESSIONS = ()``."""

# ruff: noqa: F821
# -- begin


def _ct_forward(key: bytes, value: bytes) -> Row:
    """``ct_entry_v1`` to ``ct_entry``."""
    old = abi.CtEntryV1.unpack(value)
    if unknown := old.flags & ~sum(abi.CtFlags):
        raise ValueError(f"flags {unknown:#x} are no flags of a conntrack row")
    return key, abi.CtEntry(
        check=old.check,
        policy_version=old.policy_version,
        peer_identity=old.peer_identity,
        rule_cookie=old.rule_cookie,
        flags=old.flags,
        tcp_flags_local=old.tcp_flags_local,
        tcp_flags_remote=old.tcp_flags_remote,
        rev_nat=old.rev_nat,
        backend_id=old.backend_id,
        proxy_slot=old.proxy_slot,
        last_report=old.last_report,
        expires=old.expires,
        carried=1,
    ).pack()


def _ct_back(key: bytes, value: bytes) -> Row:
    new = abi.CtEntry.unpack(value)
    return key, abi.CtEntryV1(
        check=new.check,
        policy_version=new.policy_version,
        peer_identity=new.peer_identity,
        rule_cookie=new.rule_cookie,
        expires=new.expires,
        last_report=new.last_report,
        rev_nat=new.rev_nat,
        flags=new.flags,
        backend_id=new.backend_id,
        tcp_flags_local=new.tcp_flags_local,
        tcp_flags_remote=new.tcp_flags_remote,
        proxy_slot=new.proxy_slot,
    ).pack()


def _nat_forward(key: bytes, value: bytes) -> Row:
    """``nat_entry_v1`` to ``nat_entry``."""
    old = abi.NatEntryV1.unpack(value)
    return key, abi.NatEntry(
        check=old.check, port=old.port, flags=old.flags, created=old.created, carried=1, addr=old.addr
    ).pack()


def _nat_back(key: bytes, value: bytes) -> Row:
    new = abi.NatEntry.unpack(value)
    return key, abi.NatEntryV1(
        check=new.check, port=new.port, flags=new.flags, addr=new.addr, created=new.created
    ).pack()


def _backend_forward(key: bytes, value: bytes) -> Row:
    """``lb_backend_v1`` to ``lb_backend``."""
    old = abi.LbBackendV1.unpack(value)
    return key, abi.LbBackend(
        id=old.id, state=old.state, protocol=old.protocol, port=old.port, addr=old.addr
    ).pack()


def _backend_back(key: bytes, value: bytes) -> Row:
    new = abi.LbBackend.unpack(value)
    return key, abi.LbBackendV1(
        id=new.id, port=new.port, protocol=new.protocol, state=new.state, addr=new.addr
    ).pack()


SUCCESSIONS: tuple[Succession, ...] = (
    Succession("cilium_ct_v1", "cilium_ct_v2", _ct_forward, _ct_back, by_programs=True),
    Succession("cilium_snat_v1", "cilium_snat_v2", _nat_forward, _nat_back, by_programs=True),
    Succession("cilium_lb_backends_v1", "cilium_lb_backends_v2", _backend_forward, _backend_back),
)
