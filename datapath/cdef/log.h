/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What libbpf says while it works, kept per thread so that an error can carry it. */

void cil_log_install(void);
void cil_log_clear(void);
const char *cil_log_text(void);
