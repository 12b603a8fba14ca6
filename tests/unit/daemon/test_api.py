# SPDX-License-Identifier: Apache-2.0
"""The REST interface over a real unix socket: every route, every refusal, and streams that end."""

import asyncio
import io
import json
import os
import stat

import aiohttp
import pytest
from structlog.testing import capture_logs

from ciliumd.daemon.api import Api, RequestRefused
from ciliumd.flows.ring import FlowRing
from unit.flows.samples import OFFSET_NS, TRACE, FakeRecords, lookups, record

SECONDS = 5.0
WEB = {"id": 7, "status": {"realized": {"options": {"PolicyAuditMode": "Disabled"}}}}
BODY = {"netns": "/run/netns/web", "pod": "shop/web", "ifname": "eth0"}


class FakeAgent:
    """Answers with what it is told to; remembers what it was asked."""

    def __init__(self, records):
        self.ring = FlowRing(
            records, lookups(), losses=lambda: 0, clock_offset=lambda: OFFSET_NS, interval=0.001
        )
        self.asked = []
        self.refusal = None
        self.adding = None

    async def health(self):
        """Status, or what was programmed."""
        if self.refusal is not None:
            raise self.refusal
        return {"cilium": {"state": "Ok"}}

    def endpoints(self):
        """Two."""
        return [WEB, {"id": 8, "status": {}}]

    async def add_endpoint(self, request):
        """The request as it was understood."""
        self.asked.append(request)
        if self.refusal is not None:
            raise self.refusal
        if self.adding is not None:
            await self.adding()
        return {"id": 9}

    async def delete_endpoint(self, number):
        """Remember."""
        self.asked.append(number)

    async def configure_endpoint(self, number, options):
        """Remember."""
        self.asked.append((number, options.audit))

    def configure(self, options):
        """Remember."""
        self.asked.append(options)

    def endpoint_number(self, key):
        """Endpoint 7 is shop/web."""
        return {"7": 7, "pod:shop/web": 7, "8": 8}.get(key)

    def identities(self):
        """One."""
        return [{"id": 1, "labels": ["reserved:host"]}]

    async def services(self):
        """One."""
        return [{"spec": {"id": 3}, "status": {}}]

    def policy(self):
        """None."""
        return {"policy": [], "revision": 4, "problems": []}

    def selectors(self):
        """One."""
        return [{"selector": "entity world", "users": 1}]

    def explain(self, source, destination, dport):
        """The question."""
        if source == "nobody":
            raise RequestRefused(404, "nobody is no pod")
        return {"from": source, "to": destination, "dport": dport}

    async def policy_diff(self, documents, delete):
        """What was asked."""
        if delete == ["cnp:a/b"]:
            raise RequestRefused(400, "there is no policy cnp:a/b")
        return {"documents": len(documents), "delete": delete}

    async def map_rows(self, name):
        """Rows of one map."""
        if name != "ipcache":
            raise RequestRefused(404, f"no map {name}")
        return [{"key": {}, "value": {}}]

    async def maps(self):
        """None."""
        return {"maps": []}

    async def flush_map(self, name):
        """Of ct only."""
        if name != "cilium_ct_v1":
            raise RequestRefused(403, f"{name} is kept by the agent")
        return 5

    def node_health(self):
        """No node."""
        return {"nodes": []}

    async def probe_nodes(self):
        """One."""
        return {"nodes": [{"name": "a"}]}

    def cluster_nodes(self):
        """None."""
        return {"nodes-added": []}

    def config(self):
        """Nothing."""
        return {"status": {}}

    def metrics(self):
        """One."""
        return [{"name": "cilium_x", "labels": {}, "value": 1.0}]


@pytest.fixture
def records():
    """A fake ring buffer."""
    fake = FakeRecords()
    yield fake
    fake.close()


@pytest.fixture
def agent(records):
    """What the socket speaks for."""
    return FakeAgent(records)


