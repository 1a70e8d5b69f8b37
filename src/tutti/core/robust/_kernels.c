/* Inner products, weighted sums and sorted columns of many float32 vectors, in one pass over memory each.

   The same arithmetic as the numpy code in _columns.py; window_mean and combine are tested equal to it bit for bit.
   Results do not depend on the number of threads or the kind of CPU: every sum has a fixed order. Compiled with
   -ffp-contract=off, lest a CPU with fused multiply-add rounds less often. Memory: a cache-sized piece for each thread
   and, for the inner products, a few matrices. No Python object is touched while the GIL is released. */

#include "../_kernels.h"

enum {
    PIECE = 1024, /* values of each vector that are worked on together: 50 vectors fit in the second-level cache */
    SLICE = 64,   /* columns that are sorted together, in the first-level cache */
    LANES = 8,
    TILE = 4,
    CHUNKS = 16, /* partial sums of inner products; fixed, so that their order is */
};

typedef double Lanes __attribute__((vector_size(LANES * sizeof(double))));

typedef struct {
    int32_t low, high;
} Pair;

typedef struct {
    void *out;
    const float *const *columns;
    const double *coefficients;
    size_t count;
    const Block *blocks;
    size_t block_count, tasks;
    const Pair *pairs;
    size_t pair_count, low, width, slide;
    atomic_size_t next;
} Job;

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

static size_t up_to(size_t size, size_t multiple) { return (size + multiple - 1) / multiple * multiple; }

/* Room for rows of PIECE items, a cache line apart from a multiple of 4096 bytes, which would share cache sets. */
static void *rows_of(size_t count, size_t itemsize, size_t *stride) {
    void *rows = NULL;
    *stride = PIECE + 64 / itemsize;
    return posix_memalign(&rows, 64, count * *stride * itemsize) == 0 ? rows : NULL;
}

/* -- inner products ------------------------------------------------------------------------------------------ */

FOR_EACH_CPU static void widen(double *restrict row, const float *restrict values, size_t size, size_t padded) {
    for (size_t i = 0; i < size; i++)
        row[i] = values[i];
    for (size_t i = size; i < padded; i++)
        row[i] = 0.0;
}

/* Adds the upper triangle, in tiles; products of two floats are exact in a double. */
FOR_EACH_CPU static void add_products(double *gram, const double *rows, size_t count, size_t stride, size_t size) {
    for (size_t i = 0; i < count; i += TILE)
        for (size_t j = i; j < count; j += TILE) {
            Lanes sums[TILE][TILE] = {0};
            for (size_t at = 0; at < size; at += LANES) {
                Lanes left[TILE], right[TILE];
                for (size_t k = 0; k < TILE; k++) {
                    left[k] = *(const Lanes *)(rows + (i + k) * stride + at);
                    right[k] = *(const Lanes *)(rows + (j + k) * stride + at);
                }
                for (size_t k = 0; k < TILE; k++)
                    for (size_t m = 0; m < TILE; m++)
                        sums[k][m] += left[k] * right[m];
            }
            for (size_t k = 0; k < TILE; k++)
                for (size_t m = 0; m < TILE; m++) {
                    Lanes s = sums[k][m];
                    gram[(i + k) * count + j + m] += ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
                }
        }
}

static void *gram_work(void *argument) {
    Job *job = argument;
    size_t padded = up_to(job->count, TILE), stride, task;
    double *rows = rows_of(padded, sizeof *rows, &stride);
    if (!rows)
        return NULL; /* the other threads do it all, or nobody, and the caller notices */
    memset(rows, 0, padded * stride * sizeof *rows);
    while ((task = atomic_fetch_add(&job->next, 1)) < job->tasks) {
        double *gram = (double *)job->out + task * padded * padded;
        size_t last = (task + 1) * job->block_count / job->tasks;
        for (size_t b = task * job->block_count / job->tasks; b < last; b++)
            for (int64_t at = job->blocks[b].start; at < job->blocks[b].stop; at += PIECE) {
                size_t size = least(PIECE, (size_t)(job->blocks[b].stop - at));
                for (size_t k = 0; k < job->count; k++)
                    widen(rows + k * stride, job->columns[k] + at, size, up_to(size, LANES));
                add_products(gram, rows, padded, stride, up_to(size, LANES));
            }
    }
    free(rows);
    return NULL;
}

