// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The C half of ciliumd.bpf: the calls of libbpf whose option structs or va_lists do not travel
 * through cffi, and the two loops that must not run in Python (ring buffer, mapped words).
 * Included by the source that build/cffi_build.py writes, after the declarations beside it.
 */

/* ---- log --------------------------------------------------------------------------------- */

static __thread struct {
	char *text;
	size_t used;
	size_t room;
} cil_log;

static int cil_log_print(enum libbpf_print_level level, const char *format, va_list args)
{
	va_list again;
	int length;

	if (level == LIBBPF_DEBUG)
		return 0;
	va_copy(again, args);
	length = vsnprintf(NULL, 0, format, again);
	va_end(again);
	if (length <= 0)
		return 0;
	if (cil_log.used + length + 1 > cil_log.room) {
		size_t room = 2 * cil_log.room + length + 1;
		char *text = realloc(cil_log.text, room);

		if (!text)
			return 0;
		cil_log.text = text;
		cil_log.room = room;
	}
	vsnprintf(cil_log.text + cil_log.used, length + 1, format, args);
	cil_log.used += length;
	return length;
}

void cil_log_install(void)
{
	libbpf_set_print(cil_log_print);
}

void cil_log_clear(void)
{
	free(cil_log.text);
	memset(&cil_log, 0, sizeof(cil_log));
}

const char *cil_log_text(void)
{
	return cil_log.text ? cil_log.text : "";
}

/* ---- objects ----------------------------------------------------------------------------- */

struct bpf_object *cil_object_open(const char *name, const void *data, size_t size)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts, .object_name = name);

	return bpf_object__open_mem(data, size, &opts);
}

/* Where a read-only variable lies in the image the object will be loaded with. */
int cil_object_config(struct bpf_object *object, const char *name, struct cil_variable *found)
{
	const struct btf *btf = bpf_object__btf(object);
	const struct btf_type *section;
	const struct btf_var_secinfo *info;
	struct bpf_map *map = NULL;
	size_t size = 0;
	char *image = NULL;
	__s32 id;
	int i;

	id = btf ? btf__find_by_name_kind(btf, ".rodata", BTF_KIND_DATASEC) : -ENOENT;
	if (id < 0)
		return -ENOENT;
	while ((map = bpf_object__next_map(object, map))) {
		const char *suffix = strrchr(bpf_map__name(map), '.');

		if (bpf_map__is_internal(map) && suffix && !strcmp(suffix, ".rodata"))
			image = bpf_map__initial_value(map, &size);
	}
	if (!image)
		return -ENOENT;
	section = btf__type_by_id(btf, id);
	info = btf_var_secinfos(section);
	for (i = 0; i < btf_vlen(section); i++, info++) {
		const struct btf_type *var = btf__type_by_id(btf, info->type);

		if (strcmp(btf__name_by_offset(btf, var->name_off), name))
			continue;
		if (info->offset + info->size > size)
			return -ERANGE;
		found->data = image + info->offset;
		found->size = info->size;
		return 0;
	}
	return -ENOENT;
}

int cil_program_attach_type(const struct bpf_program *program)
{
	return bpf_program__expected_attach_type(program);
}

int cil_map_declared(const struct bpf_map *map, struct cil_map_info *info)
{
	memset(info, 0, sizeof(*info));
	info->type = bpf_map__type(map);
	info->key_size = bpf_map__key_size(map);
	info->value_size = bpf_map__value_size(map);
	info->max_entries = bpf_map__max_entries(map);
	info->flags = bpf_map__map_flags(map);
	return 0;
}

/* ---- maps -------------------------------------------------------------------------------- */

int cil_map_create(uint32_t type, const char *name, uint32_t key_size, uint32_t value_size,
		   uint32_t max_entries, uint32_t flags)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = flags);

	return bpf_map_create(type, name, key_size, value_size, max_entries, &opts);
}

int cil_map_info(int fd, struct cil_map_info *info)
{
	struct bpf_map_info kernel = {};
	__u32 size = sizeof(kernel);
	int err = bpf_map_get_info_by_fd(fd, &kernel, &size);

	if (err)
		return err;
	info->type = kernel.type;
	info->id = kernel.id;
	info->key_size = kernel.key_size;
	info->value_size = kernel.value_size;
	info->max_entries = kernel.max_entries;
	info->flags = kernel.map_flags;
	memcpy(info->name, kernel.name, sizeof(info->name));
	return 0;
}

