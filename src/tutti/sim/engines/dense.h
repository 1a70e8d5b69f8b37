/* Trains one node's dense relu network by SGD, for any number of layers: products, gradients and steps in registers.

   Freestanding but for <math.h>, <stdint.h> and <string.h>, so that other hosts can compile it too. Include it once
   for each instruction set, with LANES (floats in a vector, 4 or more), TILE (rows of a batch whose sums fit the
   registers), CASES (1 to TILE) and NAME(x) defined. Weights are kept as [input][output], the outputs padded with
   zeros to whole vectors. */

#ifndef TUTTI_DENSE
#define TUTTI_DENSE

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define CASE(n, call)                                                                                              \
    case n:                                                                                                        \
        call(n);                                                                                                   \
        break;
#define CASES_6(call) CASE(1, call) CASE(2, call) CASE(3, call) CASE(4, call) CASE(5, call) CASE(6, call)
#define CASES_10(call) CASES_6(call) CASE(7, call) CASE(8, call) CASE(9, call) CASE(10, call)

enum { MAX_LAYERS = 16 };

/* `params` holds for each layer its weights as (output, input) rows and then its bias. */
typedef struct {
    int layers;
    const int64_t *widths; /* layers + 1 of them */
    const float *params;
    int through; /* whether the gradient of the inputs is wanted too */
} Network;

/* The step of torch.optim.SGD, with FedProx's pull of strength mu towards the parameters it started from. */
typedef struct {
    float lr, momentum, decay, mu;
} Step;

/* Which rows make which batch. Either classes or targets (values, outputs) are given. */
typedef struct {
    const float *x;
    const int64_t *classes;
    const float *targets;
    const int64_t *order, *sizes; /* row numbers, and how many of them each batch takes */
    int64_t batches, tallied;     /* the first batch whose loss counts */
} Rows;

typedef struct {
    double loss; /* summed over rows */
    int64_t hits;
} Tally;

static int64_t largest(const Rows *rows) {
    int64_t found = 0;
    for (int64_t s = 0; s < rows->batches; s++)
        found = rows->sizes[s] > found ? rows->sizes[s] : found;
    return found;
}

/* Softmax and cross entropy: leaves the gradient of the batch's mean loss in d. */
static void judge_classes(const Rows *rows, const int64_t *order, int64_t batch, int64_t outputs, int64_t stride,
                          const float *y, float *d, Tally *tally) {
    for (int64_t r = 0; r < batch; r++, y += stride, d += stride) {
        int64_t class = rows->classes[order[r]], best = 0;
        float total = 0;
        for (int64_t o = 1; o < outputs; o++)
            best = y[o] > y[best] ? o : best;
        for (int64_t o = 0; o < outputs; o++)
            total += d[o] = expf(y[o] - y[best]);
        if (tally) {
            tally->loss += (double)(logf(total) - (y[class] - y[best]));
            tally->hits += best == class;
        }
        for (int64_t o = 0; o < outputs; o++)
            d[o] = (d[o] / total - (o == class)) / (float)batch;
    }
}

/* The same for the mean squared error over rows and outputs. */
static void judge_targets(const Rows *rows, const int64_t *order, int64_t batch, int64_t outputs, int64_t stride,
                          const float *y, float *d, Tally *tally) {
    for (int64_t r = 0; r < batch; r++, y += stride, d += stride) {
        const float *target = rows->targets + order[r] * outputs;
        for (int64_t o = 0; o < outputs; o++) {
            float error = y[o] - target[o];
            if (tally)
                tally->loss += (double)(error * error) / (double)outputs;
            d[o] = 2 * error / (float)(batch * outputs);
        }
    }
}

#endif

typedef float NAME(vec) __attribute__((vector_size(4 * LANES)));
#define vec NAME(vec)
#define padded(n) (((n) + LANES - 1) / LANES * LANES)

/* y[r] = b + x[r] W, or x[r] W without b, for `rows` rows and `width` vectors of outputs */
INLINE void NAME(forward)(const int rows, const int width, int64_t inputs, const float *x, int64_t x_stride,
                          const float *w, const float *b, float *y, int64_t stride) {
    vec sums[TILE][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < width; v++)
            sums[r][v] = b ? *(const vec *)(b + v * LANES) : (vec){0};
    for (int64_t i = 0; i < inputs; i++) {
        vec weights[2];
        for (int v = 0; v < width; v++)
            weights[v] = *(const vec *)(w + i * stride + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < width; v++)
                sums[r][v] += x[r * x_stride + i] * weights[v];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < width; v++)
            *(vec *)(y + r * stride + v * LANES) = sums[r][v];
}

