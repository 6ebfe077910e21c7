"""What a phase's networks will be, before anything is trained.

It follows from the phase's config and from the outlooks of what it starts
from, as its networks will follow from theirs; so does whether it can be run.
"""

from collections.abc import Sequence

from jaxr18.compress.distill import check_stages
from jaxr18.config import build
from jaxr18.config.forecast.outlook import Outlook, Tell
from jaxr18.config.forecast.pruning import pruned
from jaxr18.config.forecast.start import Sources, start_of
from jaxr18.config.schema import PhaseOptions
from jaxr18.data.facts import Facts
from jaxr18.host.paths import names
from jaxr18.nn.network import stage_sides
from jaxr18.nn.spec import has_four_levels


def foresee(
  c: PhaseOptions,
  name: str,
  sources: Sources,
  steps: int,
  images: Facts,
  fault: Tell,
) -> list[Outlook] | None:
  """Makes the outlooks of a phase's networks: one, or its members'.

  Args:
    c: the phase's section, in order by itself.
    name: of the phase.
    sources: of `init`, `rewind` and `ensemble.members`, each all that the field
      names; None where one of them cannot be read.
    steps: of training.
    images: that the networks are to see.
    fault: is told what cannot be.

  Returns:
    None where it cannot be, or where it hangs on a source that is not there.
  """
  if names(c.ensemble.members):
    return sources["ensemble.members"]
  told = False

  def tell(field: str, must: str, mend: str) -> None:
    nonlocal told
    told = True
    fault(field, must, mend)

  out, plan = [], build.plan(c.prune, steps)
  for member in range(c.population.size):
    one = start_of(c, sources, member, images, tell)
    if one is not None and not told and plan is not None:
      origin = (*one.masks, (name, member))
      one = pruned(one, plan, steps, origin, tell)
    if one is not None and not told:
      _check_four_levels(one, tell)
    if one is None or told:
      return None
    out.append(one)
  return out


def _check_four_levels(o: Outlook, tell: Tell) -> None:
  """Tells of masks on kernels whose levels have no zero."""
  masked = [
    x.path
    for x in o.spec.layers()
    if has_four_levels(x) and o.kept(x)[0] < o.size(x)[0]
  ]
  if masked and not o.unknown:
    tell(
      "network.two_bits",
      f"has no zero, and weights are masked in {', '.join(masked)}",
      "write 'ternary', give these layers other bits, or leave them whole:"
      " prune.layers names others, and shrink=True takes masked channels away",
    )


def check_features(
  c: PhaseOptions,
  found: Sequence[Outlook],
  teachers: Sequence[Outlook] | None,
  fault: Tell,
) -> None:
  """Notes stage outputs of student and teacher that cannot be compared.

  Args:
    c: of the phase.
    found: what is known of the students.
    teachers: what is known of the teachers; None where they cannot be read.
    fault: is told each field, what it must be and the mend.
  """
  if c.teacher.features == "none" or teachers is None:
    return
  if len(teachers) > 1:
    fault("teacher.source", "must be one network with teacher.features"
          f" (={c.teacher.features!r}), and is {len(teachers)}",
          "name one")  # fmt: skip
  for teacher in teachers[:1]:
    try:
      check_stages(stage_sides(found[0].spec), stage_sides(teacher.spec))
    except ValueError as e:
      fault("teacher.features", f"cannot be compared: {e}", "or write 'none'")
