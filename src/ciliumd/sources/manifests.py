# SPDX-License-Identifier: Apache-2.0
"""
One manifest file: text in, objects with their rows or problems out.

A file that is not YAML or JSON gives a :class:`MalformedManifest` and no object at all; an object that
is not valid gives a problem and leaves the others of its file alone.  No file is opened here.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
import yaml

from ciliumd.resources import InvalidResource, Parse, Row, UnknownKind, documents, parse
from ciliumd.tables import Problem

ObjectKey = tuple[str, str, str]
Rows = tuple[Row, ...]

DEEPEST = 100
# Characters of a document that is kept; the API server takes no object that comes near.
LONGEST = 4_000_000
SUFFIXES = (".yaml", ".yml", ".json")

log = structlog.get_logger("manifests")


class MalformedManifest(Exception):
    """The text is not a sequence of documents; *line* is where reading stopped."""

    def __init__(self, file: str, line: int, message: str) -> None:
        super().__init__(f"{file}:{line}: {message}")
        self.place = f"{file}:{line}"
        self.message = message


class UnreadableManifest(MalformedManifest):
    """The file could not be read, so what it says is not known."""


@dataclass(frozen=True, slots=True)
class ManifestObject:
    """
    One object of a file and where it is written (``file:line``).

    Exactly one of *rows* and *problem* is not None.  *text* is a valid object's document as JSON, None if
    it is not reasonable to keep it.
    """

    key: ObjectKey
    place: str
    rows: Rows | None
    problem: Problem | None
    text: str | None = None


# Kinds of values that JSON does not know occur only where an object is not read.
_ENCODER = json.JSONEncoder(separators=(",", ":"), skipkeys=True, default=str)


class Loader(yaml.CSafeLoader):
    """
    YAML as Kubernetes reads it: a timestamp is a string, and a key given twice is an error.

    PyYAML would silently keep the last of two equal keys, that is drop half of somebody's policy.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of *node*, if no key is given twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def read_manifest(file: str, text: str, *, parse: Parse = parse) -> tuple[ManifestObject, ...]:
    """Every object of *file*, in order; *file* is for messages, its suffix tells the format."""
    return tuple(
        _object(document, f"{file}:{line}", parse)
        for line, whole in _documents(file, text)
        for document in _objects(whole, file, line)
    )


def read_document(text: str, *, place: str, parse: Parse = parse) -> ManifestObject:
    """The object of a :attr:`ManifestObject.text`, now valid or not."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = Problem("", f"is no document: {error}", place)
        return ManifestObject(_named(("", "", ""), place), place, None, problem)
    return _object(document, place, parse)


def _objects(document: object, file: str, line: int) -> Iterator[object]:
    """The objects of one document: those of a ``List``, or itself."""
    try:
        yield from documents(document)
    except TypeError as error:
        raise MalformedManifest(file, line, "the items of a List must be a list") from error


def _documents(file: str, text: str) -> Iterator[tuple[int, object]]:
    """Each document with the line it begins on."""
    if file.endswith(".json"):
        try:
            yield 1, json.loads(text)
        except json.JSONDecodeError as error:
            raise MalformedManifest(file, error.lineno, error.msg) from error
        except RecursionError as error:
            raise MalformedManifest(file, 1, "is nested too deeply") from error
        return
    try:
        check_depth(file, text)
        loader = Loader(text)
        try:
            while loader.check_node() and (node := loader.get_node()) is not None:
                yield node.start_mark.line + 1, loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "is not YAML"
        raise MalformedManifest(file, mark.line + 1 if mark else 1, message) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise MalformedManifest(
            file, line, f"has a character YAML does not allow ({error.reason})"
        ) from error


def check_depth(file: str, text: str) -> None:
    """
    Refuse text that is nested absurdly.

    The composer recurses in C: a file of 100,000 brackets would end the process, not raise.  Events
    come without recursion; reading them first costs a third more.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                mark = event.start_mark
                raise MalformedManifest(file, mark.line + 1 if mark else 1, "is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _object(document: object, place: str, parse: Parse) -> ManifestObject:
    try:
        resource = parse(document)
    except InvalidResource as error:
        problem = Problem(error.field, error.message, place)
        return ManifestObject(_named(error.key, place), place, None, problem)
    except UnknownKind as error:
        problem = Problem("kind", str(error), place)
        return ManifestObject(_named(_key(document), place), place, None, problem)
    except Exception:  # the edge of one object: a bug met by it must not take the others along
        log.exception("manifest.parse_failed", place=place)
        problem = Problem("", "could not be read: internal error, see the log", place)
        return ManifestObject(_named(_key(document), place), place, None, problem)
    return ManifestObject(resource.key, place, tuple(resource.rows()), None, _text(document, place))


def _text(document: object, place: str) -> str | None:
    """
    *document* as JSON; None if it is too much.

    What YAML says with a few aliases can be endless or as good as endless: hence piece by piece.
    """
    pieces: list[str] = []
    size = 0
    try:
        for piece in _ENCODER.iterencode(document):
            pieces.append(piece)
            size += len(piece)
            if size > LONGEST:
                log.warning("manifest.not_kept", place=place, error="the document is too long")
                return None
    except (ValueError, RecursionError) as error:
        log.warning("manifest.not_kept", place=place, error=str(error))
        return None
    return "".join(pieces)


def _key(document: object) -> ObjectKey:
    """Kind, namespace and name as far as they can be told."""
    if not isinstance(document, Mapping):
        return ("", "", "")
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    return (
        str(document.get("kind") or ""),
        str(metadata.get("namespace") or ""),
        str(metadata.get("name") or ""),
    )


def _named(key: ObjectKey, place: str) -> ObjectKey:
    """*key*, with the place for an object that has no name, so that two of them stay apart."""
    kind, namespace, name = key
    return (kind or "Document", namespace, name or place)
