// SPDX-License-Identifier: Apache-2.0
/*
 * DELs the agent was not there for (cni/queue.py reads them).
 *
 * An entry is the name of an empty file, "CONTAINER:IFNAME": it is there or it is not, whenever
 * this process or the machine dies, and three DELs of one attachment are one entry.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cni.h"

/* More than a node has pods; a runtime whose DEL is refused asks again. */
#define ENTRIES_MAX 1024

static bool has_room(int directory)
{
	int again = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = again < 0 ? NULL : fdopendir(again);
	unsigned int entries = 0;

	if (list == NULL) {
		if (again >= 0)
			close(again);
		return false;
	}
	for (struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list))
		entries += entry->d_name[0] != '.';
	closedir(list);
	if (entries < ENTRIES_MAX)
		return true;
	errno = ENOSPC;
	return false;
}

static bool add(const char *path, const char *name)
{
	int directory, entry, saved;
	bool added;

	if (mkdir(path, 0700) != 0 && errno != EEXIST)
		return false;
	directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0)
		return false;
	entry = has_room(directory) ?
			openat(directory, name, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) :
			-1;
	added = entry >= 0 && fsync(entry) == 0 && fsync(directory) == 0;
	saved = errno;
	if (entry >= 0)
		close(entry);
	close(directory);
	errno = saved;
	return added;
}

/* 0, or what the process exits with: then the error is printed. */
int queue_add(const struct request *request)
{
	char name[CONTAINER_ID_MAX + 32];

	snprintf(name, sizeof(name), "%s:%s", request->container_id, request->ifname);
	if (!add(request->queue, name))
		return report_error(request, CNI_TRY_AGAIN_LATER,
				    "the agent is not there, and %s/%s cannot be written: %s",
				    request->queue, name, strerror(errno));
	report_log(request, "info", "queued in %s until the agent is there", request->queue);
	return 0;
}
