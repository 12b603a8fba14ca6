# SPDX-License-Identifier: Apache-2.0
"""Whatever netlink answers is one of our errors."""

import errno

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from ciliumd.net.errors import LinkGone, NetError, netlink_errors

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("raised", "expected", "number"),
    [
        (NetlinkError(errno.ENODEV, "No such device"), LinkGone, errno.ENODEV),
        (NetlinkError(errno.EBUSY, "Device or resource busy"), NetError, errno.EBUSY),
        (OSError(errno.ENOBUFS, "No buffer space available"), NetError, errno.ENOBUFS),
        (InterruptedError(errno.EINTR, "Interrupted system call"), NetError, errno.EINTR),
    ],
)
def test_an_answer_of_the_kernel_or_of_the_socket_names_the_operation(
    raised: Exception, expected: type[NetError], number: int
) -> None:
    """Callers undo, tell and try again by these; anything else would pass them by."""
    with pytest.raises(expected, match="set link 7 up: ") as caught, netlink_errors("set link 7 up"):
        raise raised
    assert caught.value.errno == number