int cil_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
			 uint32_t *count)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);

	return bpf_map_lookup_batch(fd, in_batch, out_batch, keys, values, count, &opts);
}

int cil_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count,
			 uint64_t flags)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts, .elem_flags = flags);

	return bpf_map_update_batch(fd, keys, values, count, &opts);
}

int cil_map_delete_batch(int fd, const void *keys, uint32_t *count)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);

	return bpf_map_delete_batch(fd, keys, count, &opts);
}

uint64_t *cil_words_map(int fd, size_t count)
{
	void *mapped =
		mmap(NULL, count * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return mapped == MAP_FAILED ? NULL : mapped;
}

void cil_words_unmap(uint64_t *words, size_t count)
{
	munmap(words, count * sizeof(uint64_t));
}

uint64_t cil_word_load(const uint64_t *words, size_t index)
{
	return __atomic_load_n(&words[index], __ATOMIC_ACQUIRE);
}

void cil_word_store(uint64_t *words, size_t index, uint64_t value)
{
	__atomic_store_n(&words[index], value, __ATOMIC_RELEASE);
}

/* ---- programs ---------------------------------------------------------------------------- */

int cil_prog_info(int fd, struct cil_prog_info *info)
{
	struct bpf_prog_info kernel = {};
	__u32 size = sizeof(kernel);
	int err = bpf_prog_get_info_by_fd(fd, &kernel, &size);

	if (err)
		return err;
	info->type = kernel.type;
	info->id = kernel.id;
	info->verified_insns = kernel.verified_insns;
	info->xlated_len = kernel.xlated_prog_len;
	info->jited_len = kernel.jited_prog_len;
	info->run_time_ns = kernel.run_time_ns;
	info->run_cnt = kernel.run_cnt;
	memcpy(info->name, kernel.name, sizeof(info->name));
	return 0;
}

int cil_prog_test_run(int fd, struct cil_test_run *run)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = run->data_in, .data_out = run->data_out,
		    .data_size_in = run->data_size_in, .data_size_out = run->data_size_out,
		    .ctx_in = run->ctx_in, .ctx_out = run->ctx_out, .ctx_size_in = run->ctx_size_in,
		    .ctx_size_out = run->ctx_size_out, .repeat = run->repeat);
	int err = bpf_prog_test_run_opts(fd, &opts);

	run->data_size_out = opts.data_size_out;
	run->ctx_size_out = opts.ctx_size_out;
	run->retval = opts.retval;
	run->duration = opts.duration;
	return err;
}

/* A tc program that lets everything pass: what a feature is probed with. */
int cil_prog_load_pass(void)
{
	const struct bpf_insn insns[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = -1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};

	return bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "cil_pass", "GPL", insns, 2, NULL);
}

int cil_enable_run_time_stats(void)
{
	return bpf_enable_stats(BPF_STATS_RUN_TIME);
}

/* ---- links ------------------------------------------------------------------------------- */

int cil_link_create(int prog_fd, int target, int attach_type)
{
	return bpf_link_create(prog_fd, target, attach_type, NULL);
}

int cil_link_update(int link_fd, int prog_fd)
{
	return bpf_link_update(link_fd, prog_fd, NULL);
}

/* struct bpf_link_info of the kernel, as far as it is read here. */
struct cil_kernel_link_info {
	__u32 type;
	__u32 id;
	__u32 prog_id;
	__u32 pad;
	union {
		struct {
			__u32 ifindex;
			__u32 attach_type;
		} tcx;
		struct {
			__u64 cgroup_id;
			__u32 attach_type;
		} cgroup;
		char room[64];
	};
};

