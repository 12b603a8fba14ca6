// SPDX-License-Identifier: Apache-2.0
/*
 * As much JSON (RFC 8259) as a courier needs: is it an object, what are its own options, and how is
 * a string written.  Everything else in it is for the agent.
 */
#include <ctype.h>
#include <string.h>

#include "cni.h"

#define DEPTH_MAX 64

static const char *skip_value(const char *at, unsigned int depth);

static const char *skip_space(const char *at)
{
	return at + strspn(at, " \t\r\n");
}

/* Each skip_* returns what follows the thing, or NULL when the thing is not there. */
static const char *skip_string(const char *at)
{
	if (*at++ != '"')
		return NULL;
	for (; *at != '"'; at++) {
		if ((unsigned char)*at < 0x20)
			return NULL;
		if (*at != '\\')
			continue;
		at++;
		if (*at == 'u') {
			for (int digit = 0; digit < 4; digit++) {
				if (!isxdigit((unsigned char)*++at))
					return NULL;
			}
		} else if (*at == '\0' || strchr("\"\\/bfnrt", *at) == NULL) {
			return NULL;
		}
	}
	return at + 1;
}

static const char *skip_digits(const char *at)
{
	const char *end = at + strspn(at, "0123456789");

	return end == at ? NULL : end;
}

static const char *skip_number(const char *at)
{
	at += *at == '-';
	at = *at == '0' ? at + 1 : skip_digits(at);
	if (at != NULL && *at == '.')
		at = skip_digits(at + 1);
	if (at != NULL && (*at == 'e' || *at == 'E')) {
		at++;
		at = skip_digits(at + (*at == '+' || *at == '-'));
	}
	return at;
}

static const char *skip_word(const char *at, const char *word)
{
	size_t size = strlen(word);

	return strncmp(at, word, size) == 0 ? at + size : NULL;
}

static const char *skip_key(const char *at)
{
	at = skip_string(at);
	if (at == NULL)
		return NULL;
	at = skip_space(at);
	return *at == ':' ? skip_space(at + 1) : NULL;
}

static const char *skip_members(const char *at, char end, unsigned int depth)
{
	at = skip_space(at + 1);
	if (*at == end)
		return at + 1;
	for (;;) {
		if (end == '}')
			at = skip_key(at);
		if (at != NULL)
			at = skip_value(at, depth);
		if (at == NULL)
			return NULL;
		at = skip_space(at);
		if (*at == end)
			return at + 1;
		if (*at != ',')
			return NULL;
		at = skip_space(at + 1);
	}
}

static const char *skip_value(const char *at, unsigned int depth)
{
	if (depth == DEPTH_MAX)
		return NULL;
	switch (*at) {
	case '{':
		return skip_members(at, '}', depth + 1);
	case '[':
		return skip_members(at, ']', depth + 1);
	case '"':
		return skip_string(at);
	case 't':
		return skip_word(at, "true");
	case 'f':
		return skip_word(at, "false");
	case 'n':
		return skip_word(at, "null");
	default:
		return skip_number(at);
	}
}

bool json_is_object(const char *text)
{
	const char *at = skip_space(text);

	if (*at != '{')
		return false;
	at = skip_value(at, 0);
	return at != NULL && *skip_space(at) == '\0';
}

/* The value of a member of the object, which json_is_object() has found to be one. */
static const char *find(const char *text, const char *key)
{
	const char *at = skip_space(skip_space(text) + 1);
	size_t size = strlen(key);

	while (*at == '"') {
		bool found = strncmp(at + 1, key, size) == 0 && at[size + 1] == '"';

		at = skip_key(at);
		if (found)
			return at;
		at = skip_space(skip_value(at, 1));
		if (*at == ',')
			at = skip_space(at + 1);
	}
	return NULL;
}

/* True when the member is a string without escapes that fits; else *value is untouched. */
bool json_string(const char *text, const char *key, char *value, size_t size)
{
	const char *at = find(text, key);
	size_t length;

	if (at == NULL || *at != '"')
		return false;
	length = strcspn(++at, "\"\\");
	if (at[length] != '"' || length >= size)
		return false;
	memcpy(value, at, length);
	value[length] = '\0';
	return true;
}

bool json_bool(const char *text, const char *key, bool otherwise)
{
	const char *at = find(text, key);

	if (at == NULL || (*at != 't' && *at != 'f'))
		return otherwise;
	return *at == 't';
}

void json_quote(FILE *out, const char *text)
{
	fputc('"', out);
	for (; *text != '\0'; text++) {
		if (*text == '"' || *text == '\\')
			fprintf(out, "\\%c", *text);
		else if ((unsigned char)*text < 0x20)
			fprintf(out, "\\u%04x", (unsigned int)*text);
		else
			fputc(*text, out);
	}
	fputc('"', out);
}
