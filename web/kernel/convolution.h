/* The convolutional half of the CNN of McMahan et al. 2017: 5x5 convolutions that keep the size, ReLU, 2x2 maxima.

   An image lies with its channels last, so that a convolution is a dense layer over patches: the loops of dense.h do
   the work, a row for each pixel. Include it after dense.h, with the same LANES and NAME. */

#define padded(n) (((n) + LANES - 1) / LANES * LANES)

enum { KERNEL = 5, AROUND = KERNEL / 2, CELLS = KERNEL * KERNEL };

/* `channels` of height x width become `maps`, and half as high and wide after the maxima. */
typedef struct {
    int64_t channels, height, width, maps;
    int64_t inputs, stride;           /* values of a patch, and padded maps */
    int64_t span;                     /* floats of w and b */
    float *w, *b, *back, *anchor, *velocity;
    float *y, *pooled, *d;            /* of all images of a batch: before and after the maxima, and the gradient of y */
    int32_t *winners;                 /* which pixel each maximum comes from */
} NAME(Convolution);

static void NAME(shape)(NAME(Convolution) *c, int64_t channels, int64_t height, int64_t width, int64_t maps) {
    *c = (NAME(Convolution)){.channels = channels, .height = height, .width = width, .maps = maps};
    c->inputs = CELLS * channels;
    c->stride = padded(maps);
    c->span = (c->inputs + 1) * c->stride;
}

static int64_t NAME(pixels)(const NAME(Convolution) *c) { return c->height * c->width; }
static int64_t NAME(pooled_size)(const NAME(Convolution) *c) { return c->height / 2 * (c->width / 2) * c->stride; }
static int64_t NAME(weight_count)(const NAME(Convolution) *c) { return (c->inputs + 1) * c->maps; }

/* Floats of workspace for batches of `most` images. */
static int64_t NAME(convolution_room)(const NAME(Convolution) *c, const Step *step, int64_t most) {
    int64_t weights = c->span * (1 + (step->mu != 0) + (step->momentum != 0)) + c->maps * padded(c->inputs);
    return weights + most * (2 * NAME(pixels)(c) * c->stride + 2 * NAME(pooled_size)(c));
}

/* Parameters are (map, channel, row, column) and then the bias; here rows of a patch are (row, column, channel). */
static int64_t NAME(home)(const NAME(Convolution) *c, int64_t map, int64_t cell, int64_t channel) {
    return (map * c->channels + channel) * CELLS + cell;
}

static void NAME(mirror)(const NAME(Convolution) *c) {
    for (int64_t i = 0; i < c->inputs; i++)
        for (int64_t o = 0; o < c->maps; o++)
            c->back[o * padded(c->inputs) + i] = c->w[i * c->stride + o];
}

/* Take room for a convolution from `space`, which is zero, and its weights from `params`; returns what is left. */
static float *NAME(place)(NAME(Convolution) *c, const Step *step, int64_t most, const float *params, float *space) {
    c->w = space;
    c->b = c->w + c->inputs * c->stride;
    for (int64_t o = 0; o < c->maps; o++) {
        for (int64_t cell = 0; cell < CELLS; cell++)
            for (int64_t k = 0; k < c->channels; k++)
                c->w[(cell * c->channels + k) * c->stride + o] = params[NAME(home)(c, o, cell, k)];
        c->b[o] = params[c->inputs * c->maps + o];
    }
    space += c->span;
    if (step->mu != 0) {
        c->anchor = space;
        memcpy(c->anchor, c->w, (size_t)c->span * sizeof *space);
        space += c->span;
    }
    if (step->momentum != 0) {
        c->velocity = space;
        space += c->span;
    }
    c->back = space;
    space += c->maps * padded(c->inputs);
    NAME(mirror)(c);
    c->y = space;
    c->d = c->y + most * NAME(pixels)(c) * c->stride;
    c->pooled = c->d + most * NAME(pixels)(c) * c->stride;
    c->winners = (int32_t *)(c->pooled + most * NAME(pooled_size)(c));
    return (float *)(c->winners + most * NAME(pooled_size)(c));
}

static void NAME(change)(const NAME(Convolution) *c, const float *params, float *delta) {
    for (int64_t o = 0; o < c->maps; o++) {
        for (int64_t cell = 0; cell < CELLS; cell++)
            for (int64_t k = 0; k < c->channels; k++) {
                int64_t at = NAME(home)(c, o, cell, k);
                delta[at] = c->w[(cell * c->channels + k) * c->stride + o] - params[at];
            }
        delta[c->inputs * c->maps + o] = c->b[o] - params[c->inputs * c->maps + o];
    }
}

