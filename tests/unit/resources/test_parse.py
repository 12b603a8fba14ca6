# SPDX-License-Identifier: Apache-2.0
"""Dispatch on kind, and errors in the words of whoever wrote the document."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.resources import InvalidResource, Row, UnknownKind, documents, parse
from unit.resources.documents import problems, rows

pytestmark = pytest.mark.unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
NAMED = [("v1", "Namespace"), ("v1", "Pod"), ("v1", "Service"), ("discovery.k8s.io/v1", "EndpointSlice")]
POLICIES = [("networking.k8s.io/v1", "NetworkPolicy"), ("cilium.io/v2", "CiliumNetworkPolicy")]


def test_kind_that_is_none_of_ours_is_told_apart_from_a_mistake() -> None:
    """A ConfigMap is not an invalid object, it is somebody else's."""
    with pytest.raises(UnknownKind) as caught:
        parse({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}})

    assert (caught.value.api_version, caught.value.kind) == ("v1", "ConfigMap")


def test_right_kind_in_the_wrong_group_is_unknown() -> None:
    """A NetworkPolicy of another API group is another thing."""
    with pytest.raises(UnknownKind):
        parse({"apiVersion": "extensions/v1beta1", "kind": "NetworkPolicy", "metadata": {"name": "x"}})


@pytest.mark.parametrize("document", [[1], "text", 7, True])
def test_document_that_is_no_mapping_is_invalid(document: object) -> None:
    """A list or a text is no object."""
    with pytest.raises(InvalidResource, match="a mapping is needed"):
        parse(document)


@pytest.mark.parametrize(("text", "field"), [("kind: Pod", "apiVersion"), ("apiVersion: v1", "kind")])
def test_missing_type_is_named(text: str, field: str) -> None:
    """Both apiVersion and kind are needed before anything else can be judged."""
    assert problems(text) == {field: "is missing"}


def test_error_names_the_object_and_its_first_problem() -> None:
    """The text of the error is enough to find and fix the line."""
    with pytest.raises(InvalidResource) as caught:
        parse({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": 1}}})

    error = caught.value
    assert error.key == ("Pod", "default", "web")
    assert (error.field, error.message) == (
        "metadata.labels.app",
        "must be a string, not 1; put it in quotes",
    )
    assert str(error) == "Pod default/web: metadata.labels.app must be a string, not 1; put it in quotes"


def test_labels_with_dots_are_quoted_in_paths() -> None:
    """A key that is no plain word does not look like a path of its own."""
    text = "{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {kubernetes.io/a: true}}}"

    assert problems(text) == {
        'metadata.labels["kubernetes.io/a"]': "must be a string, not true; put it in quotes"
    }


@pytest.mark.parametrize("name", ["", "Web", "web_1", "-web", "a" * 254])
def test_object_names_are_dns_names(name: str) -> None:
    """What the API server would not store is refused."""
    assert "metadata.name" in problems(f"{{apiVersion: v1, kind: Pod, metadata: {{name: '{name}'}}}}")


def test_object_without_metadata_is_invalid() -> None:
    """An object has a name."""
    assert problems("{apiVersion: v1, kind: Pod}") == {"metadata": "is missing"}


def test_list_gives_its_items() -> None:
    """What kubectl prints as a List is several objects; an empty document is none."""
    text = "{apiVersion: v1, kind: List, items: [{kind: A}, {kind: List, items: [{kind: B}]}]}"

    assert list(documents(yaml.safe_load(text))) == [{"kind": "A"}, {"kind": "B"}]
    assert list(documents(None)) == []
    assert list(documents({"kind": "List"})) == []


def test_namespaced_object_without_namespace_is_in_default() -> None:
    """As kubectl apply would put it."""
    ((_, key, _),) = rows("{apiVersion: v1, kind: Pod, metadata: {name: web}}")

    assert key == ("default", "web")


@given(st.sampled_from(NAMED + POLICIES), JSON, JSON)
def test_no_document_breaks_the_parser(kind: tuple[str, str], spec: object, metadata: object) -> None:
    """Any document gives rows or a named problem with a field, never another error."""
    document = {"apiVersion": kind[0], "kind": kind[1], "metadata": metadata, "spec": spec}
    assert all(
        table in {"namespaces", "pods", "services", "slices"} for table, _, _ in rows_or_problems(document)
    )


def rows_or_problems(document: object) -> list[Row]:
    """The rows of a document; none for one that is invalid, which says why."""
    try:
        return parse(document).rows()
    except InvalidResource as error:
        if not error.problems or not all(message for _, message in error.problems):
            raise AssertionError("nothing is said about what is wrong") from error
        return []


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"name": "x" * 100_000}},
        {"metadata": {"name": "x", "labels": {"k" * 100_000: "v"}}},
        {"metadata": {"name": "x", "labels": {"k": ["v"] * 100_000}}},
        {"metadata": {"name": "x", "labels": {f"k{i}!": "v" for i in range(20_000)}}},
    ],
    ids=["a value", "a key", "a list", "many"],
)
def test_what_is_told_of_a_large_object_is_short(document: dict[str, object]) -> None:
    """A problem is kept, logged and written into the object's status: it is not as large as its cause."""
    with pytest.raises(InvalidResource) as caught:
        parse({"apiVersion": "v1", "kind": "Namespace", **document})

    assert len(str(caught.value)) < 2_000
    assert sum(len(field) + len(message) for field, message in caught.value.problems) < 20_000


def test_what_is_told_of_an_object_can_be_written_down() -> None:
    """JSON can say half a character; it would end the log, the metrics page or the answer it gets into."""
    half = chr(0xD800)
    with pytest.raises(InvalidResource) as caught:
        parse({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": half, "labels": {half: half}}})

    error = caught.value
    for text in (str(error), *error.key, *(word for problem in error.problems for word in problem)):
        assert text.encode()


def test_what_is_told_of_an_unknown_kind_is_short() -> None:
    """Its name is its writer's as well."""
    with pytest.raises(UnknownKind) as caught:
        parse({"apiVersion": "v" * 100_000, "kind": chr(0xD800) * 100_000, "metadata": {"name": "x"}})

    assert len(str(caught.value).encode()) < 5_000
