/* Convert, scale, round and add float32 vectors into int64 sums, several vectors in one pass over the sums.

   The same arithmetic as the numpy code in fixedpoint.py, which says why it is exact; tested equal bit for bit.
   Work comes in blocks small enough for the sums to stay in the cache while every vector is added, and is handed
   to threads as they ask for it. No Python object is touched while the GIL is released. */

#include "_kernels.h"

#include <math.h>

enum { WORTH = 32 }; /* blocks of vectors: with fewer for each, starting a thread takes longer than the work */

static const double MAGIC = 6755399441055744.0; /* 1.5 * 2^52 */
static const uint64_t MAGIC_BITS = UINT64_C(0x4338000000000000);

typedef struct {
    uint64_t *sums; /* NULL: look at the values only */
    int anew;       /* what is in the sums counts for nothing: a block is 0 before the first vector is added */
    const float *const *deltas;
    const double *scales;
    Py_ssize_t count;
    const Block *blocks;
    size_t block_count;
    int32_t limit; /* bits of the largest allowed magnitude: for floats without sign, bits order like values */
    atomic_size_t next;
    atomic_int beyond;
} Job;

FOR_EACH_CPU static int within(const float *values, size_t size, int32_t limit) {
    int32_t beyond = 0;
    for (size_t i = 0; i < size; i++) {
        int32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        beyond |= (bits & 0x7fffffff) > limit;
    }
    return !beyond;
}

static inline uint64_t contribution(float value, double scale) {
    double shifted = (double)value * scale + MAGIC;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - MAGIC_BITS;
}

/* Returns 0 if a value was beyond the limit. It is looked for while adding: a pass of its own would keep the memory
   waiting. */
FOR_EACH_CPU static int add_scaled(uint64_t *sums, const float *values, size_t size, double scale, int32_t limit) {
    int32_t beyond = 0;
    for (size_t i = 0; i < size; i++) {
        int32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        beyond |= (bits & 0x7fffffff) > limit;
        sums[i] += contribution(values[i], scale);
    }
    return !beyond;
}

/* Takes away what add_scaled added, to the bit: also what came of NaN, which is the same each time. */
FOR_EACH_CPU static void take_back(uint64_t *sums, const float *values, size_t size, double scale) {
    for (size_t i = 0; i < size; i++)
        sums[i] -= contribution(values[i], scale);
}

static void *work(void *argument) {
    Job *job = argument;
    size_t index;
    while ((index = atomic_fetch_add(&job->next, 1)) < job->block_count) {
        Block block = job->blocks[index];
        size_t size = (size_t)(block.stop - block.start);
        uint64_t *sums = job->sums ? job->sums + block.start : NULL;
        if (job->anew)
            memset(sums, 0, size * sizeof *sums);
        for (Py_ssize_t k = 0; k < job->count; k++) {
            const float *values = job->deltas[k] + block.start;
            if (sums ? add_scaled(sums, values, size, job->scales[k], job->limit) : within(values, size, job->limit))
                continue;
            atomic_store(&job->beyond, 1);
            if (sums)
                take_back(sums, values, size, job->scales[k]);
        }
    }
    return NULL;
}

/* Returns True if no value was beyond the limit. */
static PyObject *run_blocks(Job *job, PyObject *blocks, Py_ssize_t size, float limit, Py_ssize_t threads) {
    Py_buffer view;
    if (get_blocks(blocks, size, &view) < 0)
        return NULL;
    job->blocks = view.buf;
    job->block_count = (size_t)view.len / sizeof(Block);
    memcpy(&job->limit, &limit, sizeof job->limit);
    size_t worth = threads > 0 ? job->block_count : 1 + job->block_count * (size_t)job->count / WORTH;
    Py_BEGIN_ALLOW_THREADS
    run_threads(work, job, job->block_count < worth ? job->block_count : worth, threads > 0 ? (size_t)threads : 0);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyBool_FromLong(!atomic_load(&job->beyond));
}

PyDoc_STRVAR(within_doc, "all_within(values, blocks, limit, threads=0) -> bool\n\n"
                         "Whether the blocks of a float32 vector hold no NaN and no magnitude above the limit.\n"
                         "threads=0 means one for each CPU that this process may use.");

static PyObject *all_within(PyObject *module, PyObject *arguments) {
    PyObject *object, *blocks;
    float limit;
    Py_ssize_t threads = 0;
    Py_buffer values;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOf|n:all_within", &object, &blocks, &limit, &threads) ||
        get_vector(object, &values, sizeof(float), PyBUF_SIMPLE) < 0)
        return NULL;
    const float *only = values.buf;
    Job job = {.deltas = &only, .count = 1};
    PyObject *result = run_blocks(&job, blocks, values.len / (Py_ssize_t)sizeof(float), limit, threads);
    PyBuffer_Release(&values);
    return result;
}

PyDoc_STRVAR(accumulate_doc,
             "accumulate(sums, deltas, scales, blocks, limit, anew=False, threads=0) -> bool\n\n"
             "Add rint(delta * scale) of every float32 delta to the int64 sums, in place, within the blocks; anew: to 0\n"
             "there, whatever the sums hold, which need not have been written then.\n"
             "A block of a delta that holds NaN or a magnitude above the limit adds nothing; the result says whether\n"
             "there was none. threads=0 means one for each CPU that this process may use.");

