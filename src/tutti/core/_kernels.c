/* Convert, scale, round and add float32 vectors into int64 sums, several vectors in one pass over the sums.

   The same arithmetic as the numpy code in fixedpoint.py, which says why it is exact; tested equal bit for bit.
   Work comes in blocks small enough for the sums to stay in the cache while every vector is added, and is handed
   to threads as they ask for it. No Python object is touched while the GIL is released. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef FOR_EACH_CPU
#define FOR_EACH_CPU
#endif

enum { MAX_THREADS = 8 }; /* few threads keep the memory busy */

static const double MAGIC = 6755399441055744.0; /* 1.5 * 2^52 */
static const uint64_t MAGIC_BITS = UINT64_C(0x4338000000000000);

typedef struct {
    int64_t start, stop;
} Block;

typedef struct {
    uint64_t *sums; /* NULL: look at the values only */
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

FOR_EACH_CPU static void add_scaled(uint64_t *sums, const float *values, size_t size, double scale) {
    for (size_t i = 0; i < size; i++) {
        double shifted = (double)values[i] * scale + MAGIC;
        uint64_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        sums[i] += bits - MAGIC_BITS;
    }
}

static void *work(void *argument) {
    Job *job = argument;
    size_t index;
    while ((index = atomic_fetch_add(&job->next, 1)) < job->block_count) {
        Block block = job->blocks[index];
        size_t size = (size_t)(block.stop - block.start);
        for (Py_ssize_t k = 0; k < job->count; k++) {
            const float *values = job->deltas[k] + block.start;
            if (!within(values, size, job->limit))
                atomic_store(&job->beyond, 1);
            else if (job->sums)
                add_scaled(job->sums + block.start, values, size, job->scales[k]);
        }
    }
    return NULL;
}

static size_t cpus(void) {
#ifdef CPU_COUNT
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return (size_t)CPU_COUNT(&set);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (size_t)online : 1;
}

/* Run the job on up to `threads` threads, this one among them; one that cannot be started is done without. */
static void run(Job *job, size_t threads) {
    pthread_t others[MAX_THREADS];
    size_t started = 0;
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    while (started + 1 < threads && started + 1 < job->block_count) {
        if (pthread_create(&others[started], NULL, work, job) != 0)
            break;
        started++;
    }
    work(job);
    while (started > 0)
        pthread_join(others[--started], NULL);
}

static int get_vector(PyObject *object, Py_buffer *view, Py_ssize_t itemsize, int flags) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | flags) < 0)
        return -1;
    if (view->itemsize != itemsize || (uintptr_t)view->buf % (uintptr_t)itemsize) {
        PyErr_Format(PyExc_ValueError, "expected an aligned vector of %zd-byte items", itemsize);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

typedef struct {
    Py_buffer *views;
    const float **deltas;
    double *scales;
    Py_ssize_t count;
} Vectors;

static void release(Vectors *vectors) {
    for (Py_ssize_t k = 0; vectors->views && k < vectors->count; k++)
        PyBuffer_Release(&vectors->views[k]);
    free(vectors->views);
    free(vectors->deltas);
    free(vectors->scales);
}

/* Fill `vectors` from two sequences; on failure an exception is set, and release() is still due. */
static int get_vectors(PyObject *deltas, PyObject *scales, Py_ssize_t size, Vectors *vectors) {
    Py_ssize_t length = PySequence_Size(deltas);
    if (length < 0)
        return -1;
    size_t room = (size_t)length + 1;
    vectors->views = calloc(room, sizeof *vectors->views);
    vectors->deltas = calloc(room, sizeof *vectors->deltas);
    vectors->scales = calloc(room, sizeof *vectors->scales);
    if (!vectors->views || !vectors->deltas || !vectors->scales) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t k = 0; k < length; k++) {
        PyObject *scale = PySequence_GetItem(scales, k);
        vectors->scales[k] = scale ? PyFloat_AsDouble(scale) : 0.0;
        Py_XDECREF(scale);
        if (PyErr_Occurred())
            return -1;
        PyObject *delta = PySequence_GetItem(deltas, k);
        int got = delta ? get_vector(delta, &vectors->views[k], sizeof(float), PyBUF_SIMPLE) : -1;
        Py_XDECREF(delta);
        if (got < 0)
            return -1;
        vectors->count = k + 1;
        vectors->deltas[k] = vectors->views[k].buf;
        if (vectors->views[k].len != size * (Py_ssize_t)sizeof(float)) {
            PyErr_Format(PyExc_ValueError, "vector %zd does not have %zd values", k, size);
            return -1;
        }
    }
    return 0;
}


/* Blocks are pairs of int64; each must lie in 0..size. */
static int get_blocks(PyObject *object, Py_ssize_t size, Py_buffer *view) {
    if (get_vector(object, view, sizeof(int64_t), PyBUF_SIMPLE) < 0)
        return -1;
    const Block *blocks = view->buf;
    for (size_t i = 0; i < (size_t)view->len / sizeof(Block); i++)
        if (blocks[i].start < 0 || blocks[i].start > blocks[i].stop || blocks[i].stop > size) {
            PyErr_Format(PyExc_ValueError, "block %zu is not within the %zd values", i, size);
            PyBuffer_Release(view);
            return -1;
        }
    return 0;
}

/* Returns True if no value was beyond the limit. */
static PyObject *run_blocks(Job *job, PyObject *blocks, Py_ssize_t size, float limit, Py_ssize_t threads) {
    Py_buffer view;
    if (get_blocks(blocks, size, &view) < 0)
        return NULL;
    job->blocks = view.buf;
    job->block_count = (size_t)view.len / sizeof(Block);
    memcpy(&job->limit, &limit, sizeof job->limit);
    Py_BEGIN_ALLOW_THREADS
    run(job, threads > 0 ? (size_t)threads : cpus());
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
             "accumulate(sums, deltas, scales, blocks, limit, threads=0) -> bool\n\n"
             "Add rint(delta * scale) of every float32 delta to the int64 sums, in place, within the blocks.\n"
             "A block of a delta that holds NaN or a magnitude above the limit adds nothing; the result says whether\n"
             "there was none. threads=0 means one for each CPU that this process may use.");

static PyObject *accumulate(PyObject *module, PyObject *arguments) {
    PyObject *object, *deltas, *scales, *blocks;
    float limit;
    Py_ssize_t threads = 0;
    Py_buffer sums;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOOf|n:accumulate", &object, &deltas, &scales, &blocks, &limit, &threads) ||
        get_vector(object, &sums, sizeof(uint64_t), PyBUF_WRITABLE) < 0)
        return NULL;
    Py_ssize_t size = sums.len / (Py_ssize_t)sizeof(uint64_t);
    Vectors vectors = {0};
    PyObject *result = NULL;
    if (get_vectors(deltas, scales, size, &vectors) == 0) {
        Job job = {.sums = sums.buf, .deltas = vectors.deltas, .scales = vectors.scales, .count = vectors.count};
        result = run_blocks(&job, blocks, size, limit, threads);
    }
    release(&vectors);
    PyBuffer_Release(&sums);
    return result;
}

static PyMethodDef methods[] = {
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
