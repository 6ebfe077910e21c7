"""Your own images: a float network, then its 4-bit student, to begin with.

python -m jaxr18.main --config=configs/own.py:FILE.npz

FILE.npz, or a folder of images by class, is as docs/data.md says; without one
it takes the embedded digits. Size, channels and classes follow from the images;
those of 64 pixels or more are seen by a first convolution of stride 2. A tenth
of the training images selects. Set `augment.flip` to 'none' where a mirrored
image is another one.
"""

from jaxr18.config import base, for_images


def get_config(images="digits"):
  config = base(phases=("float", "quant"))
  for_images(config, images)
  for phase in (config.float, config.quant):
    phase.network.widths, phase.network.blocks = (16, 32, 64), (2,)
    phase.average.ema_decay = 0.99
  config.float.epochs, config.quant.epochs = 20, 12
  quant = config.quant
  quant.start.init = quant.teacher.source = "float"
  quant.network.inner_bits, quant.network.w_scales = 4, "learned"
  quant.teacher.weight = 0.5
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.04, 1.0
  return config
