/* Python's door to dense.h: train one node's network, without the interpreter's lock.

   The kernel is compiled for several instruction sets, and the best that this processor has is taken. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#define LANES 4
#define TILE 6
#define CASES CASES_6
#define NAME(x) x##_4
#include "dense.h"
#undef LANES
#undef TILE
#undef CASES
#undef NAME

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define TILE 6
#define CASES CASES_6
#define NAME(x) x##_8
#include "dense.h"
#undef LANES
#undef TILE
#undef CASES
#undef NAME
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,fma")
#define LANES 16
#define TILE 10
#define CASES CASES_10
#define NAME(x) x##_16
#include "dense.h"
#pragma GCC pop_options
#endif

enum { ALIGNMENT = 64 };

typedef struct {
    int lanes;
    int64_t (*room)(const Network *, const Step *, int64_t);
    void (*train)(const Network *, const Step *, const Rows *, float *, float *, Tally *);
} Variant;

static const Variant variants[] = {
#ifdef WIDE
    {16, room_16, train_16},
    {8, room_8, train_8},
#endif
    {4, room_4, train_4},
};

static int runs_here(int lanes) {
#ifdef WIDE
    if (lanes == 16)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq");
    if (lanes == 8)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return lanes == 4;
}

/* The variant of so many lanes, the widest for 0; NULL with an exception set if this processor has none. */
static const Variant *variant_of(int lanes) {
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        if ((lanes == 0 || lanes == variants[i].lanes) && runs_here(variants[i].lanes))
            return &variants[i];
    PyErr_Format(PyExc_ValueError, "this processor has no vectors of %d floats", lanes);
    return NULL;
}

static int get(PyObject *object, Py_buffer *view, Py_ssize_t itemsize, int flags, const char *name) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | flags) < 0)
        return -1;
    if (view->itemsize != itemsize || (uintptr_t)view->buf % (uintptr_t)itemsize) {
        PyErr_Format(PyExc_ValueError, "%s: expected aligned items of %zd bytes", name, itemsize);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

static int64_t items(const Py_buffer *view) { return view->len / view->itemsize; }

static int wrong(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return -1;
}

static int check_network(const Network *net, int64_t widths, int64_t params) {
    int64_t size = 0;
    if (widths < 2 || widths > MAX_LAYERS + 1)
        return wrong("expected from 2 to 17 widths");
    for (int l = 0; l < net->layers; l++) {
        if (net->widths[l] < 1 || net->widths[l + 1] < 1 || net->widths[l] > 1 << 24 || net->widths[l + 1] > 1 << 24)
            return wrong("a width is out of range");
        size += (net->widths[l] + 1) * net->widths[l + 1];
    }
    return size == params ? 0 : wrong("the parameters do not have the size of this network");
}

/* Nothing that is read or written by a row number or class may lie outside the arrays. */
static int check_rows(const Network *net, const Rows *rows, int64_t x_size, int64_t y_size, int64_t order) {
    int64_t outputs = net->widths[net->layers], count = x_size / net->widths[0], taken = 0;
    if (y_size != (rows->classes ? count : count * outputs))
        return wrong("x and y do not have the same number of rows");
    for (int64_t s = 0; s < rows->batches; s++) {
        if (rows->sizes[s] < 1 || rows->sizes[s] > order)
            return wrong("a batch is empty, or larger than the order of rows");
        taken += rows->sizes[s];
    }
    if (taken != order)
        return wrong("the batches do not cover the order of rows");
    for (int64_t i = 0; i < order; i++) {
        if (rows->order[i] < 0 || rows->order[i] >= count)
            return wrong("a row number is out of range");
        if (rows->classes && (rows->classes[rows->order[i]] < 0 || rows->classes[rows->order[i]] >= outputs))
            return wrong("a class is out of range");
    }
    return 0;
}

PyDoc_STRVAR(room_doc, "room(widths, batch, momentum, mu, lanes=0) -> bytes of workspace that `train` needs");

static PyObject *room(PyObject *module, PyObject *arguments) {
    PyObject *object;
    Py_ssize_t batch;
    Step step = {0};
    int lanes = 0;
    Py_buffer widths;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "Onff|i:room", &object, &batch, &step.momentum, &step.mu, &lanes))
        return NULL;
    const Variant *variant = variant_of(lanes);
    if (!variant || get(object, &widths, sizeof(int64_t), PyBUF_SIMPLE, "widths") < 0)
        return NULL;
    Network net = {(int)items(&widths) - 1, widths.buf, NULL, 0};
    int64_t floats = net.layers > 0 && net.layers <= MAX_LAYERS ? variant->room(&net, &step, batch) : 0;
    PyBuffer_Release(&widths);
    return PyLong_FromLongLong(floats * (int64_t)sizeof(float) + ALIGNMENT);
}