/* W += x^T d, b += sum d, for `rows` rows and `width` vectors of outputs; b may be missing */
INLINE void NAME(update)(const int rows, const int width, int64_t inputs, const float *x, int64_t x_stride,
                         const float *d, float *w, float *b, int64_t stride) {
    vec steps[TILE][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < width; v++)
            steps[r][v] = *(const vec *)(d + r * stride + v * LANES);
    for (int64_t i = 0; i < inputs; i++) {
        vec weights[2];
        for (int v = 0; v < width; v++)
            weights[v] = *(const vec *)(w + i * stride + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < width; v++)
                weights[v] += x[r * x_stride + i] * steps[r][v];
        for (int v = 0; v < width; v++)
            *(vec *)(w + i * stride + v * LANES) = weights[v];
    }
    for (int v = 0; b && v < width; v++) {
        vec sum = *(const vec *)(b + v * LANES);
        for (int r = 0; r < rows; r++)
            sum += steps[r][v];
        *(vec *)(b + v * LANES) = sum;
    }
}

#define EACH_WIDTH(call)                                                                                           \
    for (int64_t o = 0; o < stride; o += LANES)                                                                    \
        if (stride - o >= 2 * LANES) {                                                                             \
            call(2);                                                                                               \
            o += LANES;                                                                                            \
        } else {                                                                                                   \
            call(1);                                                                                               \
        }

/* The compiler must know how many rows there are to keep their sums in registers: one copy for each number. */
#define FORWARD(width) NAME(forward)(rows, width, inputs, x, x_stride, w + o, b ? b + o : 0, y + o, stride)
#define UPDATE(width) NAME(update)(rows, width, inputs, x, x_stride, d + o, w + o, b ? b + o : 0, stride)

INLINE void NAME(forward_rows)(const int rows, int64_t inputs, const float *x, int64_t x_stride, const float *w,
                               const float *b, float *y, int64_t stride) {
    EACH_WIDTH(FORWARD)
}

INLINE void NAME(update_rows)(const int rows, int64_t inputs, const float *x, int64_t x_stride, const float *d,
                              float *w, float *b, int64_t stride) {
    EACH_WIDTH(UPDATE)
}

#define FOR_ROWS(rows, call)                                                                                       \
    switch (rows) {                                                                                                \
        CASES(call)                                                                                                \
    }

/* Rows of a batch in tiles of nearly equal height. */
static int NAME(tile)(int64_t rows) {
    int64_t tiles = (rows + TILE - 1) / TILE;
    return (int)((rows + tiles - 1) / tiles);
}

static void NAME(layer_forward)(int64_t batch, int64_t inputs, const float *x, int64_t x_stride, const float *w,
                                const float *b, float *y, int64_t stride) {
    int tile = NAME(tile)(batch);
    for (int64_t at = 0; at < batch; at += tile) {
        int rows = (int)(batch - at < tile ? batch - at : tile);
#define CALL(n) NAME(forward_rows)(n, inputs, x + at * x_stride, x_stride, w, b, y + at * stride, stride)
        FOR_ROWS(rows, CALL)
#undef CALL
    }
}

static void NAME(layer_update)(int64_t batch, int64_t inputs, const float *x, int64_t x_stride, const float *d,
                               float *w, float *b, int64_t stride) {
    int tile = NAME(tile)(batch);
    for (int64_t at = 0; at < batch; at += tile) {
        int rows = (int)(batch - at < tile ? batch - at : tile);
#define CALL(n) NAME(update_rows)(n, inputs, x + at * x_stride, x_stride, d + at * stride, w, b, stride)
        FOR_ROWS(rows, CALL)
#undef CALL
    }
}

static void NAME(scale)(float *values, int64_t size, float factor) {
    for (int64_t i = 0; i < size; i++)
        values[i] *= factor;
}

static void NAME(gate)(float *d, const float *y, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        d[i] = y[i] > 0 ? d[i] : 0;
}

static void NAME(relu)(float *y, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        y[i] = y[i] > 0 ? y[i] : 0;
}

/* What weight decay, the proximal term and momentum do to `size` values before the gradient is added. */
static void NAME(prepare)(const Step *step, int64_t size, float *w, const float *anchor, float *velocity) {
    for (int64_t i = 0; i < size; i++) {
        float pull = step->decay * w[i] + (step->mu != 0 ? step->mu * (w[i] - anchor[i]) : 0);
        if (velocity)
            velocity[i] = step->momentum * velocity[i] + pull;
        else
            w[i] -= step->lr * pull;
    }
}

