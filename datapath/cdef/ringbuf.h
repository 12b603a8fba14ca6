/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Records of a ring buffer, copied by C into one buffer per drain. */

struct cil_ring;

struct cil_ring_drained {
	const void *data;
	size_t size;
	uint64_t other; /* records of another size since the ring was opened; not copied */
};

struct cil_ring *cil_ring_open(int map_fd, uint32_t record_size, uint32_t capacity);
int cil_ring_epoll_fd(const struct cil_ring *ring);
int cil_ring_drain(struct cil_ring *ring, struct cil_ring_drained *drained);
void cil_ring_close(struct cil_ring *ring);
