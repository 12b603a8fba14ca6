// SPDX-License-Identifier: Apache-2.0
/* The request as the runtime states it: CNI_* variables and the configuration on stdin. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/if.h>

#include "cni.h"

static const char *variable(const char *name)
{
	const char *value = getenv(name);

	return value == NULL ? "" : value;
}

static bool is(const struct request *request, const char *command)
{
	return strcmp(request->command, command) == 0;
}

/* ADD, DEL and CHECK are about a pod; STATUS, GC and VERSION about the node. */
bool request_names_pod(const struct request *request)
{
	return is(request, "ADD") || is(request, "DEL") || is(request, "CHECK");
}

/* Both are names of files here (queue.c), so the specification's rules are kept to the letter. */
static bool valid_container_id(const char *text)
{
	size_t length = 0;

	for (; text[length] != '\0'; length++) {
		if (!isalnum((unsigned char)text[length]) &&
		    (length == 0 || strchr("_.-", text[length]) == NULL))
			return false;
	}
	return length > 0 && length <= CONTAINER_ID_MAX;
}

static bool valid_ifname(const char *text)
{
	size_t length = strlen(text);

	if (length == 0 || length >= IFNAMSIZ || strcmp(text, ".") == 0 || strcmp(text, "..") == 0)
		return false;
	for (; *text != '\0'; text++) {
		if (*text == '/' || *text == ':' || isspace((unsigned char)*text))
			return false;
	}
	return true;
}

static int check_variables(const struct request *request)
{
	if (!request_names_pod(request) && !is(request, "STATUS") && !is(request, "GC") &&
	    !is(request, "VERSION"))
		return report_error(request, CNI_INVALID_ENVIRONMENT,
				    "CNI_COMMAND is \"%s\", not ADD, DEL, CHECK, STATUS, GC or "
				    "VERSION",
				    request->command);
	if (!request_names_pod(request))
		return 0;
	if (!valid_container_id(request->container_id))
		return report_error(request, CNI_INVALID_ENVIRONMENT,
				    "CNI_CONTAINERID \"%.64s\" is not 1 to %d of A-Z a-z 0-9 _ . - "
				    "that begin with a letter or digit",
				    request->container_id, CONTAINER_ID_MAX);
	if (!valid_ifname(request->ifname))
		return report_error(request, CNI_INVALID_ENVIRONMENT,
				    "CNI_IFNAME \"%.64s\" is no name of a device", request->ifname);
	if (!is(request, "DEL") && *request->netns == '\0')
		return report_error(request, CNI_INVALID_ENVIRONMENT, "CNI_NETNS is missing");
	return 0;
}

static bool read_config(struct request *request)
{
	request->config = malloc(CONFIG_MAX + 1);
	while (request->config != NULL && request->config_size <= CONFIG_MAX) {
		ssize_t got = read(STDIN_FILENO, request->config + request->config_size,
				   CONFIG_MAX + 1 - request->config_size);

		if (got == 0) {
			request->config[request->config_size] = '\0';
			return true;
		}
		if (got > 0)
			request->config_size += (size_t)got;
		else if (errno != EINTR)
			return false;
	}
	errno = request->config == NULL ? ENOMEM : EFBIG;
	return false;
}

static int read_options(struct request *request)
{
	const char *config = request->config;

	/* A NUL would hide what follows it from us, and not from the agent. */
	if (strlen(config) != request->config_size || !json_is_object(config))
		return report_error(request, CNI_DECODING_FAILURE,
				    "the network configuration on stdin is no JSON object");
	json_string(config, "cniVersion", request->version, sizeof(request->version));
	json_string(config, "cni-socket", request->socket, sizeof(request->socket));
	json_string(config, "delete-queue", request->queue, sizeof(request->queue));
	json_string(config, "log-file", request->log_file, sizeof(request->log_file));
	request->debug = json_bool(config, "enable-debug", false);
	request->ipv6 = json_bool(config, "enable-ipv6", false);
	return 0;
}

/* 0, or what the process exits with: then the error is printed. */
int request_read(struct request *request)
{
	int failed;

	*request = (struct request){
		.command = variable("CNI_COMMAND"),
		.container_id = variable("CNI_CONTAINERID"),
		.netns = variable("CNI_NETNS"),
		.ifname = variable("CNI_IFNAME"),
		.args = variable("CNI_ARGS"),
		.path = variable("CNI_PATH"),
		.version = CNI_NEWEST_VERSION,
		.socket = DEFAULT_SOCKET,
		.queue = DEFAULT_QUEUE,
	};
	failed = check_variables(request);
	if (failed)
		return failed;
	if (!read_config(request))
		return report_error(request, CNI_IO_FAILURE,
				    "cannot read the network configuration from stdin: %s",
				    strerror(errno));
	/* Runtimes ask for the version with and without a configuration. */
	if (is(request, "VERSION") && request->config_size == 0)
		return 0;
	return read_options(request);
}

/* For the agent (cni/request.py). */
void request_write(FILE *out, const struct request *request)
{
	const struct {
		const char *name;
		const char *value;
	} members[] = {
		{ "command", request->command }, { "container_id", request->container_id },
		{ "netns", request->netns },	 { "ifname", request->ifname },
		{ "args", request->args },	 { "path", request->path },
	};

	fputc('{', out);
	for (size_t index = 0; index < sizeof(members) / sizeof(*members); index++) {
		json_quote(out, members[index].name);
		fputc(':', out);
		json_quote(out, members[index].value);
		fputc(',', out);
	}
	fprintf(out, "\"config\":%s}", request->config);
}