static void NAME(follow)(float lr, int64_t size, float *w, const float *velocity) {
    for (int64_t i = 0; i < size; i++)
        w[i] -= lr * velocity[i];
}

/* From (output, input) rows, then the bias, as in the parameters, to the padded form, and back as a difference. */
static void NAME(pack)(const float *from, int64_t inputs, int64_t outputs, float *w, float *b, float *back) {
    int64_t stride = padded(outputs);
    for (int64_t block = 0; block < inputs; block += 16)
        for (int64_t o = 0; o < outputs; o++)
            for (int64_t i = block; i < inputs && i < block + 16; i++)
                w[i * stride + o] = from[o * inputs + i];
    memcpy(b, from + outputs * inputs, (size_t)outputs * sizeof *b);
    for (int64_t o = 0; back && o < outputs; o++)
        memcpy(back + o * padded(inputs), from + o * inputs, (size_t)inputs * sizeof *back);
}

static void NAME(unpack)(const float *w, const float *b, int64_t inputs, int64_t outputs, const float *from,
                         float *delta) {
    int64_t stride = padded(outputs);
    for (int64_t block = 0; block < outputs; block += 16)
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t o = block; o < outputs && o < block + 16; o++)
                delta[o * inputs + i] = w[i * stride + o] - from[o * inputs + i];
    for (int64_t o = 0; o < outputs; o++)
        delta[outputs * inputs + o] = b[o] - from[outputs * inputs + o];
}

/* Layers but the first have their weights twice, once as [output][input] for the way back: both take the same
   steps and stay equal bit for bit, and neither way needs sums across the lanes of a vector. */
typedef struct {
    int64_t inputs, outputs, stride; /* stride: padded outputs */
    int64_t params;                  /* where the layer begins in the parameters */
    int64_t span;                    /* floats of w, b and back, which follow each other */
    float *w, *b, *back, *y, *d;     /* y, d: activations and their gradient */
} NAME(Layer);

static int64_t NAME(span)(const Network *net, int l) {
    int64_t inputs = net->widths[l], outputs = net->widths[l + 1];
    return (inputs + 1) * padded(outputs) + (l || net->through ? outputs * padded(inputs) : 0);
}

/* Floats that a body of this network works in, beside alignment. */
static int64_t NAME(room)(const Network *net, const Step *step, int64_t batch) {
    int64_t size = 0, values = (1 + net->through) * batch * padded(net->widths[0]);
    for (int l = 0; l < net->layers; l++) {
        size += NAME(span)(net, l);
        values += 2 * batch * padded(net->widths[l + 1]);
    }
    return values + size * (1 + (step->mu != 0) + (step->momentum != 0));
}

/* Lay the layers out in `space`; returns the floats that their weights take. */
static int64_t NAME(lay_out)(const Network *net, NAME(Layer) *layers, float *space) {
    int64_t params = 0, size = 0;
    for (int l = 0; l < net->layers; l++) {
        int64_t inputs = net->widths[l], outputs = net->widths[l + 1], stride = padded(outputs);
        float *w = space + size, *b = w + inputs * stride;
        layers[l] = (NAME(Layer)){
            inputs, outputs, stride, params, NAME(span)(net, l), w, b, l || net->through ? b + stride : 0, 0, 0};
        NAME(pack)(net->params + params, inputs, outputs, w, b, layers[l].back);
        params += (inputs + 1) * outputs;
        size += layers[l].span;
    }
    return size;
}

/* Move a layer by the gradient d of what it gave for x. */
static void NAME(move)(const NAME(Layer) *layer, const Step *step, int64_t batch, const float *x, int64_t x_stride,
                       const float *anchor, float *velocity) {
    float *target = velocity ? velocity : layer->w;
    if (velocity || step->mu != 0 || step->decay != 0)
        NAME(prepare)(step, layer->span, layer->w, anchor, velocity);
    if (!velocity)
        NAME(scale)(layer->d, batch * layer->stride, -step->lr);
    float *b = target + (layer->b - layer->w), *back = b + layer->stride;
    NAME(layer_update)(batch, layer->inputs, x, x_stride, layer->d, target, b, layer->stride);
    if (layer->back)
        NAME(layer_update)(batch, layer->outputs, layer->d, layer->stride, x, back, NULL, x_stride);
    if (velocity)
        NAME(follow)(step->lr, layer->span, layer->w, velocity);
}