@pytest.fixture
def ask(agent, tmp_path):
    """Run a scenario with a client of a listening agent: ``ask(scenario)`` or ``ask("GET", path)``."""
    socket = tmp_path / "run" / "cilium.sock"

    async def session(scenario):
        agent.ring.start()
        api = Api(agent, socket)
        await api.start()
        try:
            async with aiohttp.ClientSession(
                "http://agent", connector=aiohttp.UnixConnector(str(socket))
            ) as client:
                async with asyncio.timeout(SECONDS):
                    return await scenario(client)
        finally:
            await api.stop()
            agent.ring.stop()

    def run(first, path=None, **request):
        async def one(client):
            async with client.request(first, path, **request) as answer:
                return answer.status, await answer.json()

        return asyncio.run(session(one if path is not None else first))

    run.socket = socket
    return run


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/healthz", {"cilium": {"state": "Ok"}}),
        ("/v1/endpoint", [WEB, {"id": 8, "status": {}}]),
        ("/v1/endpoint/8", {"id": 8, "status": {}}),
        ("/v1/endpoint/pod:shop%2Fweb", WEB),
        ("/v1/endpoint/7/config", {"realized": {"options": {"PolicyAuditMode": "Disabled"}}}),
        ("/v1/identity", [{"id": 1, "labels": ["reserved:host"]}]),
        ("/v1/service", [{"spec": {"id": 3}, "status": {}}]),
        ("/v1/service/3", {"spec": {"id": 3}, "status": {}}),
        ("/v1/policy", {"policy": [], "revision": 4, "problems": []}),
        ("/v1/policy/selectors", [{"selector": "entity world", "users": 1}]),
        (
            "/v1/policy/explain?from=shop/web&to=world&dport=80/TCP",
            {"from": "shop/web", "to": "world", "dport": "80/TCP"},
        ),
        ("/v1/map", {"maps": []}),
        ("/v1/map/ipcache", [{"key": {}, "value": {}}]),
        ("/v1/health", {"nodes": []}),
        ("/v1/cluster/nodes", {"nodes-added": []}),
        ("/v1/config", {"status": {}}),
        ("/v1/metrics", [{"name": "cilium_x", "labels": {}, "value": 1.0}]),
    ],
)
def test_every_question_is_answered(ask, path, expected):
    """JSON of what the agent says."""
    assert ask("GET", _url(path)) == (200, expected)


def _url(path):
    from yarl import URL

    return URL(path, encoded=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/endpoint/99", "no endpoint 99"),
        ("/v1/endpoint/pod:shop%2Fgone", "no endpoint pod:shop/gone"),
        ("/v1/service/4", "no service 4"),
        ("/v1/map/nothing", "no map nothing"),
        ("/v1/policy/explain?from=nobody&to=world&dport=1", "nobody is no pod"),
        ("/v2/healthz", "/v2/healthz: Not Found"),
        ("/", "/: Not Found"),
    ],
)
def test_what_does_not_exist_is_404_with_a_message(ask, path, message):
    """The message names what was asked for."""
    assert ask("GET", _url(path)) == (404, {"message": message})


def test_nodes_are_probed_when_asked(ask):
    """The answer is the new round's."""
    assert ask("PUT", "/v1/health/probe") == (200, {"nodes": [{"name": "a"}]})


def test_only_what_fills_again_is_emptied(ask):
    """Connections yes, what the agent keeps no."""
    assert ask("DELETE", "/v1/map/cilium_ct_v1") == (200, {"deleted": 5})
    assert ask("DELETE", "/v1/map/cilium_lxc_v1") == (403, {"message": "cilium_lxc_v1 is kept by the agent"})


def test_a_path_of_another_method_says_so(ask):
    """405, in JSON like every other answer."""
    status, answer = ask("POST", "/v1/endpoint")
    assert (status, answer) == (405, {"message": "/v1/endpoint: Method Not Allowed"})


