// SPDX-License-Identifier: Apache-2.0
/*
 * One request: namespace, agent, answer.
 *
 * ADD waits for an agent that is starting.  DEL does not need one: the pod is gone either way, and
 * a runtime that cannot delete is stuck with it.
 */
#include <errno.h>
#include <string.h>

#include "cni.h"

#define ADD_PATIENCE_MS 30000
/* An agent that restarts listens again within seconds, but nobody has to wait for that. */
#define DEL_PATIENCE_MS 200

static bool is(const struct request *request, const char *command)
{
	return strcmp(request->command, command) == 0;
}

static int version(const struct request *request)
{
	printf("{\"cniVersion\":");
	json_quote(stdout, request->version);
	printf(",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n");
	return 0;
}

/* There was no agent, or none that answered: errno says why. */
static int away(const struct request *request)
{
	const char *reason = strerror(errno);

	report_log(request, "debug", "no answer from %s: %s", request->socket, reason);
	if (is(request, "DEL"))
		return queue_add(request);
	return report_error(request,
			    is(request, "STATUS") ? CNI_NOT_AVAILABLE : CNI_TRY_AGAIN_LATER,
			    "the agent does not answer on %s (%s); is the cilium pod of this node "
			    "running?",
			    request->socket, reason);
}

static int deliver(const struct request *request, const struct sandbox *sandbox)
{
	unsigned int patience = is(request, "ADD") ? ADD_PATIENCE_MS :
				is(request, "DEL") ? DEL_PATIENCE_MS :
						     0;
	struct answer answer = { 0 };
	int agent = client_connect(request->socket, patience);

	if (agent < 0 || !client_send(agent, request, sandbox) || !client_receive(agent, &answer))
		return away(request);
	/* An agent that is ending takes no more requests. */
	if (is(request, "DEL") && answer.code == CNI_TRY_AGAIN_LATER)
		return queue_add(request);
	fwrite(answer.text, 1, answer.size, stdout);
	report_log(request, answer.code == CNI_OK ? "debug" : "error",
		   "answered with code %d: %.*s", answer.code, (int)answer.size, answer.text);
	return answer.code != CNI_OK;
}

int main(void)
{
	struct sandbox sandbox = { .netns = -1, .netlink = -1 };
	struct request request;
	int failed = request_read(&request);

	if (!failed && (is(&request, "ADD") || is(&request, "CHECK")))
		failed = sandbox_open(&request, &sandbox);
	if (!failed)
		failed = is(&request, "VERSION") ? version(&request) : deliver(&request, &sandbox);
	return fflush(stdout) == 0 ? failed : 1;
}