/* A network in its workspace. `x` takes the rows of a batch, each `x_stride` floats long; `dx` is the gradient of the
   batch's mean loss with respect to them, where the network says that it is wanted. */
typedef struct {
    NAME(Layer) layers[MAX_LAYERS];
    int count;
    int64_t x_stride;
    float *weights, *anchor, *velocity, *x, *dx;
} NAME(Body);

/* Lay a network out in `space`, for batches of at most `most` rows. */
static void NAME(open)(NAME(Body) *body, const Network *net, const Step *step, int64_t most, float *space) {
    memset(space, 0, (size_t)NAME(room)(net, step, most) * sizeof *space);
    int64_t size = NAME(lay_out)(net, body->layers, space), inputs = padded(net->widths[0]);
    body->count = net->layers;
    body->x_stride = inputs;
    body->weights = space;
    body->anchor = step->mu != 0 ? space += size : NULL;
    body->velocity = step->momentum != 0 ? space += size : NULL;
    body->x = space += size;
    if (body->anchor)
        memcpy(body->anchor, body->weights, (size_t)size * sizeof *space);
    space += most * inputs;
    body->dx = net->through ? space : NULL;
    space += net->through * most * inputs;
    for (int l = 0; l < body->count; l++, space += 2 * most * body->layers[l - 1].stride) {
        body->layers[l].y = space;
        body->layers[l].d = space + most * body->layers[l].stride;
    }
}

/* What the network gives for the first `batch` rows of x, to the last layer's y. */
static void NAME(infer)(NAME(Body) *body, int64_t batch) {
    for (int l = 0; l < body->count; l++) {
        const NAME(Layer) *layer = &body->layers[l];
        const float *from = l ? body->layers[l - 1].y : body->x;
        NAME(layer_forward)(batch, layer->inputs, from, l ? body->layers[l - 1].stride : body->x_stride, layer->w,
                            layer->b, layer->y, layer->stride);
        if (l < body->count - 1)
            NAME(relu)(layer->y, batch * layer->stride);
    }
}

/* One step of descent on the first `batch` rows of x, which are those of `order`. */
static void NAME(descend)(NAME(Body) *body, const Step *step, const Rows *rows, const int64_t *order, int64_t batch,
                          Tally *tally) {
    const NAME(Layer) *last = &body->layers[body->count - 1];
    NAME(infer)(body, batch);
    (rows->classes ? judge_classes : judge_targets)(rows, order, batch, last->outputs, last->stride, last->y, last->d,
                                                    tally);
    for (int64_t l = body->count - 1; l >= 0; l--) {
        const NAME(Layer) *layer = &body->layers[l];
        const float *from = l ? body->layers[l - 1].y : body->x;
        int64_t from_stride = l ? body->layers[l - 1].stride : body->x_stride, at = layer->w - body->weights;
        if (layer->back)
            NAME(layer_forward)(batch, layer->outputs, layer->d, layer->stride, layer->back, NULL,
                                l ? body->layers[l - 1].d : body->dx, from_stride);
        if (l)
            NAME(gate)(body->layers[l - 1].d, from, batch * from_stride);
        NAME(move)(layer, step, batch, from, from_stride, body->anchor ? body->anchor + at : NULL,
                   body->velocity ? body->velocity + at : NULL);
    }
}

/* How the parameters of the network have changed. */
static void NAME(close)(const NAME(Body) *body, const Network *net, float *delta) {
    for (int l = 0; l < body->count; l++) {
        const NAME(Layer) *layer = &body->layers[l];
        NAME(unpack)(layer->w, layer->b, layer->inputs, layer->outputs, net->params + layer->params,
                     delta + layer->params);
    }
}

static void NAME(train)(const Network *net, const Step *step, const Rows *rows, float *space, float *delta,
                        Tally *tally) {
    NAME(Body) body;
    NAME(open)(&body, net, step, largest(rows), space);
    const int64_t *order = rows->order, inputs = net->widths[0];
    for (int64_t s = 0; s < rows->batches; s++) {
        int64_t batch = rows->sizes[s];
        for (int64_t r = 0; r < batch; r++)
            memcpy(body.x + r * body.x_stride, rows->x + order[r] * inputs, (size_t)inputs * sizeof *body.x);
        NAME(descend)(&body, step, rows, order, batch, s >= rows->tallied ? tally : NULL);
        order += batch;
    }
    NAME(close)(&body, net, delta);
}

#undef vec
#undef padded
#undef EACH_WIDTH
#undef FORWARD
#undef UPDATE
#undef FOR_ROWS
