/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Maps by descriptor.  Every function returns a negative errno on failure. */

struct cil_map_info {
	uint32_t type;
	uint32_t id;
	uint32_t key_size;
	uint32_t value_size;
	uint32_t max_entries;
	uint32_t flags;
	char name[16];
};

int cil_map_create(uint32_t type, const char *name, uint32_t key_size, uint32_t value_size,
		   uint32_t max_entries, uint32_t flags);
int cil_map_info(int fd, struct cil_map_info *info);

/* *count: capacity in, elements done out, also when it fails. */
int cil_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
			 uint32_t *count);
int cil_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count,
			 uint64_t flags);
int cil_map_delete_batch(int fd, const void *keys, uint32_t *count);

/* A mapped array of u64, read and written with single aligned accesses. */
uint64_t *cil_words_map(int fd, size_t count);
void cil_words_unmap(uint64_t *words, size_t count);
uint64_t cil_word_load(const uint64_t *words, size_t index);
void cil_word_store(uint64_t *words, size_t index, uint64_t value);
