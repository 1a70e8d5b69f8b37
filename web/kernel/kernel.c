/* The browser node's arithmetic, compiled to WebAssembly: training of dense networks and of the CNN of McMahan et al.
   2017. The same file runs in browsers and, for audits, in the coordinator, and gives the same bits in both. */

#include <stddef.h>

#define LANES 4
#define TILE 6
#define CASES CASES_6
#define NAME(x) x##_4
#include "dense.h"

#include "convolution.h"

#define EXPORT(name) __attribute__((export_name(#name)))
#define IMPORT(name) __attribute__((import_module("host"), import_name(#name)))

enum { PAGE = 65536, ALIGN = 16, FIRST_MAPS = 32, SECOND_MAPS = 64, HIDDEN = 512, REPORT_EVERY = 4 };

extern unsigned char __heap_base;
static uintptr_t used;

/* How much of the work is done, from 0 to 1, and the mean loss of the epoch so far. */
IMPORT(report) void report(float done, double loss);

/* Zeroed memory until `free_all`; 0 if there is none left. */
EXPORT(take) void *take(uint32_t size) {
    uintptr_t start = (used ? used : (uintptr_t)&__heap_base) + (ALIGN - 1) & ~(uintptr_t)(ALIGN - 1);
    uint64_t end = (uint64_t)start + size, have = (uint64_t)__builtin_wasm_memory_size(0) * PAGE;
    if (end > have && (end > UINT32_MAX || __builtin_wasm_memory_grow(0, (size_t)((end - have + PAGE - 1) / PAGE)) == SIZE_MAX))
        return NULL;
    used = (uintptr_t)end;
    memset((void *)start, 0, size);
    return (void *)start;
}

/* Room for so many floats, which may be more than there can be. */
static float *floats(int64_t count) {
    return count > UINT32_MAX / (int64_t)sizeof(float) ? NULL : take((uint32_t)(count * (int64_t)sizeof(float)));
}

EXPORT(free_all) void free_all(void) { used = 0; }

/* What a model is made of: `channels` is 0 without convolutions, before which an image is (channels, height, width).
   `widths` are those of the dense layers, `layers` + 1 of them. */
typedef struct {
    int32_t channels, height, width, layers;
    int64_t widths[MAX_LAYERS + 1];
} Model;

typedef struct {
    const Model *model;
    Convolution_4 first, second;
    Network head;
    Body_4 body;
    float *images; /* of a batch, channels last */
    float *work;   /* patches of one image */
    float *d_pooled;
    int64_t image, most;
} Machine;

static int64_t inputs_of(const Model *model) {
    return model->channels ? (int64_t)model->channels * model->height * model->width : model->widths[0];
}

static int64_t of_convolutions(const Machine *m) {
    return m->model->channels ? weight_count_4(&m->first) + weight_count_4(&m->second) : 0;
}

/* Set a machine up for batches of at most `most` rows; returns whether there was memory enough. */
static int build(Machine *m, const Model *model, const Step *step, int64_t most, const float *params) {
    m->model = model;
    m->image = inputs_of(model);
    m->most = most;
    if (model->channels) {
        shape_4(&m->first, model->channels, model->height, model->width, FIRST_MAPS);
        shape_4(&m->second, FIRST_MAPS, model->height / 2, model->width / 2, SECOND_MAPS);
        int64_t size = convolution_room_4(&m->first, step, most) + convolution_room_4(&m->second, step, most);
        int64_t patch = pixels_4(&m->first) * (CELLS * model->channels + LANES);
        int64_t other = pixels_4(&m->second) * CELLS * FIRST_MAPS;
        float *space = floats(size);
        m->images = floats(most * m->image);
        m->work = floats(patch > other ? patch : other);
        m->d_pooled = floats(pooled_size_4(&m->first));
        if (!space || !m->images || !m->work || !m->d_pooled)
            return 0;
        space = place_4(&m->first, step, most, params, space);
        place_4(&m->second, step, most, params + weight_count_4(&m->first), space);
    }
    m->head = (Network){model->layers, model->widths, params + of_convolutions(m), model->channels != 0};
    float *space = floats(room_4(&m->head, step, most));
    if (!space)
        return 0;
    open_4(&m->body, &m->head, step, most, space);
    return 1;
}