/* Every pixel's patch of an image whose pixels are `step` floats apart; zero beyond the edges. */
static void NAME(patches)(const NAME(Convolution) *c, const float *image, int64_t step, float *out) {
    int64_t stride = padded(c->inputs);
    memset(out, 0, (size_t)(NAME(pixels)(c) * stride) * sizeof *out);
    for (int64_t y = 0; y < c->height; y++)
        for (int64_t x = 0; x < c->width; x++, out += stride)
            for (int64_t dy = 0; dy < KERNEL; dy++)
                for (int64_t dx = 0; dx < KERNEL; dx++) {
                    int64_t from_y = y + dy - AROUND, from_x = x + dx - AROUND;
                    if (from_y >= 0 && from_y < c->height && from_x >= 0 && from_x < c->width)
                        memcpy(out + (dy * KERNEL + dx) * c->channels, image + (from_y * c->width + from_x) * step,
                               (size_t)c->channels * sizeof *out);
                }
}

/* The way back of `patches`: every value is added to where it came from. */
static void NAME(gather)(const NAME(Convolution) *c, const float *d, float *image, int64_t step) {
    int64_t stride = padded(c->inputs);
    for (int64_t y = 0; y < c->height; y++)
        for (int64_t x = 0; x < c->width; x++, d += stride)
            for (int64_t dy = 0; dy < KERNEL; dy++)
                for (int64_t dx = 0; dx < KERNEL; dx++) {
                    int64_t to_y = y + dy - AROUND, to_x = x + dx - AROUND;
                    if (to_y < 0 || to_y >= c->height || to_x < 0 || to_x >= c->width)
                        continue;
                    float *to = image + (to_y * c->width + to_x) * step;
                    const float *from = d + (dy * KERNEL + dx) * c->channels;
                    for (int64_t k = 0; k < c->channels; k++)
                        to[k] += from[k];
                }
}

/* Image r of the batch: convolution, ReLU and maxima. `work` holds the patches of one image. */
static void NAME(look)(const NAME(Convolution) *c, int64_t r, const float *image, int64_t step, float *work) {
    float *y = c->y + r * NAME(pixels)(c) * c->stride, *pooled = c->pooled + r * NAME(pooled_size)(c);
    int32_t *winners = c->winners + r * NAME(pooled_size)(c);
    NAME(patches)(c, image, step, work);
    NAME(layer_forward)(NAME(pixels)(c), c->inputs, work, padded(c->inputs), c->w, c->b, y, c->stride);
    NAME(relu)(y, NAME(pixels)(c) * c->stride);
    for (int64_t py = 0; py < c->height / 2; py++)
        for (int64_t px = 0; px < c->width / 2; px++, pooled += c->stride, winners += c->stride)
            for (int64_t o = 0; o < c->stride; o++) {
                int64_t best = (2 * py * c->width + 2 * px) * c->stride + o;
                for (int64_t corner = 1; corner < 4; corner++) {
                    int64_t at = ((2 * py + corner / 2) * c->width + 2 * px + corner % 2) * c->stride + o;
                    best = y[at] > y[best] ? at : best;
                }
                pooled[o] = y[best];
                winners[o] = (int32_t)best;
            }
}

/* From the gradient of image r's maxima to that of its pixels before ReLU. */
static void NAME(unpool)(const NAME(Convolution) *c, int64_t r, const float *d_pooled) {
    int64_t values = NAME(pooled_size)(c);
    const int32_t *winners = c->winners + r * values;
    float *d = c->d + r * NAME(pixels)(c) * c->stride;
    const float *y = c->y + r * NAME(pixels)(c) * c->stride;
    memset(d, 0, (size_t)(NAME(pixels)(c) * c->stride) * sizeof *d);
    for (int64_t i = 0; i < values; i++)
        if (y[winners[i]] > 0)
            d[winners[i]] = d_pooled[i];
}

/* The gradient of image r, for which d is known, is added to `image`. */
static void NAME(trace)(const NAME(Convolution) *c, int64_t r, float *image, int64_t step, float *work) {
    const float *d = c->d + r * NAME(pixels)(c) * c->stride;
    NAME(layer_forward)(NAME(pixels)(c), c->maps, d, c->stride, c->back, NULL, work, padded(c->inputs));
    NAME(gather)(c, work, image, step);
}

/* One step of descent by the gradients d of `batch` images. */
static void NAME(learn)(const NAME(Convolution) *c, const Step *step, int64_t batch, const float *images, int64_t size,
                        int64_t pixel, float *work) {
    float *target = c->velocity ? c->velocity : c->w, *b = target + (c->b - c->w);
    if (c->velocity || step->mu != 0 || step->decay != 0)
        NAME(prepare)(step, c->span, c->w, c->anchor, c->velocity);
    if (!c->velocity)
        NAME(scale)(c->d, batch * NAME(pixels)(c) * c->stride, -step->lr);
    for (int64_t r = 0; r < batch; r++) {
        NAME(patches)(c, images + r * size, pixel, work);
        NAME(layer_update)(NAME(pixels)(c), c->inputs, work, padded(c->inputs),
                           c->d + r * NAME(pixels)(c) * c->stride, target, b, c->stride);
    }
    if (c->velocity)
        NAME(follow)(step->lr, c->span, c->w, c->velocity);
    NAME(mirror)(c);
}

#undef padded
