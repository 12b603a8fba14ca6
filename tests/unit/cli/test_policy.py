# SPDX-License-Identifier: Apache-2.0
"""``cilium policy``: selectors, explanations and differences as people and scripts read them."""


def _labels(**found):
    return [
        {"key": f"io.cilium.k8s.policy.{key.replace('_', '-')}", "value": value, "source": "k8s"}
        for key, value in found.items()
    ]


def test_selectors_are_a_table_as_ciliums(agent, run):
    """An identity a line; policies of the whole cluster have no namespace."""
    agent.get(
        "policy/selectors",
        [
            {
                "selector": "any:app=db",
                "users": 2,
                "identities": [1001, 1002],
                "labels": [
                    _labels(derived_from="CiliumNetworkPolicy", name="web", namespace="shop"),
                    _labels(derived_from="CiliumClusterwideNetworkPolicy", name="all"),
                ],
                "rules": [],
            },
            {"selector": "entity world", "users": 1, "identities": [], "labels": [], "rules": []},
        ],
    )

    assert run.cilium("policy", "selectors") == 0
    assert run.out == (
        "SELECTOR       LABELS         USERS   IDENTITIES\n"
        "any:app=db     shop/web,all   2       1001\n"
        "                                      1002\n"
        "entity world                  1\n"
    )
    assert run.cilium("policy", "selectors", "-v") == 0
    assert "[k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy " in run.out
    assert run.cilium("policy", "selectors", "-o", "jsonpath={[0].users}") == 0
    assert run.out == "2\n"
