# SPDX-License-Identifier: Apache-2.0
"""Requests against a scripted server: what is asked, what is tried again, what an answer means."""

import asyncio
import json

import pytest
from aiohttp import web

from ciliumd.kubernetes import errors
from ciliumd.kubernetes.client import Api, Listing, ObjectName
from ciliumd.kubernetes.config import ConfigInvalid, load, ssl_context
from ciliumd.kubernetes.kinds import CILIUM_ENDPOINT, CILIUM_NODE, NODE, POD, selector
from ciliumd.kubernetes.pace import Backoff, Pace

OBJECT = {"metadata": {"name": "n1", "resourceVersion": "5"}}


class Script:
    """A server that gives these answers, one after the other, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.observed = []

    async def _handle(self, request):
        self.asked.append((request.method, request.path_qs, dict(request.headers), await request.text()))
        status, body, headers = (*self.answers.pop(0), {})[:3]
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, content_type="application/json", headers=headers)

    def run(self, folder, work, *, user=None):
        """Do *work* with an Api of this server; what comes of it."""

        async def served():
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            observe = lambda *seen: self.observed.append(seen[:3])  # noqa: E731
            config = load(kubeconfig(folder, port=port, user=user or {"token": "secret"}))
            try:
                async with Api(config, observe=observe, timeout=2.0) as api:
                    return await work(api)
            finally:
                await runner.cleanup()

        return asyncio.run(served())


def kubeconfig(folder, *, port=1, user):
    """A kubeconfig of a server without TLS."""
    document = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(document))
    return path


def test_requests_say_what_the_api_expects(tmp_path):
    """Paths, queries, content types, conditions."""
    script = Script(*[(200, OBJECT)] * 6)

    async def work(api):
        await api.get(POD, "web", namespace="shop")
        await api.create(CILIUM_ENDPOINT, {"metadata": {"name": "web", "namespace": "shop"}})
        await api.replace(CILIUM_NODE, OBJECT, subresource="status")
        await api.patch(NODE, "n1", {"spec": {}})
        await api.apply(NODE, OBJECT, manager="me")
        await api.delete(CILIUM_NODE, "n1", uid="u", version="5")

    script.run(tmp_path, work)
    assert [asked[:2] for asked in script.asked] == [
        ("GET", "/api/v1/namespaces/shop/pods/web"),
        ("POST", "/apis/cilium.io/v2/namespaces/shop/ciliumendpoints"),
        ("PUT", "/apis/cilium.io/v2/ciliumnodes/n1/status"),
        ("PATCH", "/api/v1/nodes/n1"),
        ("PATCH", "/api/v1/nodes/n1?fieldManager=me&force=true"),
        ("DELETE", "/apis/cilium.io/v2/ciliumnodes/n1"),
    ]
    assert {asked[2]["Authorization"] for asked in script.asked} == {"Bearer secret"}
    assert [asked[2]["Content-Type"].partition("+")[0] for asked in script.asked[3:5]] == [
        "application/merge-patch",
        "application/apply-patch",
    ]
    assert json.loads(script.asked[5][3])["preconditions"] == {"uid": "u", "resourceVersion": "5"}
    assert script.observed[0] == ("GET", "/api/v1/namespaces/{namespace}/pods/{name}", 200)


def test_names_are_read_in_pages_and_without_bodies(tmp_path):
    """An empty page has no items at all."""
    page = {
        "metadata": {"resourceVersion": "9", "continue": "more"},
        "items": [{"metadata": {"name": "a", "namespace": "s", "uid": "1", "resourceVersion": "4"}}],
    }
    script = Script((200, page), (200, {"metadata": {"resourceVersion": "9"}, "items": None}))
    found = script.run(tmp_path, lambda api: api.names(POD, fields=selector(POD, node="n1")))
    assert Listing("9", [ObjectName("a", "s", "1", "4")]) == found
    assert "PartialObjectMetadataList" in script.asked[0][2]["Accept"]
    assert script.asked[1][1] == "/api/v1/pods?limit=500&fieldSelector=spec.nodeName%3Dn1&continue=more"


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (400, "BadRequest", errors.Refused),
        (401, "Unauthorized", errors.Forbidden),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (409, "AlreadyExists", errors.AlreadyExists),
        (409, "Conflict", errors.Conflict),
        (410, "Expired", errors.Expired),
        (422, "Invalid", errors.Refused),
    ],
)
def test_refusals_are_told_apart_and_not_repeated(tmp_path, status, reason, expected):
    """The error names the verb and the resource."""
    script = Script((status, {"message": "because", "reason": reason}))
    with pytest.raises(expected, match="get nodes n1: because") as caught:
        script.run(tmp_path, lambda api: api.get(NODE, "n1"))
    assert (caught.value.verb, caught.value.status) == ("get", status)


def test_what_passes_is_tried_again(tmp_path):
    """Too many requests, a server error that is no JSON."""
    script = Script((429, {"message": "slow"}, {"Retry-After": "0"}), (503, "<html>"), (200, OBJECT))
    assert OBJECT == script.run(tmp_path, lambda api: api.get(NODE, "n1"))
    assert [status for _, _, status in script.observed] == [429, 503, 200]


def test_tries_are_bounded(tmp_path):
    """Then the caller decides."""
    script = Script(*[(500, {"message": "broken"})] * 4)
    with pytest.raises(errors.Unreachable, match="broken"):
        script.run(tmp_path, lambda api: api.get(NODE, "n1"))
    assert script.answers == []


def test_truncated_answer_is_no_object(tmp_path):
    """A connection that was cut."""
    script = Script((200, '{"metadata": {"na'))
    with pytest.raises(errors.Unreachable, match="not understood"):
        script.run(tmp_path, lambda api: api.get(NODE, "n1"))


def test_nobody_there_is_unreachable(tmp_path):
    """Also that is told to who counts: status 0."""
    seen = []
    config = load(kubeconfig(tmp_path, port=1, user={"token": "t"}))

    async def ask():
        async with Api(config, observe=lambda *one: seen.append(one[2]), attempts=1) as api:
            await api.get(NODE, "n1")

    with pytest.raises(errors.Unreachable):
        asyncio.run(ask())
    assert seen == [0]


def test_rotated_token_is_read_again(tmp_path):
    """The kubelet replaces the file before the old token expires."""
    token = tmp_path / "token"
    token.write_text("old\n")
    script = Script((200, OBJECT), (401, {"message": "expired"}), (200, OBJECT))

    async def work(api):
        await api.get(NODE, "n1")
        token.write_text("new\n")
        await api.get(NODE, "n1")

    script.run(tmp_path, work, user={"tokenFile": str(token)})
    shown = [asked[2]["Authorization"] for asked in script.asked]
    assert shown == ["Bearer old", "Bearer old", "Bearer new"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be used"),
        ("{}", "cannot be used"),
        ("[]", "cannot be used"),
        ('{"clusters": [], "contexts": [], "current-context": "x"}', "not found"),
    ],
)
def test_unusable_kubeconfig_is_named(tmp_path, text, match):
    """And what to do about it."""
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_missing_kubeconfig_and_missing_account_are_named(tmp_path):
    """Outside of a pod there is no service account."""
    with pytest.raises(ConfigInvalid, match="missing"):
        load(tmp_path / "missing")
    with pytest.raises(ConfigInvalid, match="k8s-kubeconfig-path"):
        load()


def test_login_by_plugin_is_refused(tmp_path):
    """An agent has no interactive login."""
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "login"}}
    with pytest.raises(ConfigInvalid, match="plugin"):
        load(kubeconfig(tmp_path, user=user))


def test_server_of_the_settings_wins(tmp_path):
    """Before services work there is no other way."""
    config = load(kubeconfig(tmp_path, user={"token": "t"}), server="https://192.0.2.1:6443/")
    assert config.cluster.server == "https://192.0.2.1:6443"
    assert ssl_context(config).check_hostname


def test_pace_allows_a_start_and_then_the_rate():
    """After a failure nothing is left of what was saved up."""
    now = [0.0]
    pace = Pace(rate=10, burst=3, clock=lambda: now[0])
    assert [pace.reserve() for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    now[0] = 10.0
    assert pace.reserve() == 0
    pace.slow_down()
    assert [pace.reserve() for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_backoff_grows_to_its_limit():
    """With chance in it, never more than the limit."""
    delays = [delay for delay, _ in zip(Backoff(first=1, last=8), range(50), strict=False)]
    assert max(delays) <= 8
    assert delays[0] <= 1
    assert min(delays[10:]) >= 4


def test_paths_of_namespaced_objects_need_a_namespace():
    """An object of all namespaces cannot be asked for."""
    assert POD.path() == "/api/v1/pods"
    with pytest.raises(ValueError, match="namespace"):
        POD.path("web")
