"""The C declarations that this package uses, from include/expar/*.h. tests/python/test_layout.py compares the structs
with the compiler's."""
import ctypes
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_double, c_int, c_int64, c_size_t, c_void_p

# enums
DEVICE_CPU, DEVICE_CUDA = 0, 1
F32, BF16 = 0, 1

c_void_pp = POINTER(c_void_p)


# Zeros past the end of structs that the library reads or fills through a pointer: a field that a newer library has at the end
# gets its default.
SPARE = [("spare", ctypes.c_char * 128)]


class Tensor(ctypes.Structure):
    """xp_tensor"""
    _fields_ = [("data", c_void_p), ("dtype", c_int), ("n_dims", c_int), ("shape", c_int64 * 4)]


class DeviceArgs(ctypes.Structure):
    """xp_device_args"""
    _fields_ = [("kind", c_int), ("index", c_int), ("n_threads", c_int), ("caps", c_char_p), ("like", c_int),
                ("total_bytes", c_int64)] + SPARE


class SiluGateProbCall(ctypes.Structure):
    """xp_silu_gate_prob_call"""
    _fields_ = [("n_rows", c_int64), ("dim", c_int64), ("dtype", c_int), ("x1", c_void_p), ("x2", c_void_p), ("ld", c_int64),
                ("prob", c_void_p), ("n_rows_device", c_void_p), ("out", c_void_p)]


class SiluGateProbBackwardCall(ctypes.Structure):
    """xp_silu_gate_prob_backward_call"""
    _fields_ = [("forward", SiluGateProbCall), ("dout", c_void_p), ("dx1", c_void_p), ("dx2", c_void_p), ("ld_grad", c_int64),
                ("dprob", c_void_p)]


class GroupedGemmCall(ctypes.Structure):
    """xp_grouped_gemm_call"""
    _fields_ = [("n_experts", c_int64), ("max_rows", c_int64), ("n", c_int64), ("k", c_int64), ("dtype", c_int),
                ("offsets", c_void_p), ("x", c_void_p), ("x_gather", c_void_p), ("w", c_void_p), ("dy", c_void_p),
                ("dy_gather", c_void_p), ("out", c_void_p), ("out_dtype", c_int), ("accumulate", c_bool)] + SPARE


ALL_GATHER = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_size_t)
BARRIER = CFUNCTYPE(c_int, c_void_p)
ALL_TO_ALLV = CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(c_int64), POINTER(c_int64), c_void_p, POINTER(c_int64),
                        POINTER(c_int64))


class CommCallbacks(ctypes.Structure):
    """xp_comm_callbacks"""
    _fields_ = [("rank", c_int), ("size", c_int), ("context", c_void_p), ("all_gather", ALL_GATHER), ("barrier", BARRIER),
                ("all_to_allv", ALL_TO_ALLV), ("timeout_s", c_double)] + SPARE


class EpConfig(ctypes.Structure):
    """xp_ep_config"""
    _fields_ = [("max_tokens", c_int64), ("dim", c_int64), ("top_k", c_int), ("n_experts", c_int), ("dtype", c_int),
                ("capacity_factor", c_double), ("transport", c_int), ("num_sms", c_int), ("timeout_s", c_double),
                ("n_slots", c_int), ("n_ranks", c_int), ("n_nodes", c_int), ("separate_processes", c_bool),
                ("on_gpu", c_bool), ("shares_gpus", c_bool), ("host_synchronized", c_bool), ("send_copies", c_int)] + SPARE


class EpSizes(ctypes.Structure):
    """xp_ep_sizes"""
    _fields_ = [("recv_capacity", c_int64), ("assignment_capacity", c_int64), ("max_rounds", c_int64),
                ("group_bytes", c_size_t), ("plan_bytes", c_size_t)]


class EpCounts(ctypes.Structure):
    """xp_ep_counts"""
    _fields_ = [("n_rounds", c_int64), ("expert_tokens", POINTER(c_int64)), ("n_recv", c_int64), ("n_assignments", c_int64)] + SPARE


class EpView(ctypes.Structure):
    """xp_ep_view"""
    _fields_ = [("offsets", c_void_p), ("gather", c_void_p), ("weight", c_void_p), ("n_recv", c_void_p),
                ("own_rows", c_void_p), ("own_token", c_void_p)] + SPARE


