// SPDX-License-Identifier: Apache-2.0
/* What is told: errors on stdout as the specification wants them, and a log file of our own. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cni.h"

#define LOG_MAX (1 << 20)
#define TEXT_SIZE 512

/* One file before this one is kept.  A log that cannot be written is no reason to fail. */
static int open_log(const char *path)
{
	int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
	struct stat status;
	char before[PATH_SIZE + 2];

	if (file < 0 || fstat(file, &status) != 0 || status.st_size < LOG_MAX)
		return file;
	close(file);
	snprintf(before, sizeof(before), "%s.1", path);
	rename(path, before);
	return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
}

static void write_log(const struct request *request, const char *level, const char *text)
{
	char *line = NULL, now[32] = "";
	size_t size = 0;
	time_t seconds = time(NULL);
	struct tm utc;
	FILE *out;
	int file;

	if (request->log_file[0] == '\0')
		return;
	file = open_log(request->log_file);
	out = file < 0 ? NULL : open_memstream(&line, &size);
	if (out != NULL) {
		if (gmtime_r(&seconds, &utc) != NULL)
			strftime(now, sizeof(now), "%Y-%m-%dT%H:%M:%SZ", &utc);
		fprintf(out, "time=%s level=%s pid=%d command=%s container=%s ifname=%s msg=", now,
			level, (int)getpid(), request->command, request->container_id,
			request->ifname);
		json_quote(out, text);
		fputc('\n', out);
		/* One write, so that lines of many processes do not mix. */
		if (fclose(out) == 0 && write(file, line, size) < 0)
			line[0] = '\0';
		free(line);
	}
	if (file >= 0)
		close(file);
}

/* "debug" lines only where the configuration asks for them. */
void report_log(const struct request *request, const char *level, const char *format, ...)
{
	char text[TEXT_SIZE];
	va_list values;

	if (strcmp(level, "debug") == 0 && !request->debug)
		return;
	va_start(values, format);
	vsnprintf(text, sizeof(text), format, values);
	va_end(values);
	write_log(request, level, text);
}

/* Prints the error and returns what the process exits with. */
int report_error(const struct request *request, enum cni_code code, const char *format, ...)
{
	char text[TEXT_SIZE];
	va_list values;

	va_start(values, format);
	vsnprintf(text, sizeof(text), format, values);
	va_end(values);
	write_log(request, "error", text);
	printf("{\"cniVersion\":");
	json_quote(stdout, request->version);
	printf(",\"code\":%d,\"msg\":", code);
	json_quote(stdout, text);
	printf("}\n");
	return 1;
}
