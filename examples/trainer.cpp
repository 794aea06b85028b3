/*
 * A trainer of its own that takes its MoE layer from expar: it has its MPI, its streams, its memory
 * and its optimizer, and lends them to the library.
 *
 *   c++ -std=c++17 trainer.cpp $(pkg-config --cflags --libs expar) $(pkg-config --variable=rpath expar) \
 *       $(mpicxx --showme:compile) $(mpicxx --showme:link) -o trainer
 *   mpirun -n 4 ./trainer 2            # 4 ranks, experts over 2 of them, so two copies of the layer
 *
 * With -DTRAINER_CUDA and -lcudart each rank takes a GPU. The model is one layer that learns to
 * turn its rows round; the loss must fall to a tenth.
 */
#include <expar/expar.h>

#define OMPI_SKIP_MPICXX 1 // not the old C++ bindings
#include <mpi.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

constexpr int64_t T = 64, D = 16; // tokens of a rank and step, width of a row
constexpr int E = 8, K = 2, STEPS = 300;
constexpr float RATE = 0.03F, MOMENTUM = 0.9F;

// The program's way to end: the library never exits, aborts or prints.
static void check(xp_status status, const char *what) {
    if (status == XP_OK)
        return;
    std::fprintf(stderr, "%s: %s\n", what, xp_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

/* ---- the program's device: memory and streams ------------------------------------------------ */

#ifdef TRAINER_CUDA
#include <cuda_runtime_api.h>

static void check(cudaError_t result, const char *what) {
    if (result == cudaSuccess)
        return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(result));
    MPI_Abort(MPI_COMM_WORLD, 1);
}

struct Accelerator {
    cudaStream_t compute = nullptr;
    xp_device_args args = {};

    explicit Accelerator(int local_rank) {
        int n = 1;
        check(cudaGetDeviceCount(&n), "cudaGetDeviceCount");
        args.kind = XP_DEVICE_CUDA;
        args.index = local_rank % n;
        check(cudaSetDevice(args.index), "cudaSetDevice");
        check(cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking), "cudaStreamCreate");
    }
    ~Accelerator() { cudaStreamDestroy(compute); }
    void *stream() { return compute; }
    float *alloc(int64_t n) {
        void *data = nullptr;
        check(cudaMalloc(&data, size_t(n) * sizeof(float)), "cudaMalloc");
        return static_cast<float *>(data);
    }
    void free(float *data) { cudaFree(data); }
    void copy(void *to, const void *from, int64_t n) {
        check(cudaMemcpyAsync(to, from, size_t(n) * sizeof(float), cudaMemcpyDefault, compute), "copy");
        check(cudaStreamSynchronize(compute), "copy");
    }
};
#else
struct Accelerator {
    xp_device_args args = {}; // zeros: the CPU

    explicit Accelerator(int) { args.n_threads = 1; }
    void *stream() { return nullptr; } // work is done on the calling thread
    float *alloc(int64_t n) { return static_cast<float *>(std::malloc(size_t(n) * sizeof(float))); }
    void free(float *data) { std::free(data); }
    void copy(float *to, const float *from, int64_t n) { std::copy(from, from + n, to); }
    void copy(void *to, const void *from, int64_t n) {
        copy(static_cast<float *>(to), static_cast<const float *>(from), n);
    }
};
#endif

/* ---- the program's optimizer: SGD with momentum ---------------------------------------------- */

// One weight of the layer, and the ranks that hold the same: its gradient is averaged over them.
struct Parameter {
    xp_tensor value, gradient;
    MPI_Comm copies;
    std::vector<float> velocity, host, step;

    Parameter(const xp_moe *moe, xp_moe_weight which, MPI_Comm held_by)
        : value(xp_moe_param(moe, which)), gradient(xp_moe_grad(moe, which)), copies(held_by),
          velocity(size_t(xp_tensor_count(&value))), host(velocity.size()), step(velocity.size()) {}

    // On the host, to keep the example short; a trainer launches a kernel on its stream.
    void update(Accelerator &gpu, int n_ranks) {
        const int64_t n = int64_t(velocity.size());
        gpu.copy(step.data(), gradient.data, n);
        gpu.copy(host.data(), value.data, n);
        MPI_Allreduce(MPI_IN_PLACE, step.data(), int(n), MPI_FLOAT, MPI_SUM, copies);
        for (size_t i = 0; i < velocity.size(); i++) {
            velocity[i] = MOMENTUM * velocity[i] + step[i] / float(n_ranks);
            host[i] -= RATE * velocity[i];
        }
        gpu.copy(value.data, host.data(), n);
    }
};

/* ---- training --------------------------------------------------------------------------------- */

