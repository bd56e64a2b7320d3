/* Runs a native module on inputs from a file, through its header alone.
 *
 *   run_model run  THREADS WEIGHTS|- IN OUT    every set of inputs in IN, the outputs to OUT; prints the error of a run that fails
 *   run_model fail THREADS WEIGHTS|- IN        the first set again and again, each time with another allocation failing
 *
 * A file holds tensors one after another: dtype and rank (int32), bytes (int64), dims (int64 each), data. IN holds
 * MODEL_INPUTS of them per set, OUT MODEL_OUTPUTS. Each set is run twice: into memory of the module, and into memory
 * of the caller where the sizes are known beforehand; the answers must be the same. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("line %d: %s\n", __LINE__, #what); \
            exit(1); \
        } \
    } while (0)

enum { SETS = 8, ROOM = MODEL_INPUTS + 1, RESULTS = MODEL_OUTPUTS + 1 };

static long made, living, failing_at;

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

static const fusile_host_v1 host = {sizeof(fusile_host_v1), count_alloc, count_free, NULL, &made};

static int read_tensor(FILE *file, fusile_tensor *tensor)
{
    int32_t head[2];
    if (fread(head, sizeof *head, 2, file) != 2)
        return 0;
    tensor->dtype = head[0];
    tensor->rank = head[1];
    CHECK(tensor->rank <= 8 && fread(&tensor->capacity, 8, 1, file) == 1);
    CHECK(fread(tensor->dims, 8, (size_t)tensor->rank, file) == (size_t)tensor->rank);
    tensor->data = malloc(tensor->capacity ? (size_t)tensor->capacity : 1); /* exactly: a wrong access is seen */
    CHECK(fread(tensor->data, 1, (size_t)tensor->capacity, file) == (size_t)tensor->capacity);
    return 1;
}

static void write_tensor(FILE *file, const fusile_tensor *tensor)
{
    int32_t head[2] = {tensor->dtype, tensor->rank};
    fwrite(head, sizeof *head, 2, file);
    fwrite(&tensor->capacity, 8, 1, file);
    fwrite(tensor->dims, 8, (size_t)tensor->rank, file);
    fwrite(tensor->data, 1, (size_t)tensor->capacity, file);
}

static int read_sets(const char *path, fusile_tensor sets[SETS][ROOM])
{
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    int count = 0;
    while (count < SETS) {
        int known = 0;
        while (known < MODEL_INPUTS && read_tensor(file, &sets[count][known]))
            ++known;
        if (known < MODEL_INPUTS)
            break;
        ++count;
        if (MODEL_INPUTS == 0)
            break;
    }
    fclose(file);
    return count;
}

static int tell(fusile_context *context, int status)
{
    fusile_error error;
    CHECK(model_last_error(context, &error) == status && error.code == status);
    printf("error %d at '%s' (%lld, %lld)\n", error.code, error.node, (long long)error.a, (long long)error.b);
    return status;
}

/* The same run into memory of the caller, as far as sizes are known beforehand. */
static void run_again(fusile_instance *instance, fusile_context *context, fusile_tensor *inputs, fusile_tensor *first)
{
    fusile_tensor outputs[RESULTS];
    memset(outputs, 0, sizeof outputs);
    CHECK(model_shapes(instance, inputs, outputs) == 0);
    for (int i = 0; i < MODEL_OUTPUTS; ++i) {
        int known = 1;
        for (int d = 0; d < outputs[i].rank; ++d)
            known &= outputs[i].dims[d] >= 0;
        if (known) {
            outputs[i].data = malloc(first[i].capacity ? (size_t)first[i].capacity : 1);
            outputs[i].capacity = first[i].capacity;
        }
    }
    void *given[RESULTS];
    for (int i = 0; i < MODEL_OUTPUTS; ++i)
        given[i] = outputs[i].data;
    CHECK(model_run(instance, context, inputs, outputs) == 0);
    for (int i = 0; i < MODEL_OUTPUTS; ++i) {
        CHECK(outputs[i].capacity == first[i].capacity && outputs[i].rank == first[i].rank);
        CHECK(!memcmp(outputs[i].dims, first[i].dims, 8 * (size_t)first[i].rank));
        CHECK(!memcmp(outputs[i].data, first[i].data, (size_t)first[i].capacity));
        CHECK(given[i] == NULL || given[i] == outputs[i].data);
        if (given[i])
            free(given[i]);
        else
            model_release(instance, outputs[i].data);
    }
}

static int run(const char *weights, int threads, fusile_tensor sets[SETS][ROOM], int count, const char *path)
{
    FILE *file = fopen(path, "wb");
    fusile_instance *instance;
    CHECK(file != NULL && model_abi_version() == 1);
    CHECK(model_create(weights, NULL, 0, NULL, &instance) == 0);
    CHECK(strstr(model_describe(instance), "\"inputs\"") != NULL);
    fusile_context *context = model_context_create(instance, threads);
    int status = 0;
    for (int k = 0; k < count && !status; ++k) {
        fusile_tensor outputs[RESULTS];
        memset(outputs, 0, sizeof outputs);
        CHECK(model_workspace(instance, sets[k], threads) >= 0);
        status = model_run(instance, context, sets[k], outputs);
        if (status) {
            tell(context, status);
            break;
        }
        run_again(instance, context, sets[k], outputs);
        for (int i = 0; i < MODEL_OUTPUTS; ++i) {
            write_tensor(file, &outputs[i]);
            model_release(instance, outputs[i].data);
        }
    }
    model_context_destroy(context);
    model_destroy(instance);
    fclose(file);
    return status;
}

/* One whole life with the counting allocator. */
static int life(const char *weights, int threads, fusile_tensor *inputs)
{
    fusile_instance *instance = NULL;
    fusile_tensor outputs[RESULTS];
    memset(outputs, 0, sizeof outputs);
    int status = model_create(weights, NULL, 0, &host, &instance);
    if (status)
        return status;
    fusile_context *context = model_context_create(instance, threads);
    status = context == NULL ? FUSILE_OUT_OF_MEMORY : model_run(instance, context, inputs, outputs);
    if (status && context) {
        fusile_error error;
        CHECK(model_last_error(context, &error) == status && error.a > 0);
    }
    for (int i = 0; i < MODEL_OUTPUTS; ++i) {
        CHECK((outputs[i].data != NULL) == (status == 0));
        model_release(instance, outputs[i].data);
    }
    model_context_destroy(context);
    model_destroy(instance);
    return status;
}

static void fail(const char *weights, int threads, fusile_tensor *inputs)
{
    int status = FUSILE_OUT_OF_MEMORY;
    for (failing_at = 1; status; ++failing_at) {
        made = 0;
        status = life(weights, threads, inputs);
        CHECK(living == 0);
        CHECK(status == (made >= failing_at ? FUSILE_OUT_OF_MEMORY : 0));
    }
    CHECK(failing_at > 3);
}

int main(int count, char **words)
{
    static fusile_tensor sets[SETS][ROOM];
    CHECK(count >= 5);
    const char *weights = strcmp(words[3], "-") ? words[3] : NULL;
    int threads = atoi(words[2]), status = 0, known = read_sets(words[4], sets);
    CHECK(known > 0);
    if (!strcmp(words[1], "run"))
        status = run(weights, threads, sets, known, words[5]);
    else
        fail(weights, threads, sets[0]);
    for (int k = 0; k < known; ++k)
        for (int i = 0; i < MODEL_INPUTS; ++i)
            free(sets[k][i].data);
    if (!status)
        puts("fine");
    return 0;
}
