/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What this kernel offers.  1: yes, 0: no, negative: could not be found out. */

int cil_has_map_type(int type);
int cil_has_prog_type(int type);
int cil_has_helper(int prog_type, int helper);
int cil_has_tcx(void);
int cil_has_function(const char *name);
int cil_is_bpffs(const char *path);
int cil_mount_bpffs(const char *path);
