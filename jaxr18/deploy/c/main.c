/* Classifies images: classify [--logits] FILE ...

   A file is a binary PPM or PGM (P6, P5) of the network's size and channels,
   or as many images as fit of bare bytes, row by row, channels last. Each
   image gives a line with its class, or with its logits as integers. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "network.h"

/* The next number of a PPM's header, behind white space and comments. */
static int number(FILE *f) {
  int c = getc(f), value = 0;
  for (; isspace(c) || c == '#'; c = getc(f))
    if (c == '#')
      while (c != '\n' && c != EOF) c = getc(f);
  for (; isdigit(c); c = getc(f))
    if (value < 100000) value = 10 * value + c - '0';
  return value; /* and one byte behind it is read */
}

/* Leaves the file before its first pixel; 0 where it is of another size. */
static int open_image(FILE *f, const char *name) {
  int kind = getc(f), form = getc(f), space = getc(f);
  if (kind != 'P' || (form != '6' && form != '5') || !isspace(space)) {
    rewind(f);
    return 1;
  }
  int width = number(f), height = number(f), most = number(f);
  if (width == NETWORK_SIDE && height == NETWORK_SIDE && most == 255 &&
      (form == '6' ? 3 : 1) == NETWORK_CHANNELS)
    return 1;
  fprintf(stderr, "%s is %dx%d of values up to %d, in %s; expected %dx%d of "
          "values up to 255 in %d channels: resize it\n", name, width, height,
          most, form == '6' ? "colour" : "grey", NETWORK_SIDE, NETWORK_SIDE,
          NETWORK_CHANNELS);
  return 0;
}

static int classify(const char *name, int with_logits) {
  static uint8_t image[NETWORK_IMAGE];
  int32_t logits[NETWORK_CLASSES];
  size_t got;
  int images = 0;
  FILE *f = fopen(name, "rb");
  if (!f) {
    perror(name);
    return 1;
  }
  if (!open_image(f, name)) {
    fclose(f);
    return 1;
  }
  while ((got = fread(image, 1, sizeof image, f)) == sizeof image) {
    images++;
    if (!with_logits) {
      printf("%d\n", network_classify(image));
      continue;
    }
    network_logits(image, logits);
    for (int i = 0; i < NETWORK_CLASSES; i++)
      printf(i ? " %ld" : "%ld", (long)logits[i]);
    printf("\n");
  }
  fclose(f);
  if (got || !images) {
    fprintf(stderr, "%s ends within an image: it has %u bytes of %u\n", name,
            (unsigned)got, (unsigned)sizeof image);
    return 1;
  }
  return 0;
}

int main(int count, char **arguments) {
  int with_logits = count > 1 && !strcmp(arguments[1], "--logits");
  int failed = count < 2 + with_logits;
  if (failed)
    fprintf(stderr, "usage: %s [--logits] FILE ...\n", arguments[0]);
  for (int i = 1 + with_logits; i < count; i++)
    failed |= classify(arguments[i], with_logits);
  return failed;
}
