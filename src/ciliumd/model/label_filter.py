# SPDX-License-Identifier: Apache-2.0
"""
Which of a pod's labels make its identity: Cilium's setting ``labels``; of a node's: ``node-labels``.

Labels that differ between pods of one workload (the hash of a template, an index) would give every pod
or every rollout an identity of its own.  The price: a label that is left out selects nothing in policies.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ciliumd.model.labels import Label, Labels

DEFAULT_TERMS = (
    "reserved:.*",
    r"io\.kubernetes\.pod\.namespace",
    r"io\.cilium\.k8s\.namespace\.labels",
    r"io\.cilium\.k8s\.policy\.cluster",
    r"io\.cilium\.k8s\.policy\.serviceaccount",
    r"!io\.kubernetes",
    r"!kubernetes\.io",
    r"!statefulset\.kubernetes\.io/pod-name",
    r"!apps\.kubernetes\.io/pod-index",
    r"!batch\.kubernetes\.io/job-completion-index",
    r"!batch\.kubernetes\.io/controller-uid",
    r"!.*beta\.kubernetes\.io",
    r"!k8s\.io",
    "!pod-template-generation",
    "!pod-template-hash",
    "!controller-revision-hash",
    "!annotation.*",
    "!controller-uid",
    "!etcd_node",
)
"""In force before the setting's own terms; namespace, cluster and service account always stay."""

# The engine of Python goes back and tries again: as often as a key is long, for each repetition.
_REPETITIONS = 2
_REPETITION = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")


@dataclass(frozen=True, slots=True)
class Term:
    """Labels whose key begins with a match of *pattern*, of *source* if that is not empty."""

    exclude: bool
    source: str
    pattern: re.Pattern[str]

    def length(self, source: str, key: str) -> int | None:
        """How much of *key* it matches; None when it does not."""
        if self.source and self.source != source:
            return None
        match = self.pattern.match(key)
        return None if match is None else match.end()


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """
    Decides by the longest including and the shortest excluding term that match a key.

    With *only_included* (the setting names labels to include) every other label is left out; otherwise
    every label stays that no term excludes.
    """

    terms: tuple[Term, ...]
    only_included: bool
    _decided: dict[tuple[str, str], bool] = field(default_factory=dict, repr=False, compare=False)

    def keep(self, labels: Iterable[Label]) -> Labels:
        """Those *labels* that make an identity."""
        return frozenset(label for label in labels if self._relevant(label.source, label.key))

    def _relevant(self, source: str, key: str) -> bool:
        decided = self._decided.get((source, key))
        if decided is None:
            decided = self._decided[source, key] = self._decide(source, key)
        return decided

    def _decide(self, source: str, key: str) -> bool:
        included = excluded = 0
        for term in self.terms:
            length = term.length(source, key)
            if length is None:
                continue
            if term.exclude:
                excluded = min(excluded or length, length)
            else:
                included = max(included, length)
        return included > excluded or (not excluded and not self.only_included)


EVERY_LABEL = LabelFilter((), only_included=False)
"""Leaves nothing out."""


def parse_label_filter(text: str, *, before: Iterable[str] = DEFAULT_TERMS) -> LabelFilter:
    """
    The filter of the setting *text*: terms between blanks, after those *before* them.

    A term is ``[source:]pattern``, a regular expression for the beginning of a key; a ``!`` before either
    part excludes.  Raises ValueError, which names the term; also for one that users could make to take
    forever by what they call their labels.
    """
    own = [_term(word) for word in text.split()]
    defaults = [_term(word) for word in before]
    return LabelFilter((*defaults, *own), only_included=any(not term.exclude for term in own))


def _term(word: str) -> Term:
    rest = word.removeprefix("!")
    source, colon, pattern = rest.partition(":")
    if not colon:
        source, pattern = "", rest
    exclude = rest != word or pattern.startswith("!")
    pattern = pattern.removeprefix("!")
    if not pattern or (colon and not source):
        raise ValueError(f"{word!r} is no label: write key, source:key, or !key to leave it out")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{word!r} is no regular expression: {error}") from None
    if len(_REPETITION.findall(pattern)) > _REPETITIONS or _REPEATED_GROUP.search(pattern):
        raise ValueError(
            f"{word!r} could take forever: write at most {_REPETITIONS} repetitions, and none of a group"
        )
    return Term(exclude, source, compiled)
