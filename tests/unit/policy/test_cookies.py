# SPDX-License-Identifier: Apache-2.0
"""What the cookies of rows stand for."""

from ciliumd.desired.policy import ALLOW_LOCALHOST, ALWAYS_ORIGIN, INIT_ORIGIN, RuleNames, cookie, cookies
from unit.policy.builders import app, policy, rule


def test_cookies_lead_back_to_every_origin() -> None:
    """Rules, policies and what is built in are all found by number."""
    table = cookies([policy(rule(app("db"), origin="cnp:default/p/ingress/0"))])

    assert table == {
        cookie(origin): (origin,)
        for origin in (
            "cnp:default/p/ingress/0",
            "cnp:default/p",
            ALLOW_LOCALHOST,
            ALWAYS_ORIGIN,
            INIT_ORIGIN,
        )
    }


def test_origins_with_one_cookie_are_all_named() -> None:
    """These two texts collide under CRC-32."""
    first, second = "plumless", "buckeroo"

    table = cookies([policy(origin=first), policy(origin=second)])

    assert cookie(first) == cookie(second)
    assert table[cookie(first)] == (second, first)


def test_names_follow_policies_one_by_one() -> None:
    """Whatever came, changed and went: the names are those of what is there, of a shared cookie too."""
    first, second = "plumless", "buckeroo"
    names = RuleNames()
    names.put("a", policy(rule(app("db"), origin="a/ingress/0"), origin=first))
    names.put("b", policy(rule(app("db"), origin="b/ingress/0"), origin=second))
    assert names.origins[cookie(first)] == (second, first)

    names.put("a", policy(rule(app("db"), origin="a/ingress/1"), origin="a"))
    changed = [
        policy(rule(app("db"), origin="a/ingress/1"), origin="a"),
        policy(rule(app("db"), origin="b/ingress/0"), origin=second),
    ]
    assert names.origins == cookies(changed)

    names.put("b", None)
    names.put("never there", None)
    assert names.origins == cookies(changed[:1])
