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

#define DEVICES_TO_COME "/proc/sys/net/ipv6/conf/default/"

struct knob {
	const char *path;
	const char *value;
};

/* Devices made from now on get no IPv6, not even a link-local address ... */
static const struct knob none[] = {
	{ DEVICES_TO_COME "disable_ipv6", "1" },
	{ NULL, NULL },
};

/* ... or have what they are given, at once, and say nothing unasked (net/sysctl.py QUIET_IPV6). */
static const struct knob quiet[] = {
	{ DEVICES_TO_COME "accept_ra", "0" },
	{ DEVICES_TO_COME "accept_dad", "0" },
	{ DEVICES_TO_COME "addr_gen_mode", "1" },
	{ DEVICES_TO_COME "disable_ipv6", "0" },
	{ NULL, NULL },
};

static int turn(const struct request *request, const struct knob *knob)
{
	for (; knob->path != NULL; knob++) {
		/* Follows the calling thread's namespace.  Without the file the kernel has no IPv6. */
		int file = open(knob->path, O_WRONLY | O_CLOEXEC);
		ssize_t written;

		if (file < 0 && errno == ENOENT && !request->ipv6)
			return 0;
		written = file < 0 ? -1 : write(file, knob->value, 1);
		if (written != 1)
			return report_error(request, CNI_IO_FAILURE, "cannot write %s in %s: %s",
					    knob->path, request->netns, strerror(errno));
		close(file);
	}
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
	if (strcmp(request->command, "ADD") == 0) {
		int failed = turn(request, request->ipv6 ? quiet : none);

		if (failed)
			return failed;
	}
	sandbox->netlink = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (sandbox->netlink < 0)
		return report_error(request, CNI_IO_FAILURE, "no netlink socket in %s: %s",
				    request->netns, strerror(errno));
	return 0;
}
