"""The colors of all charts, light and dark.

A chart is drawn in the light ones, as literals. An attribute selector of CSS
is stronger than an attribute, so the same few rules turn every drawing dark: in
the page, and in a file that is shown as an image.
"""

INK, SOFT, LINE, PAPER = "#14171c", "#535b67", "#d8dce2", "#ffffff"
GOAL = "#a83218"
SERIES = ("#1b59c4", "#5c6672", "#a04f00", "#0b7069", "#8d2b93", "#5d6b00")

# By the name of a variable of page.css: light, dark.
VARIABLES = {
  "ink": (INK, "#e9ebef"),
  "soft": (SOFT, "#a9b1bd"),
  "line": (LINE, "#303742"),
  "bg": (PAPER, "#0f1216"),
  "goal": (GOAL, "#ff9d85"),
  "s0": (SERIES[0], "#85b4ff"),
  "s1": (SERIES[1], "#a4adb9"),
  "s2": (SERIES[2], "#f2a65e"),
  "s3": (SERIES[3], "#56cdbd"),
  "s4": (SERIES[4], "#dd96e4"),
  "s5": (SERIES[5], "#bccb4e"),
}


def rules() -> str:
  """Returns rules that replace the literal colors by the page's variables."""
  return "\n".join(
    f'[{what}="{light}"] {{ {what}: var(--{name}); }}'
    for name, (light, _) in VARIABLES.items()
    for what in ("fill", "stroke")
  )


def file_style() -> str:
  """Returns the style of a file: the system's scheme, and `rules`."""
  name = lambda which: "".join(
    f" --{name}: {both[which]};" for name, both in VARIABLES.items()
  )
  return (
    f"svg {{{name(0)} }}\n@media (prefers-color-scheme: dark) {{\n"
    f"svg {{{name(1)} }}\n}}\n{rules()}"
  )
