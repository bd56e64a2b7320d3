/* Drives a library of the hand-written plan (tiny_plan.py) from C, with an allocator that counts and can be told to fail.
 * Every allocation of every call is made to fail once; whatever happens, nothing may be left. Prints "fine" at the end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiny.h"

#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("line %d: %s\n", __LINE__, #what); \
            exit(1); \
        } \
    } while (0)

enum { ROWS = 40, PICKS = 3 };

static long made, living, failing_at, threads = 2;

static void *count_alloc(void *user, int64_t bytes, int64_t align)
{
    void *memory = NULL;
    CHECK(user == &made && align == 64 && bytes > 0);
    if (++made == failing_at || posix_memalign(&memory, (size_t)align, (size_t)bytes))
        return NULL;
    ++living;
    return memory;
}

static void count_free(void *user, void *memory)
{
    CHECK(user == &made && memory != NULL);
    --living;
    free(memory);
}

static void serial_for(void *user, void (*task)(void *, int64_t, int64_t, void *), void *frame, int64_t count,
                       void *scratch, int64_t stride, int32_t threads_given)
{
    (void)stride;
    CHECK(user == &made && threads_given > 1);
    for (int64_t i = count; i-- > 0;)
        task(frame, i, i + 1, scratch);
}

static float x[ROWS * 4], y[ROWS * 4];
static int64_t picks[PICKS] = {0, 7, ROWS - 1};

static void arguments(fusile_tensor *inputs, fusile_tensor *outputs)
{
    memset(outputs, 0, 3 * sizeof *outputs);
    inputs[0] = (fusile_tensor){x, 1, 2, {ROWS, 4}, sizeof x};
    inputs[1] = (fusile_tensor){picks, 7, 1, {PICKS}, 0};
}

static int report(fusile_context *context, const char *node, int64_t a, int64_t b)
{
    fusile_error error;
    tiny_last_error(context, &error);
    if (strcmp(error.node, node) || error.a != a || error.b != b)
        printf("error %d at '%s' (%lld, %lld)\n", error.code, error.node, (long long)error.a, (long long)error.b);
    return !strcmp(error.node, node) && error.a == a && error.b == b ? error.code : -1;
}

/* One whole life, with all outputs from the module. The first status that is not 0, or 0. */
static int life(const char *weights, const fusile_host_v1 *host)
{
    fusile_instance *instance = NULL;
    fusile_tensor inputs[2], outputs[3];
    int status = tiny_create(weights, NULL, 0, host, &instance);
    if (status) {
        CHECK(instance == NULL);
        return status;
    }
    fusile_context *context = tiny_context_create(instance, (int32_t)threads);
    if (context == NULL) {
        tiny_destroy(instance);
        return 4;
    }
    for (int round = 0; round < 3 && !status; ++round) {
        arguments(inputs, outputs);
        status = tiny_run(instance, context, inputs, outputs);
        for (int i = 0; i < 3; ++i) {
            CHECK((outputs[i].data != NULL) == (status == 0));
            tiny_release(instance, outputs[i].data);
        }
        if (status) {
            fusile_error error;
            CHECK(tiny_last_error(context, &error) == status && error.code == status && (status != 4 || error.a > 0));
        }
    }
    tiny_context_destroy(context);
    tiny_destroy(instance);
    return status;
}