struct Ranks {
    int rank = 0, size = 1, local = 0;
    MPI_Comm ep = MPI_COMM_NULL;     // the ranks that share one copy of the experts
    MPI_Comm copies = MPI_COMM_NULL; // the ranks that hold the same experts
    explicit Ranks(int degree) {
        MPI_Comm node;
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        MPI_Comm_size(MPI_COMM_WORLD, &size);
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
        MPI_Comm_rank(node, &local);
        MPI_Comm_free(&node);
        MPI_Comm_split(MPI_COMM_WORLD, rank / degree, rank, &ep);
        MPI_Comm_split(MPI_COMM_WORLD, rank % degree, rank, &copies);
    }
    ~Ranks() {
        MPI_Comm_free(&ep);
        MPI_Comm_free(&copies);
    }
};

// Mean squared error of this rank's rows and its gradient.
static double loss_of(const std::vector<float> &out, const std::vector<float> &target,
                      std::vector<float> &d_out) {
    double sum = 0;
    for (size_t i = 0; i < out.size(); i++) {
        const float error = out[i] - target[i];
        sum += double(error) * error;
        d_out[i] = 2 * error / float(T);
    }
    return sum / double(T);
}

static double train(const Ranks &ranks, Accelerator &gpu, xp_moe *moe, xp_stream *stream) {
    std::mt19937 random(unsigned(ranks.rank) + 1);
    std::normal_distribution<float> normal;
    std::vector<float> rows(T * D), target(T * D), out(T * D), d_out(T * D);
    float *x = gpu.alloc(T * D), *y = gpu.alloc(T * D), *dy = gpu.alloc(T * D), *dx = gpu.alloc(T * D);
    const xp_tensor xt = xp_tensor_2d(x, XP_F32, T, D), dyt = xp_tensor_2d(dy, XP_F32, T, D);
    xp_tensor yt = xp_tensor_2d(y, XP_F32, T, D), dxt = xp_tensor_2d(dx, XP_F32, T, D);
    std::vector<Parameter> parameters;
    parameters.emplace_back(moe, XP_MOE_GATE, MPI_COMM_WORLD);
    parameters.emplace_back(moe, XP_MOE_W13, ranks.copies);
    parameters.emplace_back(moe, XP_MOE_W2, ranks.copies);
    for (auto &value : rows)
        value = normal(random);
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < D; c++)
            target[size_t(t * D + c)] = rows[size_t(t * D + D - 1 - c)];
    gpu.copy(x, rows.data(), T * D);
    double first = 0, loss = 0;
    for (int step = 0; step < STEPS; step++) {
        check(xp_moe_forward(moe, &xt, &yt, true, stream), "forward");
        gpu.copy(out.data(), y, T * D);
        loss = loss_of(out, target, d_out);
        MPI_Allreduce(MPI_IN_PLACE, &loss, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        loss /= ranks.size;
        gpu.copy(dy, d_out.data(), T * D);
        check(xp_moe_backward(moe, &xt, &dyt, &dxt, false, stream), "backward");
        check(xp_stream_sync(stream), "backward");
        for (Parameter &p : parameters)
            p.update(gpu, ranks.size);
        first = step == 0 ? loss : first;
        if (ranks.rank == 0 && step % 100 == 0)
            std::printf("step %3d  loss %.4f\n", step, loss);
    }
    for (float *data : {x, y, dy, dx})
        gpu.free(data);
    if (ranks.rank == 0)
        std::printf("%d ranks, experts over %d: loss %.4f, then %.4f\n", ranks.size,
                    xp_ep_group_n_ranks(xp_moe_ep_group(moe)), first, loss);
    return loss / first;
}

static int run(int degree) {
    Ranks ranks(degree);
    Accelerator gpu(ranks.local);
    xp_device *device = nullptr;
    xp_stream *stream = nullptr;
    xp_comm *comm = nullptr;
    xp_moe *moe = nullptr;
    check(xp_device_create(&gpu.args, &device), "device");
    check(xp_stream_from_native(device, gpu.stream(), &stream), "stream");
    check(xp_comm_from_mpi(&ranks.ep, &comm), "communicator");

    xp_moe_args args = {};
    args.num_experts = E;
    args.top_k = K;
    args.dim = D;
    args.moe_dim = 2 * D;
    args.max_tokens = T;
    args.use_deepep = xp_comm_is_one_node(comm);
    args.route_norm = true;
    check(xp_moe_create(&args, comm, device, &moe), "layer");
    check(xp_moe_init_params(moe, 7, 0.2F, 0.2F), "layer");
    const double rest = train(ranks, gpu, moe, stream);
    const bool learned = std::isfinite(rest) && rest < 0.1;

    xp_moe_destroy(moe);
    xp_comm_destroy(comm); // before the device, and before MPI ends
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    return learned ? 0 : 1;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    const int code = run(argc > 1 ? std::atoi(argv[1]) : 1);
    MPI_Finalize();
    return code;
}
