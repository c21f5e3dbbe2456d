"""Filters on updates by name; `rome+rect` is ROME with RECT behind it."""

from editlib.editing.methods.filters.filter import Filter
from editlib.editing.methods.filters.interpolation import Line
from editlib.editing.methods.filters.prune import Prune
from editlib.editing.methods.filters.rect import Rect
from editlib.editing.methods.filters.revive import Revive
from editlib.editing.methods.filters.sphere import Sphere

FILTERS: dict[str, Filter] = {each.name: each for each in (Rect(), Revive(), Sphere(), Line(), Prune())}