static void results(const char *weights, const fusile_host_v1 *host)
{
    fusile_instance *instance;
    fusile_tensor inputs[2], outputs[3];
    CHECK(tiny_create(weights, NULL, 0, host, &instance) == 0);
    CHECK(strstr(tiny_describe(instance), "\"name\": \"tiny\""));
    fusile_context *context = tiny_context_create(instance, (int32_t)threads);
    arguments(inputs, outputs);
    CHECK(tiny_shapes(instance, inputs, outputs) == 0);
    CHECK(outputs[0].rank == 2 && outputs[0].dims[0] == ROWS && outputs[0].dims[1] == 4 && outputs[0].dtype == 1);
    CHECK(outputs[1].dims[0] == PICKS && outputs[2].dims[0] == -1);
    CHECK(tiny_workspace(instance, inputs, 2) == ROWS * 32 + 2 * 128);

    /* the caller's memory for one output, the module's for the others */
    outputs[0].data = y;
    outputs[0].capacity = sizeof y;
    CHECK(tiny_run(instance, context, inputs, outputs) == 0);
    CHECK(outputs[0].data == y);
    int64_t positive = 0;
    for (int i = 0; i < ROWS * 4; ++i) {
        CHECK(y[i] == x[i] * (float)(2 * (i % 4) + 2));
        if (x[i] > 0)
            CHECK(((float *)outputs[2].data)[positive++] == x[i]);
    }
    CHECK(outputs[2].dims[0] == positive && outputs[2].capacity == positive * 4);
    for (int i = 0; i < PICKS * 4; ++i)
        CHECK(((float *)outputs[1].data)[i] == y[picks[i / 4] * 4 + i % 4]);
    tiny_release(instance, outputs[1].data);
    tiny_release(instance, outputs[2].data);

    /* an index out of range: the node is named, and what was allocated is gone */
    picks[1] = -1;
    arguments(inputs, outputs);
    CHECK(tiny_run(instance, context, inputs, outputs) == 2);
    CHECK(report(context, "gather/\xc3\xa4", -1, ROWS) == 2);
    CHECK(!outputs[0].data && !outputs[1].data && !outputs[2].data);
    picks[1] = 7;

    /* memory that is too small, before the run and within it */
    arguments(inputs, outputs);
    outputs[1].data = y;
    outputs[1].capacity = 47;
    CHECK(tiny_run(instance, context, inputs, outputs) == 6 && report(context, "", 1, 48) == 6);
    CHECK(outputs[1].data == y && !outputs[0].data);
    arguments(inputs, outputs);
    outputs[2].data = y;
    outputs[2].capacity = 4;
    CHECK(tiny_run(instance, context, inputs, outputs) == 6 && report(context, "compress", 2, positive * 4) == 6);
    CHECK(outputs[2].data == y && outputs[2].dims[0] == positive && !outputs[0].data);

    /* arguments that do not fit */
    struct { int input, rank, dtype; int64_t dim; void *data; int64_t capacity, b; int status; } cases[] = {
        {0, 3, 1, 4, x, 0, -1, 1}, {0, 2, 2, 4, x, 0, -1, 1}, {0, 2, 1, 5, x, 0, 1, 1}, {0, 2, 1, -1, x, 0, 1, 1},
        {0, 2, 1, 4, NULL, 0, -1, 1}, {0, 2, 1, 4, x, 8, -1, 1}, {1, 1, 1, 0, picks, 0, -1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        arguments(inputs, outputs);
        fusile_tensor *changed = &inputs[cases[i].input];
        changed->rank = cases[i].rank;
        changed->dtype = cases[i].dtype;
        changed->dims[1] = cases[i].dim;
        changed->data = cases[i].data;
        changed->capacity = cases[i].capacity;
        CHECK(tiny_run(instance, context, inputs, outputs) == cases[i].status);
        CHECK(report(context, "", cases[i].input, cases[i].b) == cases[i].status);
    }
    arguments(inputs, outputs);
    inputs[0].dims[0] = INT64_MAX / 8;
    CHECK(tiny_run(instance, context, inputs, outputs) == 5);
    CHECK(tiny_shapes(instance, inputs, outputs) == 5 && tiny_workspace(instance, inputs, 1) == -5);
    CHECK(tiny_run(instance, NULL, inputs, outputs) == 1 && tiny_run(NULL, context, inputs, outputs) == 1);

    /* no rows: nothing to do, and no memory needed */
    arguments(inputs, outputs);
    inputs[0].data = NULL;
    inputs[0].dims[0] = inputs[1].dims[0] = 0;
    CHECK(tiny_run(instance, context, inputs, outputs) == 0);
    CHECK(outputs[0].dims[0] == 0 && outputs[2].dims[0] == 0 && outputs[2].data != NULL);
    for (int i = 0; i < 3; ++i)
        tiny_release(instance, outputs[i].data);
    tiny_context_destroy(context);
    tiny_destroy(instance);
}

static void weights_by_address(void)
{
    static const float raw[4] = {1, 2, 3, 4};
    const void *sources[] = {raw};
    fusile_instance *instance = NULL;
    void *packed;
    CHECK(posix_memalign(&packed, 64, 128) == 0);
    memset(packed, 0, 128);
    CHECK(tiny_prepare(NULL, 0, sources, packed) == 0 && ((float *)packed)[3] == 8);
    CHECK(tiny_prepare(NULL, 1, sources, packed) == 1);
    CHECK(tiny_create(NULL, packed, 63, NULL, &instance) == 1 && !instance);
    CHECK(tiny_create(NULL, (char *)packed + 4, 64, NULL, &instance) == 1 && !instance);
    CHECK(tiny_create(NULL, packed, 64, NULL, &instance) == 0);
    tiny_destroy(instance);
    free(packed);
}

int main(int count, char **words)
{
    const char *weights = count > 1 ? words[1] : NULL;
    fusile_host_v1 host = {sizeof host, count_alloc, count_free, NULL, &made};
    fusile_instance *instance;
    for (int i = 0; i < ROWS * 4; ++i)
        x[i] = (float)((i * 37) % 11) - 5;
    CHECK(tiny_abi_version() == 1);
    for (threads = 1; threads <= 3; ++threads) {
        host.parallel_for = NULL;
        results(weights, NULL);
        results(weights, &host);
        host.parallel_for = serial_for;
        results(weights, &host);
        host.parallel_for = NULL;
        CHECK(living == 0);

        made = failing_at = 0;
        CHECK(life(weights, &host) == 0 && living == 0);
        long all = made;
        CHECK(all > 5);
        for (long i = 1; i <= all; ++i) {
            made = 0;
            failing_at = i;
            CHECK(life(weights, &host) == 4);
            CHECK(living == 0);
        }
        made = failing_at = 0;
    }
    weights_by_address();
    host.free = NULL;
    CHECK(tiny_create(weights, NULL, 0, &host, &instance) == 1);
    host.free = count_free;
    host.size = 8;
    CHECK(tiny_create(weights, NULL, 0, &host, &instance) == 1);
    host.size = sizeof host;
    CHECK(tiny_create("/nonexistent/file", NULL, 0, NULL, &instance) == 1 && instance == NULL);
    CHECK(tiny_create(words[0], NULL, 0, NULL, &instance) == 1);
    tiny_destroy(NULL);
    tiny_context_destroy(NULL);
    CHECK(living == 0);
    puts("fine");
    return 0;
}