/* Between (row, column, channel), as convolutions have it, and (channel, row, column), as parameters have it. */
static void channels_first(const Convolution_4 *c, const float *from, float *to, int back) {
    int64_t area = c->height / 2 * (c->width / 2);
    for (int64_t o = 0; o < c->maps; o++)
        for (int64_t p = 0; p < area; p++) {
            int64_t last = p * c->stride + o, first = o * area + p;
            to[back ? last : first] = from[back ? first : last];
        }
}

/* Row r of the batch, up to where the dense layers begin. */
static void load(Machine *m, int64_t r, const float *x) {
    const Model *model = m->model;
    if (!model->channels) {
        memcpy(m->body.x + r * m->body.x_stride, x, (size_t)m->image * sizeof *x);
        return;
    }
    float *image = m->images + r * m->image;
    int64_t area = (int64_t)model->height * model->width;
    for (int64_t k = 0; k < model->channels; k++)
        for (int64_t p = 0; p < area; p++)
            image[p * model->channels + k] = x[k * area + p];
    look_4(&m->first, r, image, model->channels, m->work);
    look_4(&m->second, r, m->first.pooled + r * pooled_size_4(&m->first), m->first.stride, m->work);
    channels_first(&m->second, m->second.pooled + r * pooled_size_4(&m->second), m->body.x + r * m->body.x_stride, 0);
}

static void learn_convolutions(Machine *m, const Step *step, int64_t batch) {
    int64_t size = pooled_size_4(&m->first);
    float *pooled = m->d_pooled;
    for (int64_t r = 0; r < batch; r++) {
        channels_first(&m->second, m->body.dx + r * m->body.x_stride, pooled, 1);
        unpool_4(&m->second, r, pooled);
        memset(pooled, 0, (size_t)size * sizeof *pooled);
        trace_4(&m->second, r, pooled, m->first.stride, m->work);
        unpool_4(&m->first, r, pooled);
    }
    learn_4(&m->second, step, batch, m->first.pooled, size, m->first.stride, m->work);
    learn_4(&m->first, step, batch, m->images, m->image, m->model->channels, m->work);
}

/* Train on batches of `sizes` consecutive rows of `order`, and write how the parameters changed to `delta`. `classes` or
   `targets` is 0. From batch `tallied` on, loss and hits are summed in `tally`. Returns 0 if memory runs out. */
EXPORT(train) int32_t train_model(const Model *model, const Step *step, const float *params, const float *x,
                                  const int64_t *classes, const float *targets, const int64_t *order,
                                  const int64_t *sizes, int32_t batches, int32_t tallied, float *delta, Tally *tally) {
    Machine machine = {0}, *m = &machine;
    Rows rows = {x, classes, targets, order, sizes, batches, tallied};
    if (!build(m, model, step, largest(&rows), params))
        return 0;
    int64_t seen = 0;
    for (int32_t s = 0; s < batches; s++) {
        int64_t batch = sizes[s];
        for (int64_t r = 0; r < batch; r++)
            load(m, r, x + order[r] * m->image);
        descend_4(&m->body, step, &rows, order, batch, s >= tallied ? tally : NULL);
        if (model->channels)
            learn_convolutions(m, step, batch);
        order += batch;
        seen += s >= tallied ? batch : 0;
        if ((s + 1) % REPORT_EVERY == 0 || s + 1 == batches)
            report((float)(s + 1) / (float)batches, seen ? tally->loss / (double)seen : 0);
    }
    if (model->channels) {
        change_4(&m->first, params, delta);
        change_4(&m->second, params + weight_count_4(&m->first), delta + weight_count_4(&m->first));
    }
    close_4(&m->body, &m->head, delta + of_convolutions(m));
    return 1;
}

/* What the model gives for `count` rows of x: logits or targets, (count, outputs). Returns 0 if memory runs out. */
EXPORT(predict) int32_t predict_rows(const Model *model, const float *params, const float *x, int32_t count, float *out) {
    enum { MOST = 32 };
    Machine machine = {0}, *m = &machine;
    Step still = {0};
    if (!build(m, model, &still, MOST, params))
        return 0;
    const Layer_4 *last = &m->body.layers[model->layers - 1];
    for (int32_t at = 0; at < count; at += MOST) {
        int64_t batch = count - at < MOST ? count - at : MOST;
        for (int64_t r = 0; r < batch; r++)
            load(m, r, x + (at + r) * m->image);
        infer_4(&m->body, batch);
        for (int64_t r = 0; r < batch; r++)
            memcpy(out + (at + r) * last->outputs, last->y + r * last->stride, (size_t)last->outputs * sizeof *out);
    }
    return 1;
}
