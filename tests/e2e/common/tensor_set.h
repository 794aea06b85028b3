/** Named global tensors on the host, put together from the parts that ranks hold. */
#ifndef XP_TESTS_E2E_TENSOR_SET_H
#define XP_TESTS_E2E_TENSOR_SET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct named_tensor {
    char name[192];
    int64_t n, n_filled; /* elements; how many have been put */
    float *data;
} named_tensor;

typedef struct tensor_set {
    int n, capacity;
    named_tensor *items;
    pthread_mutex_t lock;
} tensor_set;

void tensor_set_init(tensor_set *set);
void tensor_set_free(tensor_set *set);
/** Elements [first, first + n) of tensor `name` of `total` elements. From any thread. false: no
 * memory, or it does not fit what was put before. */
bool tensor_set_put(tensor_set *set, const char *name, int64_t total, int64_t first, int64_t n,
                    const float *data);
/** NULL when there is none. */
const named_tensor *tensor_set_find(const tensor_set *set, const char *name);
/** Every element of every tensor was put exactly once. */
bool tensor_set_complete(const tensor_set *set);
/** The same names, and the same bits in each. @param[out] differs  the first that differs, or NULL
 */
bool tensor_set_equal(const tensor_set *a, const tensor_set *b, const char **differs);
/** The largest |a - b| / |a| (L2 norms) of any tensor; infinite when names or sizes differ.
 * @param[out] worst  its name, or NULL */
double tensor_set_distance(const tensor_set *a, const tensor_set *b, const char **worst);
/** Elements of the tensors whose name holds `part`. */
int64_t tensor_set_count(const tensor_set *set, const char *part);

#endif
