/* Where the elements of the flat buffers are. */
#include "parallel/shard_internal.h"

char *xp_shard_param_at(const xp_shard *shard, int64_t element) {
    return (char *)shard->args.params + (size_t)element * xp_dtype_bytes(shard->args.param_dtype);
}

char *xp_shard_grad_at(const xp_shard *shard, int64_t element) {
    return (char *)shard->args.grads + (size_t)element * xp_dtype_bytes(shard->args.grad_dtype);
}

bool xp_shard_owns_masters(const xp_shard *shard) {
    return shard->args.param_dtype != XP_F32;
}