int cil_link_info(int fd, struct cil_link_info *info)
{
	struct cil_kernel_link_info kernel = {};
	__u32 size = sizeof(kernel);
	int err = bpf_obj_get_info_by_fd(fd, &kernel, &size);

	if (err)
		return err;
	memset(info, 0, sizeof(*info));
	info->type = kernel.type;
	info->id = kernel.id;
	info->prog_id = kernel.prog_id;
	if (kernel.type == CIL_LINK_TYPE_TCX) {
		info->ifindex = kernel.tcx.ifindex;
		info->attach_type = kernel.tcx.attach_type;
	} else if (kernel.type == CIL_LINK_TYPE_CGROUP) {
		info->cgroup_id = kernel.cgroup.cgroup_id;
		info->attach_type = kernel.cgroup.attach_type;
	}
	return 0;
}

/* ---- features ---------------------------------------------------------------------------- */

int cil_has_map_type(int type)
{
	return libbpf_probe_bpf_map_type(type, NULL);
}

int cil_has_prog_type(int type)
{
	return libbpf_probe_bpf_prog_type(type, NULL);
}

int cil_has_helper(int prog_type, int helper)
{
	return libbpf_probe_bpf_helper(prog_type, helper, NULL);
}

/* No device has this index: a kernel with tcx says so, one without refuses the attach type. */
int cil_has_tcx(void)
{
	int prog = cil_prog_load_pass();
	int link;

	if (prog < 0)
		return prog;
	link = bpf_link_create(prog, INT_MAX, CIL_TCX_INGRESS, NULL);
	close(prog);
	if (link >= 0) {
		close(link);
		return -EEXIST;
	}
	return link == -ENODEV ? 1 : link == -EINVAL ? 0 : link;
}

/* Whether the kernel has a function of this name that programs may call, as far as its BTF says. */
int cil_has_function(const char *name)
{
	struct btf *btf = btf__load_vmlinux_btf();
	__s32 id;

	if (!btf)
		return -errno;
	id = btf__find_by_name_kind(btf, name, BTF_KIND_FUNC);
	btf__free(btf);
	return id >= 0 ? 1 : id == -ENOENT ? 0 : id;
}

int cil_is_bpffs(const char *path)
{
	struct statfs fs;

	if (statfs(path, &fs))
		return -errno;
	return fs.f_type == BPF_FS_MAGIC;
}

int cil_mount_bpffs(const char *path)
{
	int err = mount("bpffs", path, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700");

	return err ? -errno : 0;
}

/* ---- ring buffer ------------------------------------------------------------------------- */

struct cil_ring {
	struct ring_buffer *ring;
	uint32_t record_size;
	size_t capacity;
	size_t used;
	uint64_t other;
	char *buffer;
};

static int cil_ring_record(void *context, void *data, size_t size)
{
	struct cil_ring *ring = context;

	if (size != ring->record_size) {
		ring->other++;
		return 0;
	}
	memcpy(ring->buffer + ring->used, data, size);
	ring->used += size;
	/* Stop only after the copy: libbpf has already consumed a record whose callback fails. */
	return ring->used + ring->record_size > ring->capacity ? -ENOBUFS : 0;
}

struct cil_ring *cil_ring_open(int map_fd, uint32_t record_size, uint32_t capacity)
{
	struct cil_ring *ring = calloc(1, sizeof(*ring));

	if (!ring)
		return NULL;
	ring->record_size = record_size;
	ring->capacity = capacity < record_size ? record_size : capacity;
	ring->buffer = malloc(ring->capacity);
	ring->ring = ring->buffer ? ring_buffer__new(map_fd, cil_ring_record, ring, NULL) : NULL;
	if (!ring->ring) {
		int saved = errno;

		free(ring->buffer);
		free(ring);
		errno = saved;
		return NULL;
	}
	return ring;
}

int cil_ring_epoll_fd(const struct cil_ring *ring)
{
	return ring_buffer__epoll_fd(ring->ring);
}

int cil_ring_drain(struct cil_ring *ring, struct cil_ring_drained *drained)
{
	int err;

	ring->used = 0;
	err = ring_buffer__consume(ring->ring);
	drained->data = ring->buffer;
	drained->size = ring->used;
	drained->other = ring->other;
	return err < 0 && err != -ENOBUFS ? err : 0;
}

void cil_ring_close(struct cil_ring *ring)
{
	ring_buffer__free(ring->ring);
	free(ring->buffer);
	free(ring);
}
