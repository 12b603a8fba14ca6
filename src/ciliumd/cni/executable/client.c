// SPDX-License-Identifier: Apache-2.0
/*
 * Speaks to the agent (cni/wire.py): a frame is two numbers of four bytes in network order - size,
 * and the code of the answer (0 in a request) - and then so many bytes.  Descriptors come with the
 * first byte of a request.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cni.h"

#define RETRY_MS 50
/* The agent waits for the pod to be known and for its rows; runtimes wait for minutes. */
#define ANSWER_SECONDS 100
#define ANSWER_MAX (1U << 20)
#define DESCRIPTORS 2

struct header {
	uint32_t size;
	uint32_t code;
};

static bool may_come(int error)
{
	return error == ENOENT || error == ECONNREFUSED || error == EAGAIN || error == EINTR;
}

static int try_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval patience = { .tv_sec = ANSWER_SECONDS };
	int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int saved;

	if (agent < 0)
		return -1;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (setsockopt(agent, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) == 0 &&
	    setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) == 0 &&
	    connect(agent, (struct sockaddr *)&address, sizeof(address)) == 0)
		return agent;
	saved = errno;
	close(agent);
	errno = saved;
	return -1;
}

/* A connection, or -1 with errno when there was none in time. */
int client_connect(const char *path, unsigned int patience_ms)
{
	const struct timespec pause = { .tv_nsec = RETRY_MS * 1000000L };

	for (unsigned int waited = 0;; waited += RETRY_MS) {
		int agent = try_connect(path);

		if (agent >= 0 || !may_come(errno) || waited >= patience_ms)
			return agent;
		nanosleep(&pause, NULL);
	}
}

static bool send_all(int agent, const char *data, size_t size, const struct sandbox *sandbox)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(DESCRIPTORS * sizeof(int))];
	} control = { 0 };
	bool with_descriptors = sandbox->netns >= 0;

	while (size > 0) {
		struct iovec part = { .iov_base = (void *)(uintptr_t)data, .iov_len = size };
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
		ssize_t sent;

		if (with_descriptors) {
			const int passed[DESCRIPTORS] = { sandbox->netns, sandbox->netlink };

			control.header.cmsg_level = SOL_SOCKET;
			control.header.cmsg_type = SCM_RIGHTS;
			control.header.cmsg_len = CMSG_LEN(sizeof(passed));
			memcpy(CMSG_DATA(&control.header), passed, sizeof(passed));
			message.msg_control = &control;
			message.msg_controllen = sizeof(control);
		}
		sent = sendmsg(agent, &message, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return false;
		with_descriptors = false;
		data += sent;
		size -= (size_t)sent;
	}
	return true;
}

bool client_send(int agent, const struct request *request, const struct sandbox *sandbox)
{
	struct header header = { 0 };
	char *frame = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&frame, &size);
	bool sent;

	if (out == NULL)
		return false;
	fwrite(&header, sizeof(header), 1, out);
	request_write(out, request);
	if (fclose(out) != 0) {
		free(frame);
		return false;
	}
	header.size = htonl((uint32_t)(size - sizeof(header)));
	memcpy(frame, &header, sizeof(header));
	sent = send_all(agent, frame, size, sandbox);
	free(frame);
	return sent;
}

static bool receive_all(int agent, void *data, size_t size)
{
	char *at = data;

	while (size > 0) {
		ssize_t got = recv(agent, at, size, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got == 0)
			errno = ECONNRESET;
		if (got <= 0)
			return false;
		at += got;
		size -= (size_t)got;
	}
	return true;
}

bool client_receive(int agent, struct answer *answer)
{
	struct header header;

	if (!receive_all(agent, &header, sizeof(header)))
		return false;
	answer->size = ntohl(header.size);
	answer->code = (enum cni_code)ntohl(header.code);
	if (answer->size > ANSWER_MAX) {
		errno = EMSGSIZE;
		return false;
	}
	answer->text = malloc(answer->size + 1);
	return answer->text != NULL && receive_all(agent, answer->text, answer->size);
}