def test_an_endpoint_is_added_as_asked(ask, agent):
    """Every field arrives; those left out have their defaults."""
    full = {**BODY, "ip": "10.0.0.9", "ifname": "net1", "container-id": "abc"}
    assert ask("PUT", "/v1/endpoint", json=full) == (201, {"id": 9})
    assert ask("PUT", "/v1/endpoint", json={"netns": "/n", "pod": "a/b"}) == (201, {"id": 9})
    first, second = agent.asked
    assert (str(first.ip), first.ifname, first.container_id) == ("10.0.0.9", "net1", "abc")
    assert (second.ip, second.ifname, second.container_id) == (None, "eth0", "")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b"[]", "should be an object"),
        ({**BODY, "color": "red"}, "color: Extra inputs"),
        ({"pod": "a/b"}, "netns: Field required"),
        ({"netns": "/n"}, "pod: Field required"),
        ({**BODY, "netns": ""}, "netns:"),
        *[
            ({**BODY, "pod": pod}, "pod:")
            for pod in (
                "web",
                "/web",
                "shop/",
                "Shop/web",
                "shop/web/x",
                "shop/we b",
                "shop/web\n",
                "-a/b",
                "a/..",
            )
        ],
        *[({**BODY, "ip": ip}, "ip:") for ip in ("10.0.0", "::1", "10.0.0.256", "x")],
        *[({**BODY, "ifname": name}, "ifname:") for name in ("", "a/b", "a b", "x" * 16, "eth0\n")],
        ({**BODY, "container-id": "x" * 256}, "container-id:"),
        ({**BODY, "container-id": 7}, "container-id:"),
    ],
)
def test_a_bad_request_is_400_and_names_the_field(ask, agent, body, field):
    """The agent is not even asked."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = ask("PUT", "/v1/endpoint", data=data)
    assert status == 400
    assert field in answer["message"]
    assert agent.asked == []


def test_a_huge_request_is_refused(ask, agent):
    """Before it is read to its end."""
    status, answer = ask("PUT", "/v1/endpoint", data=io.BytesIO(b" " * (2 << 20)))
    assert status == 413
    assert "Too Large" in answer["message"]


def test_a_proposal_may_be_large_and_is_not_kept(ask):
    """Larger than any other request; a refusal and a bad request are told."""
    large = json.dumps({"documents": [{"text": "x" * (2 << 20)}]}).encode()
    assert ask("POST", "/v1/policy/diff", data=io.BytesIO(large)) == (200, {"documents": 1, "delete": []})
    assert ask("POST", "/v1/policy/diff", data=io.BytesIO(b" " * (17 << 20)))[0] == 413
    status, answer = ask("POST", "/v1/policy/diff", json={"delete": ["cnp:a/b"]})
    assert (status, answer) == (400, {"message": "there is no policy cnp:a/b"})
    status, answer = ask("POST", "/v1/policy/diff", json={"documents": {}})
    assert status == 400
    assert answer["message"].startswith("bad diff request: documents: ")


def test_an_endpoint_is_deleted_by_number_or_pod(ask, agent):
    """Both ways name the same one; an unknown one is 404."""
    assert ask("DELETE", "/v1/endpoint/7") == (200, {})
    assert ask("DELETE", _url("/v1/endpoint/pod:shop%2Fweb")) == (200, {})
    assert ask("DELETE", "/v1/endpoint/99")[0] == 404
    assert agent.asked == [7, 7]


def test_options_of_an_endpoint_are_set(ask, agent):
    """Those that are named, by number or pod."""
    for key, body, asked in (
        ("7", {"options": {"PolicyAuditMode": "Enabled"}}, (7, "Enabled")),
        ("pod:shop%2Fweb", {"options": {"PolicyAuditMode": "Disabled"}}, (7, "Disabled")),
        ("8", {}, (8, None)),
    ):
        assert ask("PATCH", _url(f"/v1/endpoint/{key}/config"), json=body) == (200, {})
        assert agent.asked.pop() == asked
    assert ask("PATCH", "/v1/endpoint/99/config", json={})[0] == 404


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"PolicyAuditMode": "Perhaps"}, "options.PolicyAuditMode: Input should be 'Enabled' or 'Disabled'"),
        ({"PolicyAuditMode": True}, "options.PolicyAuditMode:"),
        ({"Debug": "Enabled"}, "options.Debug: Extra inputs"),
        ([], "options:"),
    ],
)
def test_options_that_there_are_not_are_400(ask, agent, options, field):
    """Nothing is set, and the option is named."""
    status, answer = ask("PATCH", "/v1/endpoint/7/config", json={"options": options})
    assert (status, agent.asked) == (400, [])
    assert f"bad endpoint configuration: {field}" in answer["message"]


def test_options_of_the_node_are_set(ask, agent):
    """Those that are named; an unknown one, or a value of its own, is 400 and sets nothing."""
    options = {"DropNotification": "Enabled", "TraceNotification": "Disabled"}
    assert ask("PATCH", "/v1/config", json={"options": options}) == (200, {})
    assert ask("PATCH", "/v1/config", json={"options": {"PolicyVerdictNotification": "Enabled"}}) == (200, {})
    assert agent.asked == [
        {"DropNotification": True, "TraceNotification": False},
        {"PolicyVerdictNotification": True},
    ]
    for wrong, field in (
        ({"TraceNotification": True}, "options.TraceNotification:"),
        ({"TraceNotification": "Disabled", "Debug": "Enabled"}, "options.Debug: Extra inputs"),
    ):
        status, answer = ask("PATCH", "/v1/config", json={"options": wrong})
        assert status == 400
        assert f"bad configuration: {field}" in answer["message"]
    assert len(agent.asked) == 2


@pytest.mark.parametrize("query", ["", "?from=a", "?from=a&to=b", "?dport=1"])
def test_explain_says_what_is_missing(ask, query):
    """Every missing parameter."""
    status, answer = ask("GET", "/v1/policy/explain" + query)
    assert status == 400
    assert answer["message"].startswith("missing ")
    assert answer["message"].endswith("dport") or "to" in answer["message"]


@pytest.mark.parametrize("status", [404, 409, 422, 507])
def test_a_refusal_keeps_its_status_and_its_text(ask, agent, status):
    """What the agent says is what the client reads."""
    agent.refusal = RequestRefused(status, "because")
    assert ask("PUT", "/v1/endpoint", json=BODY) == (status, {"message": "because"})


def test_a_bug_is_500_and_the_server_lives_on(ask, agent):
    """The client learns that it is not its fault, the log has the rest."""

    async def scenario(client):
        agent.refusal = ZeroDivisionError("bug")
        async with client.get("/v1/healthz") as answer:
            first = answer.status, await answer.json()
        agent.refusal = None
        async with client.get("/v1/healthz") as answer:
            return first, answer.status

    with capture_logs() as logs:
        first, second = ask(scenario)
    assert first == (500, {"message": "internal error, see the agent's log"})
    assert second == 200
    assert [(one["event"], one["path"]) for one in logs] == [("api.request_failed", "/v1/healthz")]


def test_the_socket_is_for_root_and_its_group(ask, agent):
    """Mode 0660 from its first moment, removed at the end; what a dead agent left there is replaced."""
    ask.socket.parent.mkdir()
    ask.socket.write_text("left over")
    before = os.umask(0o022)
    os.umask(before)

    async def scenario(client):
        async with client.get("/v1/config"):
            return ask.socket.stat().st_mode

    mode = ask(scenario)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert not ask.socket.exists()
    after = os.umask(before)
    os.umask(after)
    assert after == before


def test_monitor_streams_flows_line_by_line(ask, agent, records):
    """As they happen, of the wanted types only."""

    async def scenario(client):
        async with client.get("/v1/monitor?type=drop") as answer:
            records.push(record(line=1), record(**TRACE), record(line=2))
            return answer.headers["Content-Type"], [json.loads(await answer.content.readline()) for _ in "12"]

    kind, lines = ask(scenario)
    assert kind == "application/x-ndjson"
    assert [one["flow"]["extensions"]["line"] for one in lines] == [1, 2]


def test_a_monitor_ends_when_its_client_leaves(ask, agent, records):
    """Without waiting for the next flow, so that idle watchers do not pile up."""

    async def subscribers(wanted):
        while agent.ring.stats().subscribers != wanted:  # noqa: ASYNC110  the ring tells nobody
            await asyncio.sleep(0.01)

    async def scenario(client):
        async with client.get("/v1/monitor") as answer:
            await subscribers(1)
            answer.close()
        await subscribers(0)
        return True

    assert ask(scenario)


def test_a_monitor_does_not_hold_up_the_end(ask, agent, records):
    """Stopping ends the streams."""

    async def session():
        agent.ring.start()
        api = Api(agent, ask.socket)
        await api.start()
        connector = aiohttp.UnixConnector(str(ask.socket))
        async with (
            asyncio.timeout(SECONDS),
            aiohttp.ClientSession("http://agent", connector=connector) as client,
            client.get("/v1/monitor") as answer,
        ):
            assert agent.ring.stats().subscribers == 1
            agent.ring.stop()
            await api.stop()
            return await answer.content.read()

    assert asyncio.run(session()) == b""


@pytest.mark.parametrize("query", ["type=nonsense", "type=drop,nonsense", "type=drop&type=nonsense"])
def test_an_unknown_event_type_is_400_and_names_those_there_are(ask, query):
    """Before the stream begins."""
    status, answer = ask("GET", "/v1/monitor?" + query)
    assert status == 400
    assert "'nonsense'" in answer["message"]
    assert "drop" in answer["message"]
