/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Node options: read-only data, set by the agent before load, constant for the verifier, which
 * therefore prunes what is off.  CONFIG(type, name, default, "text") declares cfg_<name> beside
 * the code that uses it; an object carries just the options its programs use, and gen_abi.py
 * lists them, with their text, in abi.CONFIG.  An option cannot size a map.
 */
#ifndef CILIUMD_CONFIG_H
#define CILIUMD_CONFIG_H

#include <linux/types.h>

#define CONFIG(type, name, value, text)                                                            \
	const volatile type cfg_##name __attribute__((btf_decl_tag("doc:" text))) = value

#endif /* CILIUMD_CONFIG_H */
