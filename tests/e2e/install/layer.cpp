// An outsider's program: one MoE layer through the installed library. Prints the library's version.
#include <expar/expar.h>

#include <cmath>
#include <cstdio>
#include <vector>

static int complain(const char *what) {
    std::fprintf(stderr, "%s: %s\n", what, xp_last_error());
    return 1;
}

static int forward(xp_device *device, xp_stream *stream, xp_moe *moe) {
    constexpr int64_t tokens = 6, dim = 16;
    if (xp_moe_init_params(moe, 1, 0.02F, 0.02F) != XP_OK)
        return complain("init");
    void *x_data = nullptr, *out_data = nullptr;
    const size_t bytes = tokens * dim * sizeof(float);
    if (xp_device_alloc(device, bytes, "x", &x_data) != XP_OK ||
        xp_device_alloc(device, bytes, "x", &out_data) != XP_OK)
        return complain("alloc");
    std::vector<float> host(tokens * dim, 0.5F);
    const xp_tensor x = xp_tensor_2d(x_data, XP_F32, tokens, dim);
    xp_tensor out = xp_tensor_2d(out_data, XP_F32, tokens, dim);
    int failed = 0;
    if (xp_copy(stream, x_data, host.data(), bytes) != XP_OK ||
        xp_moe_forward(moe, &x, &out, true, stream) != XP_OK ||
        xp_copy(stream, host.data(), out_data, bytes) != XP_OK || xp_stream_sync(stream) != XP_OK)
        failed = complain("forward");
    double sum = 0;
    for (float value : host)
        sum += std::fabs(value);
    if (!failed && !(sum > 0 && std::isfinite(sum))) {
        std::fprintf(stderr, "the layer's output is %g\n", sum);
        failed = 1;
    }
    xp_device_free(device, out_data);
    xp_device_free(device, x_data);
    return failed;
}

int main() {
    if (xp_version_number() != XP_VERSION_NUMBER)
        return 1;
    xp_device_args device_args = {};
    device_args.n_threads = 1;
    xp_moe_args args = {};
    args.num_experts = 4;
    args.top_k = 2;
    args.dim = 16;
    args.moe_dim = 8;
    args.max_tokens = 6;
    xp_device *device = nullptr;
    xp_stream *stream = nullptr;
    xp_moe *moe = nullptr;
    if (xp_device_create(&device_args, &device) != XP_OK ||
        xp_stream_create(device, XP_STREAM_COMPUTE, &stream) != XP_OK ||
        xp_moe_create(&args, nullptr, device, &moe) != XP_OK)
        return complain("create");
    const int failed = forward(device, stream, moe);
    xp_moe_destroy(moe);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    if (!failed)
        std::printf("expar %s\n", xp_version());
    return failed;
}
