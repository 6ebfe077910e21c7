/* What follows is the same for every network. */

/* x / 2**places, rounded down; also where >> of negative numbers is not that. */
static int64_t shifted(int64_t x, int places) {
  return x < 0 ? ~(~x >> places) : x >> places;
}

static int32_t rescaled(int64_t x, int32_t multiplier, int64_t offset,
                        int shift, int32_t low, int32_t high) {
  int64_t y = shifted(x * multiplier + offset, shift);
  return y < low ? low : y > high ? high : (int32_t)y;
}

static int32_t read_code(const uint8_t *codes, int32_t i, int has_sign) {
  return has_sign ? (codes[i] ^ 0x80) - 0x80 : codes[i];
}

/* The operand of a sum, which has a sign. */
static int32_t read_operand(int32_t i) {
  const int64_t sign = (int64_t)1 << (8 * sizeof(sum_type) - 1);
  return (int32_t)((int64_t)(memory[i] ^ (uint64_t)sign) - sign);
}

/* The code of a channel at a place of the first layer's map. */
static int32_t image_code(const layer *l, const uint8_t *image, int y, int x,
                          int channel) {
#if RESIZES
  int64_t sum = 0;
  for (int32_t i = 0; i < NETWORK_SIDE; i++) {
    int32_t row = 0;
    if (!resizing[y][i]) continue;
    for (int32_t j = 0; j < NETWORK_SIDE; j++)
      row += resizing[x][j] *
             image[(i * NETWORK_SIDE + j) * NETWORK_CHANNELS + channel];
    sum += (int64_t)row * resizing[y][i];
  }
  return rescaled(sum, image_multiplier[channel], image_offset[channel],
                  IMAGE_SHIFT, l->low, l->high);
#else
  return image_codes[channel]
                    [image[((int32_t)y * l->side + x) * l->inputs + channel]];
#endif
}

static int32_t added_up(const layer *l, int channel) {
  int32_t sum = 0;
  for (int32_t i = 0; i < l->pixels; i++)
    sum += (int32_t)memory[l->source + i * l->inputs + channel];
  return sum;
}

/* One row of input codes, with the columns of zeros beside it. */
static void load_row(const layer *l, const uint8_t *image, int y,
                     int16_t *to) {
  const int pad = l->taps / 2, width = l->side + 2 * pad;
  for (int x = -pad; x < width - pad; x++) {
    int outside = x < 0 || x >= l->side || y < 0 || y >= l->side;
    for (int c = 0; c < l->inputs; c++) {
      int32_t i = ((int32_t)y * l->side + x) * l->inputs + c, code = 0;
      if (outside)
        code = 0;
      else if (l->reads == IMAGE)
        code = image_code(l, image, y, x, c);
      else if (l->reads == CODES)
        code = read_code((const uint8_t *)memory, l->source + i, l->low < 0);
      else
        code = rescaled(
            l->reads == POOLED ? added_up(l, c)
                               : (int32_t)memory[l->source + i],
            l->read_multiplier, l->read_offset, l->read_shift, l->low, l->high);
      *to++ = (int16_t)code;
    }
  }
}

/* The weights of one output channel. A field of n bits in two's complement is
   a weight; of four levels it is i for 2 i + 1, and of 1 bit 0 for -1. */
static void load_weights(const layer *l, int channel) {
  const int32_t count = l->taps * l->taps * (l->inputs / l->groups);
  const int sign = 1 << (l->bits - 1), mask = 2 * sign - 1;
  uint32_t at = (uint32_t)channel * (uint32_t)count * l->bits;
  for (int32_t i = 0; i < count; i++, at += l->bits) {
    const uint8_t *byte = l->weights + (at >> 3);
    int field = ((byte[0] | byte[1] << 8) >> (at & 7)) & mask;
    weights[i] = (int16_t)(l->times * ((field ^ sign) - sign) + l->plus);
  }
}

static int32_t dot(const int16_t *x, const int16_t *w, int count) {
  int32_t sum = 0;
  for (int i = 0; i < count; i++) sum += (int32_t)x[i] * w[i];
  return sum;
}

static int32_t convolved(const layer *l, int y, int x, int group) {
  const int32_t pitch = (l->side + l->taps / 2 * 2) * l->inputs;
  const int inputs = l->inputs / l->groups;
  int32_t sum = 0;
  for (int ky = 0; ky < l->taps; ky++) {
    const int16_t *row = rows + (y * l->stride + ky) % l->taps * pitch +
                         (int32_t)x * l->stride * l->inputs + group * inputs;
    const int16_t *w = weights + ky * l->taps * inputs;
    if (l->groups == 1) {
      sum += dot(row, w, l->taps * inputs);
      continue;
    }
    for (int kx = 0; kx < l->taps; kx++)
      sum += dot(row + kx * l->inputs, w + kx * inputs, inputs);
  }
  return sum;
}

static void store(const layer *l, int32_t i, int channel, int32_t sum,
                  int32_t *logits) {
  int32_t value = rescaled(sum, l->multiplier[channel], l->offset[channel],
                           l->shift, l->smallest, l->largest);
  if (l->writes == LOGITS) {
    logits[channel] = value;
  } else if (l->writes == AS_CODES) {
    ((uint8_t *)memory)[l->target + i] = (uint8_t)value;
  } else if (l->writes == AS_SUM) {
    memory[l->target + i] = (sum_type)value;
  } else {
    int32_t at = l->target + i;
    value += l->writes == ON_PROJECTION
                 ? read_operand(at)
                 : rescaled((int32_t)memory[at], l->shortcut_multiplier,
                            l->shortcut_offset, l->shortcut_shift, 0,
                            l->largest);
    memory[at] = (sum_type)(value < 0 ? 0 : value);
  }
}

static void run(const layer *l, const uint8_t *image, int32_t *logits) {
  const int pad = l->taps / 2, each = l->features / l->groups;
  const int32_t pitch = (l->side + 2 * pad) * l->inputs;
  int next = 0; /* row of the padded map that is loaded next */
  for (int y = 0; y < l->out_side; y++) {
    for (; next < y * l->stride + l->taps; next++)
      load_row(l, image, next - pad, rows + next % l->taps * pitch);
    for (int c = 0; c < l->features; c++) {
      load_weights(l, c);
      for (int x = 0; x < l->out_side; x++)
        store(l, ((int32_t)y * l->out_side + x) * l->features + c, c,
              convolved(l, y, x, c / each), logits);
    }
  }
}

void network_logits(const uint8_t *image, int32_t *logits) {
  for (unsigned i = 0; i < sizeof layers / sizeof *layers; i++)
    run(&layers[i], image, logits);
}

int network_classify(const uint8_t *image) {
  int32_t logits[NETWORK_CLASSES];
  int best = 0;
  network_logits(image, logits);
  for (int i = 1; i < NETWORK_CLASSES; i++)
    if (logits[i] > logits[best]) best = i;
  return best;
}

/* The memory that the header states is what the arrays above take. */
typedef char network_memory_is_stated[sizeof memory + sizeof rows +
                                              sizeof weights ==
                                          NETWORK_MEMORY
                                      ? 1
                                      : -1];
