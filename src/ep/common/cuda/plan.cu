/* The plan kernels where the hosts make the exchanges, or one rank has none to make. */
#include "ep/common/cuda/plan_recv.cuh"

xp_status xp_ep_cuda_count_plan(cudaStream_t stream, const xp_ep_cuda_plan *p) {
    launch_count(stream, p, no_exchange{});
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: counts");
}

xp_status xp_ep_cuda_list_plan(cudaStream_t stream, const xp_ep_cuda_plan *p) {
    launch_list(stream, p, no_exchange{});
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: rows to send");
}

xp_status xp_ep_cuda_place_plan(cudaStream_t stream, const xp_ep_cuda_plan *p) {
    launch_place(stream, p, no_exchange{});
    launch_rounds(stream, p, nullptr, no_exchange{});
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: experts' rows");
}

static __global__ void dest_slots_kernel(const xp_ep_cuda_plan p, const int32_t *starts) {
    if (!is_aborted(p) && p.totals[TOTAL_ROUNDS] > 1)
        set_dest_slots(p, starts);
}

xp_status xp_ep_cuda_set_dest_slots(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                    const int32_t *starts) {
    dest_slots_kernel<<<1, 256, 0, stream>>>(*p, starts);
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: rounds");
}

xp_status xp_ep_cuda_load_plan(void) {
    XP_TRY(load_kernels(place_kernel<no_exchange>, dest_slots_kernel));
    XP_TRY(load_wide_kernel((const void *)count_kernel<no_exchange>));
    XP_TRY(load_wide_kernel((const void *)list_kernel<no_exchange>));
    XP_TRY(load_wide_kernel((const void *)count_rounds_kernel));
    return load_wide_kernel((const void *)place_rounds_kernel<no_exchange>);
}