/* -- weighted sums --------------------------------------------------------------------------------------------- */

FOR_EACH_CPU static void add_weighted(double *restrict sums, const float *restrict values, size_t size, double by) {
    for (size_t i = 0; i < size; i++)
        sums[i] += by * (double)values[i];
}

FOR_EACH_CPU static void narrow(float *restrict out, const double *restrict sums, size_t size) {
    for (size_t i = 0; i < size; i++)
        out[i] = (float)sums[i] + 0.0f; /* there is one zero only */
}

static void *combine_work(void *argument) {
    Job *job = argument;
    double sums[PIECE];
    size_t task;
    while ((task = atomic_fetch_add(&job->next, 1)) < job->tasks)
        for (int64_t at = job->blocks[task].start; at < job->blocks[task].stop; at += PIECE) {
            size_t size = least(PIECE, (size_t)(job->blocks[task].stop - at));
            memset(sums, 0, sizeof sums);
            for (size_t k = 0; k < job->count; k++)
                add_weighted(sums, job->columns[k] + at, size, job->coefficients[k]);
            narrow((float *)job->out + at, sums, size);
        }
    return NULL;
}

/* -- sorted columns ---------------------------------------------------------------------------------------------- */

/* Integers that order as the floats do, -0 before 0; the function is its own inverse. Integers have a minimum and a
   maximum on every CPU that need no second look at zeros. */