static PyObject *accumulate(PyObject *module, PyObject *arguments) {
    PyObject *object, *deltas, *scales, *blocks;
    float limit;
    Py_ssize_t threads = 0;
    int anew = 0;
    Py_buffer sums;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOOf|pn:accumulate", &object, &deltas, &scales, &blocks, &limit, &anew,
                          &threads) ||
        get_vector(object, &sums, sizeof(uint64_t), PyBUF_WRITABLE) < 0)
        return NULL;
    Py_ssize_t size = sums.len / (Py_ssize_t)sizeof(uint64_t);
    Vectors vectors = {0};
    PyObject *result = NULL;
    if (get_vectors(deltas, scales, size, &vectors) == 0) {
        Job job = {.sums = sums.buf, .anew = anew, .count = vectors.count};
        job.deltas = vectors.deltas, job.scales = vectors.scales;
        result = run_blocks(&job, blocks, size, limit, threads);
    }
    release(&vectors);
    PyBuffer_Release(&sums);
    return result;
}

enum { CHUNK = 1024 };
static const int64_t LOW = (INT64_C(1) << 29) - 1, HALF = INT64_C(1) << 28, DOUBT = 4;

/* The nearest double, as a cast gives it, by operations that every CPU has for whole vectors: the halves are put into
   the mantissas of doubles, which are exact, and only the last sum is rounded. */
static inline double nearest(int64_t sum) {
    uint64_t low = ((uint64_t)sum & 0xffffffff) | UINT64_C(0x4330000000000000);           /* 2^52 + low */
    uint64_t high = ((uint64_t)sum >> 32) ^ UINT64_C(0x4530000080000000);                 /* 2^84 + 2^63 + high * 2^32 */
    double lower, upper;
    memcpy(&lower, &low, sizeof lower);
    memcpy(&upper, &high, sizeof upper);
    return (upper - (0x1p84 + 0x1p63 + 0x1p52)) + lower;
}

/* Quotients in double precision, each off by three roundings at most: of the sum, the inverse and the product. Whether
   one of them may be rounded to the wrong float32 (see _settled). */
FOR_EACH_CPU static int quotients(double *quotient, const int64_t *sums, size_t size, double inverse) {
    int64_t doubt = 0;
    for (size_t i = 0; i < size; i++) {
        int64_t bits;
        quotient[i] = nearest(sums[i]) * inverse;
        memcpy(&bits, quotient + i, sizeof bits);
        int64_t distance = (bits & LOW) - HALF;
        doubt |= (distance <= DOUBT) & (distance >= -DOUBT);
    }
    return (int)doubt;
}

/* Put a quotient next to the middle of two float32 values on the side of it where the exact one lies. */
static double settled(double quotient, int64_t sum, int64_t total, int fraction_bits) {
    int64_t bits;
    memcpy(&bits, &quotient, sizeof bits);
    int64_t distance = (bits & LOW) - HALF;
    if (distance > DOUBT || distance < -DOUBT)
        return quotient;
    int64_t middle = (bits & ~LOW) | HALF;
    double value;
    memcpy(&value, &middle, sizeof value);
    int exponent;
    uint64_t product = (uint64_t)(frexp(fabs(value), &exponent) * 33554432.0) * (uint64_t)total; /* 2^25 */
    uint64_t exact = sum < 0 ? -(uint64_t)sum : (uint64_t)sum;
    int shift = exponent - 25 + fraction_bits;
    if (shift > 0)
        product <<= shift;
    else
        exact <<= -shift;
    middle += (exact > product) - (exact < product);
    memcpy(&value, &middle, sizeof value);
    return value;
}

PyDoc_STRVAR(divide_doc, "divide(sums, total, fraction_bits)\n\n"
                         "Write sums / (total * 2**fraction_bits), rounded to float32, over the first half of the int64 sums.");

static PyObject *divide(PyObject *module, PyObject *arguments) {
    PyObject *object;
    long long total;
    int fraction_bits;
    Py_buffer view;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OLi:divide", &object, &total, &fraction_bits) ||
        get_vector(object, &view, sizeof(int64_t), PyBUF_WRITABLE) < 0)
        return NULL;
    const int64_t *sums = view.buf;
    char *means = view.buf;
    size_t size = (size_t)view.len / sizeof(int64_t);
    Py_BEGIN_ALLOW_THREADS
    double quotient[CHUNK], inverse = 1.0 / ldexp((double)total, fraction_bits);
    float mean[CHUNK];
    for (size_t start = 0; start < size; start += CHUNK) { /* upwards: a mean is written where sums were read already */
        size_t count = size - start < CHUNK ? size - start : CHUNK;
        if (quotients(quotient, sums + start, count, inverse))
            for (size_t i = 0; i < count; i++)
                quotient[i] = settled(quotient[i], sums[start + i], total, fraction_bits);
        for (size_t i = 0; i < count; i++)
            mean[i] = (float)quotient[i];
        memcpy(means + start * sizeof(float), mean, count * sizeof(float));
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"divide", divide, METH_VARARGS, divide_doc},
    {"accumulate", accumulate, METH_VARARGS, accumulate_doc},
    {"all_within", all_within, METH_VARARGS, within_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tutti.core._kernels",
    .m_doc = "Compiled inner loops of tutti.core.fixedpoint.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
