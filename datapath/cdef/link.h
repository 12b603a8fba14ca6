/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Links by descriptor. */

/* UAPI numbers younger than the headers of the distributions this is built on. */
#define CIL_TCX_INGRESS 46
#define CIL_TCX_EGRESS 47
#define CIL_LINK_TYPE_CGROUP 3
#define CIL_LINK_TYPE_TCX 11

struct cil_link_info {
	uint32_t type;
	uint32_t id;
	uint32_t prog_id;
	uint32_t ifindex;
	uint32_t attach_type;
	uint64_t cgroup_id;
};

int cil_link_create(int prog_fd, int target, int attach_type);
int cil_link_update(int link_fd, int prog_fd);
int cil_link_info(int fd, struct cil_link_info *info);
