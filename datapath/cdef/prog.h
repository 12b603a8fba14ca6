/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Programs by descriptor. */

struct cil_prog_info {
	uint32_t type;
	uint32_t id;
	uint32_t verified_insns;
	uint32_t xlated_len;
	uint32_t jited_len;
	uint64_t run_time_ns;
	uint64_t run_cnt;
	char name[16];
};

struct cil_test_run {
	const void *data_in;
	void *data_out;
	uint32_t data_size_in;
	uint32_t data_size_out;
	const void *ctx_in;
	void *ctx_out;
	uint32_t ctx_size_in;
	uint32_t ctx_size_out;
	uint32_t repeat;
	uint32_t retval;
	uint32_t duration;
};

int cil_prog_info(int fd, struct cil_prog_info *info);
int cil_prog_test_run(int fd, struct cil_test_run *run);
int cil_prog_load_pass(void);
int cil_enable_run_time_stats(void);
