/* Which provider makes a device. */
#include "device/device_internal.h"
#include "device/plugin.h"

xp_status xp_device_create(const xp_device_args *args, xp_device **device) {
    xp_device *made = NULL;
    const xp_cuda_backend *cuda;
    switch (args->kind) {
    case XP_DEVICE_CPU:
        XP_TRY(xp_cpu_device_create(args, &made));
        break;
    case XP_DEVICE_NULL:
        XP_TRY(xp_null_device_create(args, &made));
        break;
    case XP_DEVICE_CUDA:
        XP_TRY(xp_cuda_backend_get(&cuda));
        XP_TRY(cuda->device_create(args, &made));
        break;
    default:
        return xp_error(XP_EINVAL, "device: %d is no kind of device", (int)args->kind);
    }
    made->kind = args->kind;
    if (args->kind != XP_DEVICE_NULL)
        made->like = args->kind;
    made->hides_memory = made->hides_memory || args->kind != XP_DEVICE_CPU;
    pthread_mutex_init(&made->lock, NULL);
    *device = made;
    return XP_OK;
}