class EpStats(ctypes.Structure):
    """xp_ep_stats"""
    _fields_ = [("bytes_sent_remote", c_int64), ("bytes_kept", c_int64), ("n_dispatches", c_int64), ("n_combines", c_int64),
                ("n_host_waits", c_int64), ("overflow_rows", c_int64), ("wait_s", c_double)] + SPARE


# C name of each struct above, for the test
STRUCTS = {
    "xp_tensor": Tensor,
    "xp_device_args": DeviceArgs,
    "xp_silu_gate_prob_call": SiluGateProbCall,
    "xp_silu_gate_prob_backward_call": SiluGateProbBackwardCall,
    "xp_grouped_gemm_call": GroupedGemmCall,
    "xp_comm_callbacks": CommCallbacks,
    "xp_ep_config": EpConfig,
    "xp_ep_sizes": EpSizes,
    "xp_ep_counts": EpCounts,
    "xp_ep_view": EpView,
    "xp_ep_stats": EpStats,
}

# name: (result, arguments)
FUNCTIONS = {
    "xp_version": (c_char_p, []),
    "xp_last_error": (c_char_p, []),
    "xp_device_create": (c_int, [POINTER(DeviceArgs), c_void_pp]),
    "xp_device_destroy": (None, [c_void_p]),
    "xp_stream_from_native": (c_int, [c_void_p, c_void_p, c_void_pp]),
    "xp_stream_destroy": (None, [c_void_p]),
    "xp_silu_gate_prob_path": (c_int, [c_void_p]),
    "xp_silu_gate_prob": (c_int, [POINTER(SiluGateProbCall), c_void_p, POINTER(c_int)]),
    "xp_silu_gate_prob_backward": (c_int, [POINTER(SiluGateProbBackwardCall), c_void_p, POINTER(c_int)]),
    "xp_grouped_gemm_forward": (c_int, [POINTER(GroupedGemmCall), c_void_p]),
    "xp_grouped_gemm_dgrad": (c_int, [POINTER(GroupedGemmCall), c_void_p]),
    "xp_grouped_gemm_wgrad": (c_int, [POINTER(GroupedGemmCall), c_void_p]),
    "xp_copy": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t]),
    "xp_comm_from_callbacks": (c_int, [POINTER(CommCallbacks), c_void_pp]),
    "xp_comm_destroy": (None, [c_void_p]),
    "xp_comm_async_error": (c_int, [c_void_p]),
    "xp_ep_group_create": (c_int, [c_void_p, c_void_p, POINTER(EpConfig), c_void_pp]),
    "xp_ep_group_destroy": (None, [c_void_p]),
    "xp_ep_group_sizes": (EpSizes, [c_void_p]),
    "xp_ep_group_transport": (c_int, [c_void_p]),
    "xp_ep_group_is_local": (c_bool, [c_void_p]),
    "xp_ep_plan_create": (c_int, [c_void_p, c_void_pp]),
    "xp_ep_plan_destroy": (None, [c_void_p]),
    "xp_ep_plan_build": (c_int, [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
    "xp_ep_plan_wait": (c_int, [c_void_p, POINTER(EpCounts)]),
    "xp_ep_plan_view": (c_int, [c_void_p, c_int64, POINTER(EpView)]),
    "xp_ep_dispatch": (c_int, [c_void_p, c_void_p, c_int64, POINTER(Tensor), POINTER(Tensor), c_void_p]),
    "xp_ep_combine": (c_int, [c_void_p, c_void_p, c_int64, POINTER(Tensor), POINTER(Tensor), c_void_p]),
    "xp_ep_dispatch_backward": (c_int, [c_void_p, c_void_p, c_int64, POINTER(Tensor), c_void_p, POINTER(Tensor), c_void_p,
                                        c_void_p]),
    "xp_ep_combine_backward": (c_int, [c_void_p, c_void_p, c_int64, POINTER(Tensor), POINTER(Tensor), c_void_p]),
    "xp_ep_async_error": (c_int, [c_void_p]),
    "xp_ep_get_stats": (None, [c_void_p, POINTER(EpStats)]),
    "xp_ep_reset_stats": (None, [c_void_p]),
}
