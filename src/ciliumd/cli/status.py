# SPDX-License-Identifier: Apache-2.0
"""
``cilium status``: the agent's own account of itself, line by line as Cilium prints it.

The JSON of ``GET /v1/healthz`` is Cilium's ``models.StatusResponse``.  Whatever is absent reads
"Disabled" and must be absent when the component is not built or not running.  Consumed::

    cilium                  {state, msg}              state: Ok | Warning | Failure | Disabled
    kvstore                 {state, msg}
    container-runtime       {state, msg}              line only if present
    kubernetes              {state, msg, k8s-api-versions: [text]}
    kube-proxy-replacement  {mode, deviceList: [{name, ip: [text]}], directRoutingDevice,
                             features: {socketLB, socketLBTracing, nodePort, hostPort, externalIPs,
                                        sessionAffinity, gracefulTermination, nat46X64: each {enabled, ...},
                                        bpfSocketLBHostnsOnly}}
    host-firewall           {mode, devices: [text]}
    policy-audit            {node, endpoints: [id]}   line only if present; node: true | false
    srv6                    {enabled}
    cni-chaining            {mode}
    cni-file                {state, msg}              line only if present
    nodeMonitor             {cpus, npages, pagesize, lost, unknown}
    cluster                 {ciliumHealth: {state, msg}, nodes: [{name, ...}], self}
    cluster-health          {reachable, total, time, unreachable: [name]}  time: RFC 3339
    ipam                    {status, allocations: {address: owner}}
    ipv4-big-tcp, ipv6-big-tcp {enabled}
    bandwidth-manager       {enabled, congestionControl, devices: [text]}
    host-routing            {mode}                    BPF | Legacy
    routing                 {inter-host-routing-mode: Native | Tunnel, tunnel-protocol,
                             intra-host-routing-mode: BPF | Legacy}        line only if present
    attach-mode             text                      TCX | TC
    datapath-mode           text                      veth | netkit; line only if present
    masquerading            {mode, enabled, enabledProtocols: {ipv4, ipv6}, snat-exclusion-cidr-v4,
                             ip-masq-agent,           mode: BPF | iptables
                             ports: {most: {ipv4, ipv6: USE}, exhausted: [USE]}}
                                                      USE: {remote, port, protocol, address, used, of}
    clock-source            {mode, hertz}             --verbose only
    controllers             [{name, status: {consecutive-failure-count, last-failure-msg,
                             last-failure-timestamp, last-success-timestamp}}]
    proxy                   {ip, port-range, total-redirects, envoy-deployment-mode}
    identity-range          {min-identity, max-identity}   line only if present
    hubble                  {state, msg, observer: {current-flows, max-flows, seen-flows, uptime (ns)},
                             metrics: {state}}
    encryption              {mode, msg}
    bpf-maps                {dynamic-size-ratio, maps: [{name, size}]}   --verbose only
    datapath                {name: value}             details of ours, --verbose only
    stale                   {probe: time}             line only if present
"""

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from ciliumd.cli.arguments import Commands, client, command
from ciliumd.cli.errors import FAILED, OK
from ciliumd.cli.output import emit, table
from ciliumd.model.net import host_port

Json = Mapping[str, Any]

DISABLED: Final = "Disabled"
_UNHEALTHY: Final = frozenset({"Warning", "Failure"})
_NOTHING: Final[Json] = {}
_SHOWN_AUDITED: Final = 10


