/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cilium-cni: carries a CNI request (spec 1.1.0 and before) from the container runtime to the agent.
 *
 * It knows nothing of networks.  What needs the rights of the host is done here - entering the
 * pod's namespace - and the agent gets descriptors instead of paths: it may see other mounts than
 * the runtime does, and needs no CAP_SYS_ADMIN.
 */
#ifndef CILIUM_CNI_H
#define CILIUM_CNI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CNI_NEWEST_VERSION "1.1.0"
#define DEFAULT_SOCKET "/var/run/cilium/cni.sock"
#define DEFAULT_QUEUE "/var/run/cilium/deleteQueue"
#define CONFIG_MAX (1U << 20)
#define CONTAINER_ID_MAX 200
#define PATH_SIZE 108 /* what a unix socket's address holds */

/* Well-known error codes of the specification; 100 and above are the plugin's own. */
enum cni_code {
	CNI_OK = 0,
	CNI_INVALID_ENVIRONMENT = 4,
	CNI_IO_FAILURE = 5,
	CNI_DECODING_FAILURE = 6,
	CNI_INVALID_CONFIG = 7,
	CNI_TRY_AGAIN_LATER = 11,
	/* No ADD is possible; pods that exist keep their connectivity without the agent (not 51). */
	CNI_NOT_AVAILABLE = 50,
};

struct request {
	const char *command;
	const char *container_id;
	const char *netns;
	const char *ifname;
	const char *args;
	const char *path;
	char *config; /* what stdin had, ends with NUL */
	size_t config_size;
	char version[16]; /* cniVersion of config */
	char socket[PATH_SIZE];
	char queue[PATH_SIZE];
	char log_file[PATH_SIZE];
	bool debug;
	bool ipv6; /* the pod may have IPv6 */
};

/* What the agent said: text is CNI's JSON, code the error's code in it. */
struct answer {
	enum cni_code code;
	char *text;
	size_t size;
};

/* Descriptors of a pod's namespace; -1 where there is none. */
struct sandbox {
	int netns;
	int netlink;
};

/* json.c */
bool json_is_object(const char *text);
bool json_string(const char *text, const char *key, char *value, size_t size);
bool json_bool(const char *text, const char *key, bool otherwise);
void json_quote(FILE *out, const char *text);

/* request.c */
int request_read(struct request *request);
void request_write(FILE *out, const struct request *request);
bool request_names_pod(const struct request *request);

/* report.c */
void report_log(const struct request *request, const char *level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
int report_error(const struct request *request, enum cni_code code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* netns.c */
int sandbox_open(const struct request *request, struct sandbox *sandbox);

/* client.c */
int client_connect(const char *path, unsigned int patience_ms);
bool client_send(int agent, const struct request *request, const struct sandbox *sandbox);
bool client_receive(int agent, struct answer *answer);

/* queue.c */
int queue_add(const struct request *request);

#endif
