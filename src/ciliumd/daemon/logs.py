# SPDX-License-Identifier: Apache-2.0
"""Logs as Cilium's users read them: ``time=... level=info msg=... subsys=...``, or JSON."""

import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(*, level: str, form: str) -> None:
    """Set up structlog for the process; *form* is ``logfmt`` or ``json``.  Logs go to stderr."""
    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer(sort_keys=False)
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["time", "level", "msg", "subsys"], bool_as_flag=False
        )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.ExceptionRenderer(),
            _names,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=_logger,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, level=LEVELS[level], format="level=%(levelname)s msg=%(message)s")


def _logger(*names: object) -> "_Named":
    return _Named(str(names[0]) if names else "agent")


class _Named:
    """Writes finished lines to stderr and knows the subsystem it was asked for."""

    def __init__(self, subsys: str) -> None:
        self.subsys = subsys

    def msg(self, line: str) -> None:
        """One line, one write."""
        sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = exception = msg


def _names(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cilium's field names: ``msg`` for the event, ``subsys`` for the logger."""
    event["msg"] = event.pop("event")
    event["subsys"] = getattr(logger, "subsys", "agent")
    return event