enum { WIDTHS, PARAMS, X, Y, ORDER, SIZES, SPACE, DELTA, BUFFERS };
static const char *const names[] = {"widths", "params", "x", "y", "order", "sizes", "workspace", "delta"};
static const Py_ssize_t item_size[] = {8, 4, 4, 0, 8, 8, 1, 4};

static int train_in(const Py_buffer *view, int classes, Step *step, int64_t tallied, int lanes, Tally *tally) {
    const Variant *variant = variant_of(lanes);
    Network net = {(int)items(&view[WIDTHS]) - 1, view[WIDTHS].buf, view[PARAMS].buf, 0};
    Rows rows = {view[X].buf,     classes ? view[Y].buf : NULL, classes ? NULL : view[Y].buf, view[ORDER].buf,
                 view[SIZES].buf, items(&view[SIZES]),          tallied};
    if (!variant || check_network(&net, items(&view[WIDTHS]), items(&view[PARAMS])) < 0 ||
        check_rows(&net, &rows, items(&view[X]), items(&view[Y]), items(&view[ORDER])) < 0)
        return -1;
    if (items(&view[DELTA]) != items(&view[PARAMS]))
        return wrong("delta does not have the size of the parameters");
    uintptr_t space = ((uintptr_t)view[SPACE].buf + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (view[SPACE].len < variant->room(&net, step, largest(&rows)) * (int64_t)sizeof(float) + ALIGNMENT)
        return wrong("the workspace is too small");
    Py_BEGIN_ALLOW_THREADS
    variant->train(&net, step, &rows, (float *)space, view[DELTA].buf, tally);
    Py_END_ALLOW_THREADS
    return 0;
}

PyDoc_STRVAR(train_doc,
             "train(widths, params, x, y, order, sizes, workspace, delta, tallied, lr, momentum, decay, mu, lanes=0)\n"
             "-> (summed loss, hits)\n\n"
             "Train a dense relu network on batches of `sizes` consecutive rows of `order`, and write how its\n"
             "parameters changed to `delta`. y is int64 (n,) classes or float32 (n, outputs) targets; loss and hits\n"
             "are of the batches from number `tallied` on. The lock of the interpreter is free meanwhile.");

static PyObject *train(PyObject *module, PyObject *arguments) {
    PyObject *objects[BUFFERS], *result = NULL;
    Py_buffer views[BUFFERS];
    Py_ssize_t tallied;
    Step step;
    Tally tally = {0};
    int lanes = 0, got = 0, classes = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOOOOOOnffff|i:train", &objects[0], &objects[1], &objects[2], &objects[3],
                          &objects[4], &objects[5], &objects[6], &objects[7], &tallied, &step.lr, &step.momentum,
                          &step.decay, &step.mu, &lanes))
        return NULL;
    for (; got < BUFFERS; got++) {
        int flags = got == SPACE || got == DELTA ? PyBUF_WRITABLE : PyBUF_SIMPLE;
        Py_ssize_t size = item_size[got];
        if (got == Y) {
            if (PyObject_GetBuffer(objects[Y], &views[Y], PyBUF_C_CONTIGUOUS) < 0)
                break;
            classes = views[Y].itemsize == 8;
            PyBuffer_Release(&views[Y]);
            size = classes ? 8 : 4;
        }
        if (get(objects[got], &views[got], size, flags, names[got]) < 0)
            break;
    }
    if (got == BUFFERS && train_in(views, classes, &step, tallied, lanes, &tally) == 0)
        result = Py_BuildValue("dL", tally.loss, (long long)tally.hits);
    while (got > 0)
        PyBuffer_Release(&views[--got]);
    return result;
}

PyDoc_STRVAR(lanes_doc, "lanes() -> the vector widths that this processor has, in floats, the widest first");

static PyObject *lanes(PyObject *module, PyObject *arguments) {
    PyObject *found = PyList_New(0);
    (void)module, (void)arguments;
    for (size_t i = 0; found && i < sizeof variants / sizeof *variants; i++) {
        PyObject *number = runs_here(variants[i].lanes) ? PyLong_FromLong(variants[i].lanes) : NULL;
        if (number)
            PyList_Append(found, number);
        Py_XDECREF(number);
    }
    return found;
}

static PyMethodDef methods[] = {
    {"train", train, METH_VARARGS, train_doc},
    {"room", room, METH_VARARGS, room_doc},
    {"lanes", lanes, METH_NOARGS, lanes_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tutti.sim.engines._fused",
    .m_doc = "Local training of dense networks in one compiled loop.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__fused(void) { return PyModuleDef_Init(&definition); }
