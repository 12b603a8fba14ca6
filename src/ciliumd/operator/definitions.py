# SPDX-License-Identifier: Apache-2.0
"""
The CustomResourceDefinitions in the cluster: installed, upgraded, never downgraded.

The label ``io.cilium.k8s.crd.schema.version`` decides: what is newer, or as new and by somebody else, is
left alone.  What is not accepted as structural by the API server ends the operator with its words.
"""

import asyncio
from importlib import resources

import structlog
import yaml

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import AlreadyExists, ApiError, Conflict, NotFound, Unreachable
from ciliumd.operator.objects import DEFINITION, condition
from ciliumd.operator.queue import delay
from ciliumd.resources.crd.kinds import VERSION_LABEL

_CHECK_SECONDS = 0.2

log = structlog.get_logger("crds")


class DefinitionRefused(Exception):
    """The API server does not take a definition; the text says which and why."""


def packaged() -> list[Json]:
    """The definitions this version comes with."""
    directory = resources.files("ciliumd.operator") / "crds"
    files = sorted((one for one in directory.iterdir() if one.name.endswith(".yaml")), key=lambda f: f.name)
    return [yaml.safe_load(file.read_text()) for file in files]


def version_of(definition: Json) -> tuple[int, ...]:
    """The schema version as numbers; (0,) without a readable one, so that anything is newer."""
    text = str((definition["metadata"].get("labels") or {}).get(VERSION_LABEL, ""))
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else (0,)


async def install(api: Api) -> None:
    """
    Have every definition in the cluster, accepted.

    Waits as long as the API server is away.  Raises :class:`DefinitionRefused`.
    """
    for definition in packaged():
        await _persistently(api, definition)


async def _persistently(api: Api, definition: Json) -> None:
    failures = 0
    while True:
        try:
            await _ensure(api, definition)
            return await _established(api, definition)
        except (Unreachable, AlreadyExists, Conflict) as error:
            failures += 1
            log.warning("crd.retry", crd=definition["metadata"]["name"], error=str(error))
            await asyncio.sleep(delay(failures))
        except ApiError as error:
            raise DefinitionRefused(str(error)) from error


async def _ensure(api: Api, definition: Json) -> None:
    name = definition["metadata"]["name"]
    try:
        present = await api.get(DEFINITION, name)
    except NotFound:
        await api.create(DEFINITION, definition)
        log.info("crd.created", crd=name, version=_shown(definition))
        return
    if version_of(present) >= version_of(definition):
        return
    metadata = present["metadata"]
    labels = (metadata.get("labels") or {}) | definition["metadata"]["labels"]
    await api.replace(DEFINITION, {**definition, "metadata": {**metadata, "labels": labels}})
    log.info("crd.upgraded", crd=name, before=_shown(present), version=_shown(definition))


async def _established(api: Api, definition: Json) -> None:
    """Wait until the API server serves it."""
    name = definition["metadata"]["name"]
    while True:
        present = await api.get(DEFINITION, name)
        refusals = [
            one
            for one in (condition(present, "NonStructuralSchema"), condition(present, "NamesAccepted"))
            if one.get("status") == ("True" if one.get("type") == "NonStructuralSchema" else "False")
        ]
        if refusals:
            raise DefinitionRefused(f"{name}: {refusals[0].get('message')}")
        if condition(present, "Established").get("status") == "True":
            return
        await asyncio.sleep(_CHECK_SECONDS)


def _shown(definition: Json) -> str:
    return ".".join(map(str, version_of(definition)))
