/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is called of libbpf itself, as its headers declare it.  Functions that return int return a
 * negative errno on failure; those that return a pointer return NULL and set errno.
 */

struct bpf_object;
struct bpf_program;
struct bpf_map;

/* Objects. */
int bpf_object__load(struct bpf_object *object);
void bpf_object__close(struct bpf_object *object);

struct bpf_program *bpf_object__next_program(const struct bpf_object *object,
					     struct bpf_program *previous);
const char *bpf_program__name(const struct bpf_program *program);
const char *bpf_program__section_name(const struct bpf_program *program);
bool bpf_program__autoload(const struct bpf_program *program);
int bpf_program__set_autoload(struct bpf_program *program, bool autoload);
int bpf_program__set_log_level(struct bpf_program *program, uint32_t log_level);
int bpf_program__set_log_buf(struct bpf_program *program, char *log_buf, size_t log_size);
int bpf_program__fd(const struct bpf_program *program);

struct bpf_map *bpf_object__next_map(const struct bpf_object *object, const struct bpf_map *map);
const char *bpf_map__name(const struct bpf_map *map);
bool bpf_map__is_internal(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, uint32_t max_entries);
int bpf_map__set_pin_path(struct bpf_map *map, const char *path);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);

/* Maps by descriptor. */
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_freeze(int fd);
int bpf_map_get_fd_by_id(uint32_t id);
int bpf_prog_get_fd_by_id(uint32_t id);
int libbpf_num_possible_cpus(void);

/* Pins. */
int bpf_obj_pin(int fd, const char *path);
int bpf_obj_get(const char *path);

int bpf_link_detach(int fd);

/* What an iterator's link walks through, in the network namespace of the calling thread. */
int bpf_iter_create(int link_fd);
