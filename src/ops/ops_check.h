/**
 * Argument checks of the ops, one per line of XP_OP_LIST: XP_EINVAL names the op and what is wrong.
 * Sizes of 0 pass, and then pointers may be NULL.
 */
#ifndef XP_OPS_OPS_CHECK_H
#define XP_OPS_OPS_CHECK_H

#include "ops/ops.h"

#define XP_CHECK_PROTOTYPE(entry, queued, args_type, check, cuda)                                  \
    XP_NODISCARD xp_status check(const args_type *args);
XP_OP_LIST(XP_CHECK_PROTOTYPE)
#undef XP_CHECK_PROTOTYPE

#endif