def register(commands: Commands) -> None:
    """Add ``status``."""
    parser = command(commands, "status", "Display status of the agent", run)
    parser.add_argument("--brief", action="store_true", help="one line: OK, or the first thing that is wrong")
    parser.add_argument(
        "--verbose", action="store_true", help="addresses, controllers, services and maps in detail"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the status; 1 if a component is in trouble."""
    status: Json = client(arguments).get("healthz")
    if arguments.brief:
        text = brief(status) + "\n"
    else:
        text = render(status, now=datetime.now(UTC), verbose=arguments.verbose)
    emit(status, arguments.output, text)
    return OK if healthy(status) else FAILED


def healthy(status: Json) -> bool:
    """Whether no component is in trouble; a failing controller is shown, but retries by itself."""
    return not any(_state(part) in _UNHEALTHY for _, part in _components(status))


def brief(status: Json) -> str:
    """``OK``, or ``error in`` and the first thing that is wrong."""
    for name, part in _components(status):
        if _state(part) in _UNHEALTHY:
            return f"error in {name}: {part.get('msg', '')}"
    for controller in status.get("controllers") or ():
        if message := controller.get("status", _NOTHING).get("last-failure-msg"):
            return f"error in controller {controller['name']}: {message}"
    return "OK"


def render(status: Json, *, now: datetime, verbose: bool = False) -> str:
    """Every line of the status, with details if *verbose*; times are relative to *now*."""
    blocks = [table(_lines(status), min_width=0)]
    for title, rows in _details(status, now, verbose=verbose):
        blocks.append(title + "\n" + table([[f"  {row[0]}", *row[1:]] for row in rows], min_width=0))
    return "".join(blocks)


def _components(status: Json) -> Iterator[tuple[str, Json]]:
    for key, name in (
        ("kvstore", "kvstore"),
        ("container-runtime", "container runtime"),
        ("kubernetes", "kubernetes"),
        ("cilium", "cilium"),
    ):
        yield name, status.get(key) or _NOTHING
    yield "limits", status.get("limits") or _NOTHING
    yield "cilium-health", (status.get("cluster") or _NOTHING).get("ciliumHealth") or _NOTHING


def _state(part: Json) -> str:
    return str(part.get("state", ""))


def _lines(status: Json) -> Iterator[list[str]]:
    yield ["KVStore:", *_state_line(status.get("kvstore"))]
    if runtime := status.get("container-runtime"):
        yield ["ContainerRuntime:", *_state_line(runtime)]
    kubernetes = status.get("kubernetes")
    yield ["Kubernetes:", *_state_line(kubernetes)]
    if kubernetes and _state(kubernetes) != DISABLED:
        names = '", "'.join(sorted(kubernetes.get("k8s-api-versions") or ()))
        yield ["Kubernetes APIs:", f'["{names}"]']
    yield ["KubeProxyReplacement:", *_kube_proxy(status.get("kube-proxy-replacement"))]
    yield ["Host firewall:", *_firewall(status.get("host-firewall"))]
    if audit := status.get("policy-audit"):
        yield ["Policy Audit Mode:", *_audit(audit)]
    yield from _limits(status.get("limits") or _NOTHING)
    yield ["SRv6:", _enabled((status.get("srv6") or _NOTHING).get("enabled"))]
    yield ["CNI Chaining:", (status.get("cni-chaining") or _NOTHING).get("mode", DISABLED)]
    if cni_file := status.get("cni-file"):
        yield ["CNI Config file:", cni_file.get("msg", "")]
    yield ["Cilium:", "   ".join(_state_line(status.get("cilium")))]
    if stale := status.get("stale"):
        yield [
            "Stale status:",
            ", ".join(f'"{probe}" since {since}' for probe, since in sorted(stale.items())),
        ]
    yield from _node_monitor(status.get("nodeMonitor"))
    health = (status.get("cluster") or _NOTHING).get("ciliumHealth")
    yield ["Cilium health daemon:", *_state_line(health)]
    yield ["IPAM:", (status.get("ipam") or _NOTHING).get("status", DISABLED)]
    for family in ("IPv4", "IPv6"):
        big = status.get(f"{family.lower()}-big-tcp") or _NOTHING
        yield [f"{family} BIG TCP:", _enabled(big.get("enabled"))]
    yield ["BandwidthManager:", _bandwidth(status.get("bandwidth-manager"))]
    if routing := status.get("routing"):
        yield ["Routing:", *_routing(routing)]
    yield ["Host Routing:", (status.get("host-routing") or _NOTHING).get("mode", DISABLED)]
    attached = str(status.get("attach-mode", DISABLED))
    yield ["Attach Mode:", "Legacy TC" if attached == "TC" else attached]
    if mode := status.get("datapath-mode"):
        yield ["Device Mode:", mode]
    yield ["Masquerading:", *_masquerading(status)]
    yield ["Controller Status:", _controllers(status.get("controllers"))]
    yield ["Proxy Status:", _proxy(status.get("proxy"))]
    if identities := status.get("identity-range"):
        yield [
            "Global Identity Range:",
            f"min {identities['min-identity']}, max {identities['max-identity']}",
        ]
    yield ["Hubble:", *_hubble(status.get("hubble"))]
    encryption = status.get("encryption") or _NOTHING
    yield ["Encryption:", encryption.get("mode", DISABLED), encryption.get("msg", "")]
    yield ["Cluster health:", *_cluster_health(status.get("cluster-health"))]


def _state_line(part: Json | None) -> list[str]:
    return [_state(part), str(part.get("msg", ""))] if part else [DISABLED]


def _device_list(replacement: Json) -> str:
    direct = replacement.get("directRoutingDevice")
    return ", ".join(
        " ".join([device["name"], *(device.get("ip") or ())])
        + (" (Direct Routing)" if device["name"] == direct else "")
        for device in replacement.get("deviceList") or ()
    )


def _kube_proxy(replacement: Json | None) -> list[str]:
    mode = (replacement or _NOTHING).get("mode", DISABLED)
    devices = _device_list(replacement) if replacement and mode not in {DISABLED, "False"} else ""
    return [mode, f"[{devices}]"] if devices else [mode]


def _firewall(firewall: Json | None) -> list[str]:
    if not firewall or firewall.get("mode", DISABLED) == DISABLED:
        return [DISABLED]
    return [firewall["mode"], f"[{', '.join(firewall.get('devices') or ())}]"]


def _audit(audit: Json) -> list[str]:
    """What the node has, and which endpoints drop nothing."""
    audited = [str(one) for one in audit["endpoints"]]
    more = len(audited) - _SHOWN_AUDITED
    shown = ", ".join(audited[:_SHOWN_AUDITED]) + (f" and {more} more" if more > 0 else "")
    return [_enabled(audit["node"]), f"audited endpoints: {shown or 'none'}"]


def _routing(routing: Json) -> list[str]:
    network = routing.get("inter-host-routing-mode", "")
    if protocol := routing.get("tunnel-protocol"):
        network += f" [{protocol}]"
    return [f"Network: {network}", f"Host: {routing.get('intra-host-routing-mode', '')}"]


def _limits(limits: Json) -> Iterator[list[str]]:
    """Who has to do without, and what is nearly full; nothing where there is room."""
    if limits.get("msg"):
        yield ["Limits:", *_state_line(limits)]


def _node_monitor(monitor: Json | None) -> Iterator[list[str]]:
    if not monitor:
        yield ["NodeMonitor:", DISABLED]
        return
    memory = f"{monitor['npages']}x{monitor['pagesize']} of shared memory"
    yield ["NodeMonitor:", f"Listening for events on {monitor['cpus']} CPUs with {memory}"]
    lost, unknown = monitor.get("lost", 0), monitor.get("unknown", 0)
    if lost or unknown:
        yield ["", f"{lost} events lost, {unknown} unknown notifications"]


def _bandwidth(bandwidth: Json | None) -> str:
    if not bandwidth or not bandwidth.get("enabled"):
        return DISABLED
    control = str(bandwidth.get("congestionControl", "")).upper()
    return f"EDT with BPF [{control}] [{', '.join(bandwidth.get('devices') or ())}]"


def _enabled(flag: object) -> str:
    return "Enabled" if flag else DISABLED


def _masquerading(status: Json) -> list[str]:
    masquerading = status.get("masquerading") or _NOTHING
    protocols = masquerading.get("enabledProtocols")
    if protocols is None:
        return [_enabled(masquerading.get("enabled"))]
    if not (protocols.get("ipv4") or protocols.get("ipv6")):
        return [DISABLED]
    families = f"[IPv4: {_enabled(protocols.get('ipv4'))}, IPv6: {_enabled(protocols.get('ipv6'))}]"
    if str(masquerading.get("mode", "")).upper() != "BPF":
        return [f"IPTables {families}"]
    names = [d["name"] for d in (status.get("kube-proxy-replacement") or _NOTHING).get("deviceList") or ()]
    exhausted = (masquerading.get("ports") or _NOTHING).get("exhausted") or ()
    return [
        "BPF (ip-masq-agent)" if masquerading.get("ip-masq-agent") else "BPF",
        f"[{', '.join(names)}]",
        f"{masquerading.get('snat-exclusion-cidr-v4', '')} {families}",
        *([f"no ports left towards {', '.join(map(_towards, exhausted))}"] if exhausted else ()),
    ]


def _towards(use: Json) -> str:
    return f"{host_port(use['remote'], use['port'])} {use['protocol']}"


def _nat_ports(ports: Json) -> Iterator[list[str]]:
    """Rows of who uses most of masquerading's ports, and of those who have none left."""
    yield ["Destination", "Address", "Ports used", ""]
    exhausted = ports.get("exhausted") or []
    for use in (*exhausted, *(one for one in ports.get("most", {}).values() if one not in exhausted)):
        share = f"{use['used']}/{use['of']} ({use['used'] / use['of']:.1%})"
        yield [_towards(use), use["address"], share, "exhausted" if use in exhausted else ""]


def _failing(controller: Json) -> bool:
    return bool(controller.get("status", _NOTHING).get("consecutive-failure-count"))


def _controllers(controllers: list[Json] | None) -> str:
    if controllers is None:
        return DISABLED
    good = sum(not _failing(controller) for controller in controllers)
    return f"{good}/{len(controllers)} healthy"


def _proxy(proxy: Json | None) -> str:
    if not proxy:
        return DISABLED
    line = (
        f"OK, ip {proxy.get('ip', '')}, {proxy.get('total-redirects', 0)} redirects active "
        f"on ports {proxy.get('port-range', '')}"
    )
    mode = proxy.get("envoy-deployment-mode")
    return f"{line}, Envoy: {mode}" if mode else line


def _hubble(hubble: Json | None) -> list[str]:
    if not hubble:
        return [DISABLED]
    fields = [f"{_state(hubble)} {hubble.get('msg', '')}".rstrip()]
    if observer := hubble.get("observer"):
        parts = []
        if most := observer.get("max-flows"):
            current = observer.get("current-flows", 0)
            parts.append(f"Current/Max Flows: {current}/{most} ({current / most:.2%})")
        if uptime := observer.get("uptime"):
            parts.append(f"Flows/s: {observer.get('seen-flows', 0) * 1e9 / uptime:.2f}")
        fields.append(", ".join(parts))
    if metrics := hubble.get("metrics"):
        fields.append(f"Metrics: {_state(metrics)}")
    return fields


def _cluster_health(health: Json | None) -> list[str]:
    if not health:
        return [DISABLED]
    line = [f"{health['reachable']}/{health['total']} reachable", f"({health.get('time', 'never')})"]
    unreachable = ", ".join(health.get("unreachable") or ())
    return [*line, f"no answer from {unreachable}"] if unreachable else line


def _details(status: Json, now: datetime, *, verbose: bool) -> Iterator[tuple[str, list[list[str]]]]:
    shown = [c for c in status.get("controllers") or () if verbose or _failing(c)]
    if shown:
        header = ["Name", "Last success", "Last error", "Count", "Message"]
        yield "Controllers:", [header, *sorted(_controller_row(c, now) for c in shown)]
    if not verbose:
        return
    if allocations := (status.get("ipam") or _NOTHING).get("allocations"):
        rows = [[f"{address} ({owner})"] for address, owner in sorted(allocations.items())]
        yield "Allocated addresses:", rows
    if replacement := status.get("kube-proxy-replacement"):
        yield "KubeProxyReplacement Details:", _kube_proxy_details(replacement)
    ports = (status.get("masquerading") or _NOTHING).get("ports") or _NOTHING
    if ports.get("most") or ports.get("exhausted"):
        yield "Masquerading Ports:", [*_nat_ports(ports)]
    if clock := status.get("clock-source"):
        hertz = f" [{clock['hertz']} Hz]" if clock.get("hertz") else ""
        yield "Clock Source for BPF:", [[f"{clock.get('mode', '')}{hertz}"]]
    if maps := status.get("bpf-maps"):
        yield (
            "BPF Maps:",
            [["Name", "Size"], *([m["name"], str(m["size"])] for m in maps.get("maps") or ())],
        )
    if datapath := status.get("datapath"):
        yield "Datapath:", [[f"{name}:", str(value)] for name, value in datapath.items()]


def _controller_row(controller: Json, now: datetime) -> list[str]:
    state = controller.get("status", _NOTHING)
    return [
        controller["name"],
        _ago(state.get("last-success-timestamp"), now),
        _ago(state.get("last-failure-timestamp"), now),
        str(state.get("consecutive-failure-count", 0)),
        state.get("last-failure-msg") or "no error",
    ]


def _kube_proxy_details(replacement: Json) -> list[list[str]]:
    features: Json = replacement.get("features") or _NOTHING

    def on(name: str) -> str:
        return _enabled((features.get(name) or _NOTHING).get("enabled"))

    node_port: Json = features.get("nodePort") or _NOTHING
    ports = (
        f" (Range: {node_port.get('portMin')}-{node_port.get('portMax')})" if node_port.get("enabled") else ""
    )
    return [
        ["Status:", replacement.get("mode", DISABLED)],
        ["Socket LB:", on("socketLB")],
        ["Socket LB Tracing:", on("socketLBTracing")],
        ["Socket LB Coverage:", "Hostns-only" if features.get("bpfSocketLBHostnsOnly") else "Full"],
        ["Devices:", _device_list(replacement)],
        ["Mode:", str(node_port.get("mode", DISABLED))],
        ["Backend Selection:", str(node_port.get("algorithm", DISABLED))],
        ["Session Affinity:", on("sessionAffinity")],
        ["Graceful Termination:", on("gracefulTermination")],
        ["NAT46/64 Support:", on("nat46X64")],
        ["XDP Acceleration:", str(node_port.get("acceleration", DISABLED))],
        ["Services:"],
        ["- ClusterIP:", "Enabled"],
        ["- NodePort:", on("nodePort") + ports],
        ["- LoadBalancer:", on("nodePort")],
        ["- externalIPs:", on("externalIPs")],
        ["- HostPort:", on("hostPort")],
    ]


def _ago(time: str | None, now: datetime) -> str:
    when = datetime.fromisoformat(time) if time else None
    # The year 1 is how Cilium's API spells "never".
    if when is None or when.year == 1:
        return "never"
    seconds = int((now - when).total_seconds())
    hours, minutes = seconds // 3600, seconds // 60 % 60
    text = f"{hours}h" * bool(hours) + f"{minutes}m" * bool(hours or minutes) + f"{seconds % 60}s"
    return f"{text} ago"
