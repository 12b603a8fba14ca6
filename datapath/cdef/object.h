/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Objects, their programs and maps, before and after load. */

/* An object compiled into this extension. */
struct cil_embedded {
	const char *name;
	const void *data;
	size_t size;
	const char *sha256;
};

int cil_embedded_at(unsigned int index, struct cil_embedded *found);
const char *cil_embedded_abi_hash(void);

struct cil_variable {
	void *data;
	uint32_t size;
};

struct bpf_object *cil_object_open(const char *name, const void *data, size_t size);
int cil_object_config(struct bpf_object *object, const char *name, struct cil_variable *found);
int cil_program_attach_type(const struct bpf_program *program);
int cil_map_declared(const struct bpf_map *map, struct cil_map_info *info);