static inline int32_t key(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

static inline double value(int32_t k) {
    int32_t bits = key(k);
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

FOR_EACH_CPU static void to_keys(int32_t *restrict row, const float *restrict values, size_t size, size_t padded) {
    for (size_t i = 0; i < size; i++) {
        int32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        row[i] = key(bits);
    }
    for (size_t i = size; i < padded; i++)
        row[i] = 0;
}

FOR_EACH_CPU static void exchange(int32_t *rows, size_t stride, const Pair *pairs, size_t count) {
    for (size_t p = 0; p < count; p++) {
        int32_t *restrict a = rows + (size_t)pairs[p].low * stride, *restrict b = rows + (size_t)pairs[p].high * stride;
        for (size_t i = 0; i < SLICE; i++) {
            int32_t x = a[i], y = b[i];
            a[i] = x < y ? x : y;
            b[i] = x < y ? y : x;
        }
    }
}

FOR_EACH_CPU static void sum_rows(double *restrict sums, const int32_t *rows, size_t stride, size_t count) {
    for (size_t r = 0; r < count; r++)
        for (size_t i = 0; i < SLICE; i++)
            sums[i] += value(rows[r * stride + i]);
}

/* A window of `width` rows moves up while the row it would take in is nearer to the middle than the one it would lose.
   The sums v[r] + v[r + width] rise with r, so whether row r is in the last window needs two comparisons only. */
FOR_EACH_CPU static void sum_nearest(double *restrict sums, const int32_t *rows, size_t stride, size_t width,
                                     size_t slide, const double *restrict twice_middle) {
    for (size_t r = 0; r < slide + width; r++)
        for (size_t i = 0; i < SLICE; i++) {
            double here = value(rows[r * stride + i]);
            int reached = r < width || value(rows[(r - width) * stride + i]) + here < twice_middle[i];
            int passed = r < slide && here + value(rows[(r + width) * stride + i]) < twice_middle[i];
            sums[i] += reached && !passed ? here : 0.0;
        }
}

FOR_EACH_CPU static void store_means(float *restrict out, const double *restrict sums, size_t size, double width) {
    for (size_t i = 0; i < size; i++)
        out[i] = (float)(sums[i] / width) + 0.0f;
}

static void slice_means(const Job *job, float *out, int32_t *rows, size_t stride, size_t size) {
    double sums[SLICE] = {0}, twice_middle[SLICE] = {0};
    const int32_t *first = rows + job->low * stride;
    exchange(rows, stride, job->pairs, job->pair_count);
    if (job->slide) {
        sum_rows(twice_middle, rows + (job->count - 1) / 2 * stride, stride, 1);
        sum_rows(twice_middle, rows + job->count / 2 * stride, stride, 1);
        sum_nearest(sums, first, stride, job->width, job->slide, twice_middle);
    } else {
        sum_rows(sums, first, stride, job->width);
    }
    store_means(out, sums, size, (double)job->width);
}

static void *window_work(void *argument) {
    Job *job = argument;
    size_t stride, task;
    int32_t *rows = rows_of(job->count, sizeof *rows, &stride);
    if (!rows)
        return NULL;
    while ((task = atomic_fetch_add(&job->next, 1)) < job->tasks)
        for (int64_t at = job->blocks[task].start; at < job->blocks[task].stop; at += PIECE) {
            size_t size = least(PIECE, (size_t)(job->blocks[task].stop - at));
            for (size_t k = 0; k < job->count; k++)
                to_keys(rows + k * stride, job->columns[k] + at, size, up_to(size, SLICE));
            for (size_t i = 0; i < size; i += SLICE)
                slice_means(job, (float *)job->out + at + i, rows + i, stride, least(SLICE, size - i));
        }
    free(rows);
    return NULL;
}

/* -- Python ------------------------------------------------------------------------------------------------------- */

/* Runs `work` on all tasks; 0, or -1 with an exception if there was no memory to do them. */
static int run(void *(*work)(void *), Job *job, Py_ssize_t threads) {
    Py_BEGIN_ALLOW_THREADS
    run_threads(work, job, job->tasks, threads > 0 ? (size_t)threads : 0);
    Py_END_ALLOW_THREADS
    if (atomic_load(&job->next) >= job->tasks)
        return 0;
    PyErr_NoMemory();
    return -1;
}

/* Gets columns, coefficients (unless NULL) and blocks; on failure an exception is set, and release() is still due. */
static int fill(Job *job, Vectors *vectors, PyObject *columns, PyObject *coefficients, PyObject *blocks,
                Py_ssize_t size, Py_buffer *view) {
    if (get_vectors(columns, coefficients, size, vectors) < 0 || get_blocks(blocks, size, view) < 0)
        return -1;
    job->columns = vectors->deltas;
    job->coefficients = vectors->scales;
    job->count = (size_t)vectors->count;
    job->blocks = view->buf;
    job->block_count = job->tasks = (size_t)view->len / sizeof(Block);
    return 0;
}

static void add_up(double *out, const double *partial, size_t count, size_t padded, size_t tasks) {
    for (size_t i = 0; i < count; i++)
        for (size_t j = i; j < count; j++) {
            double sum = 0.0;
            for (size_t t = 0; t < tasks; t++)
                sum += partial[(t * padded + i) * padded + j];
            out[i * count + j] = out[j * count + i] = sum;
        }
}

static int gram_into(Job *job, Py_buffer *out, Py_ssize_t threads) {
    size_t padded = up_to(job->count, TILE);
    if ((size_t)out->len != job->count * job->count * sizeof(double)) {
        PyErr_Format(PyExc_ValueError, "out does not have %zu x %zu values", job->count, job->count);
        return -1;
    }
    job->tasks = CHUNKS;
    double *partial = calloc(CHUNKS * padded * padded + 1, sizeof *partial);
    if (!partial) {
        PyErr_NoMemory();
        return -1;
    }
    job->out = partial;
    int done = run(gram_work, job, threads);
    if (done == 0)
        add_up(out->buf, partial, job->count, padded, CHUNKS);
    free(partial);
    return done;
}

PyDoc_STRVAR(gram_doc, "gram(out, columns, size, blocks, threads=0) -> None\n\n"
                       "Inner products of float32 vectors of `size` values within the blocks, float64 (n, n).\n"
                       "threads=0 means one for each CPU that this process may use.");

static PyObject *gram(PyObject *module, PyObject *arguments) {
    PyObject *object, *columns, *blocks;
    Py_ssize_t size, threads = 0;
    Py_buffer out, view = {0};
    Vectors vectors = {0};
    Job job = {0};
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOnO|n:gram", &object, &columns, &size, &blocks, &threads) ||
        get_vector(object, &out, sizeof(double), PyBUF_WRITABLE) < 0)
        return NULL;
    int done = fill(&job, &vectors, columns, NULL, blocks, size, &view);
    if (done == 0)
        done = gram_into(&job, &out, threads);
    PyBuffer_Release(&view);
    release(&vectors);
    PyBuffer_Release(&out);
    return done == 0 ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(combine_doc, "combine(out, columns, coefficients, blocks, threads=0) -> None\n\n"
                          "The float32 vectors times their coefficients, added in float64 in the order given, to float32\n"
                          "out, within the blocks. threads=0 means one for each CPU that this process may use.");

static PyObject *combine(PyObject *module, PyObject *arguments) {
    PyObject *object, *columns, *coefficients, *blocks;
    Py_ssize_t threads = 0;
    Py_buffer out, view = {0};
    Vectors vectors = {0};
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOO|n:combine", &object, &columns, &coefficients, &blocks, &threads) ||
        get_vector(object, &out, sizeof(float), PyBUF_WRITABLE) < 0)
        return NULL;
    Job job = {.out = out.buf};
    int done = fill(&job, &vectors, columns, coefficients, blocks, out.len / (Py_ssize_t)sizeof(float), &view);
    if (done == 0)
        done = run(combine_work, &job, threads);
    PyBuffer_Release(&view);
    release(&vectors);
    PyBuffer_Release(&out);
    return done == 0 ? Py_NewRef(Py_None) : NULL;
}

static int check_window(const Job *job, Py_ssize_t low, Py_ssize_t width, Py_ssize_t slide) {
    for (size_t p = 0; p < job->pair_count; p++) {
        Pair pair = job->pairs[p];
        if (pair.low < 0 || pair.low >= pair.high || (size_t)pair.high >= job->count) {
            PyErr_Format(PyExc_ValueError, "pair %zu does not name two of the %zu rows in order", p, job->count);
            return -1;
        }
    }
    Py_ssize_t count = (Py_ssize_t)job->count;
    if (low < 0 || width < 1 || slide < 0 || low > count || width > count - low || slide > count - low - width) {
        PyErr_Format(PyExc_ValueError, "the window does not stay within the %zd sorted rows", count);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(window_doc, "window_mean(out, columns, pairs, low, width, slide, blocks, threads=0) -> None\n\n"
                         "Mean of `width` neighbours among the sorted values at each place of the float32 vectors, to\n"
                         "float32 out, within the blocks: those from rank `low` on or, if they are nearer to the\n"
                         "median, up to `slide` ranks above. `pairs` is the sorting network, int32 (m, 2).\n"
                         "threads=0 means one for each CPU that this process may use.");

static PyObject *window_mean(PyObject *module, PyObject *arguments) {
    PyObject *object, *columns, *network, *blocks;
    Py_ssize_t low, width, slide, threads = 0;
    Py_buffer out, pairs, view = {0};
    Vectors vectors = {0};
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOnnnO|n:window_mean", &object, &columns, &network, &low, &width, &slide,
                          &blocks, &threads) ||
        get_vector(object, &out, sizeof(float), PyBUF_WRITABLE) < 0)
        return NULL;
    if (get_vector(network, &pairs, sizeof(int32_t), PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&out);
        return NULL;
    }
    Job job = {.out = out.buf, .pairs = pairs.buf, .pair_count = (size_t)pairs.len / sizeof(Pair)};
    int done = fill(&job, &vectors, columns, NULL, blocks, out.len / (Py_ssize_t)sizeof(float), &view);
    if (done == 0)
        done = check_window(&job, low, width, slide);
    if (done == 0) {
        job.low = (size_t)low, job.width = (size_t)width, job.slide = (size_t)slide;
        done = run(window_work, &job, threads);
    }
    PyBuffer_Release(&view);
    release(&vectors);
    PyBuffer_Release(&pairs);
    PyBuffer_Release(&out);
    return done == 0 ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef methods[] = {
    {"combine", combine, METH_VARARGS, combine_doc},
    {"gram", gram, METH_VARARGS, gram_doc},
    {"window_mean", window_mean, METH_VARARGS, window_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tutti.core.robust._kernels",
    .m_doc = "Compiled inner loops of tutti.core.robust.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
