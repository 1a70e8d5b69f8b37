/* What the compiled modules share: threads that take blocks of work, and float32 vectors taken out of Python objects. */

#ifndef TUTTI_KERNELS_H
#define TUTTI_KERNELS_H

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

typedef struct {
    int64_t start, stop;
} Block;

static inline size_t cpus(void) {
#ifdef CPU_COUNT
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return (size_t)CPU_COUNT(&set);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (size_t)online : 1;
}

/* Run `work(job)` on up to `threads` threads (0: one for each CPU that this process may use), this one among them, but
   on no more than there are tasks; a thread that cannot be started is done without. */
static inline void run_threads(void *(*work)(void *), void *job, size_t tasks, size_t threads) {
    pthread_t others[MAX_THREADS];
    size_t started = 0;
    if (threads == 0)
        threads = cpus();
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    while (started + 1 < threads && started + 1 < tasks) {
        if (pthread_create(&others[started], NULL, work, job) != 0)
            break;
        started++;
    }
    work(job);
    while (started > 0)
        pthread_join(others[--started], NULL);
}

static inline int get_vector(PyObject *object, Py_buffer *view, Py_ssize_t itemsize, int flags) {
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

static inline void release(Vectors *vectors) {
    for (Py_ssize_t k = 0; vectors->views && k < vectors->count; k++)
        PyBuffer_Release(&vectors->views[k]);
    free(vectors->views);
    free(vectors->deltas);
    free(vectors->scales);
}

/* Fill `vectors` from sequences of deltas and (unless NULL) scales; on failure an exception is set, and release() is
   still due. */
static inline int get_vectors(PyObject *deltas, PyObject *scales, Py_ssize_t size, Vectors *vectors) {
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
        PyObject *scale = scales ? PySequence_GetItem(scales, k) : NULL;
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
static inline int get_blocks(PyObject *object, Py_ssize_t size, Py_buffer *view) {
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

#endif
