// SPDX-License-Identifier: Apache-2.0
/* The pod's namespace: entered by this process only, which then ends. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* setns */
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netlink.h>
#include <linux/nsfs.h>

#include "cni.h"

#define DISABLE_IPV6 "/proc/sys/net/ipv6/conf/default/disable_ipv6"

/* Devices made from now on get no IPv6, not even a link-local address. */
static int disable_ipv6(const struct request *request)
{
	/* Follows the calling thread's namespace.  Without the file the kernel has no IPv6. */
	int file = open(DISABLE_IPV6, O_WRONLY | O_CLOEXEC);
	ssize_t written;

	if (file < 0 && errno == ENOENT)
		return 0;
	written = file < 0 ? -1 : write(file, "1", 1);
	if (written != 1)
		return report_error(request, CNI_IO_FAILURE, "cannot write %s in %s: %s",
				    DISABLE_IPV6, request->netns, strerror(errno));
	close(file);
	return 0;
}

/* 0, or what the process exits with: then the error is printed. */
int sandbox_open(const struct request *request, struct sandbox *sandbox)
{
	sandbox->netns = open(request->netns, O_RDONLY | O_CLOEXEC);
	if (sandbox->netns < 0)
		return report_error(request, CNI_INVALID_ENVIRONMENT, "CNI_NETNS: %s: %s",
				    request->netns, strerror(errno));
	if (ioctl(sandbox->netns, NS_GET_NSTYPE) != CLONE_NEWNET)
		return report_error(request, CNI_INVALID_ENVIRONMENT,
				    "CNI_NETNS: %s is no network namespace", request->netns);
	if (setns(sandbox->netns, CLONE_NEWNET) != 0)
		return report_error(request, CNI_IO_FAILURE, "cannot enter %s: %s", request->netns,
				    strerror(errno));
	if (strcmp(request->command, "ADD") == 0 && !request->ipv6) {
		int failed = disable_ipv6(request);

		if (failed)
			return failed;
	}
	sandbox->netlink = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (sandbox->netlink < 0)
		return report_error(request, CNI_IO_FAILURE, "no netlink socket in %s: %s",
				    request->netns, strerror(errno));
	return 0;
}
