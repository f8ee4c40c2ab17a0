"""Made-up scenes in every raw layout: furnished rooms of boxes, of which every depth, distance and label is known exactly.

A scene is one rectangular room, x from 0 to its width, y from 0 to its depth, z up from the floor. For the demo, the tests and
training without the licensed datasets.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import cos, pi, sin
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import CEILING, FLOOR, LABELS, WALL
from scenemill.transforms.geometry import (
    FREE_SPACE,
    FRONT3D_INTRINSICS,
    GRIDS,
    TRUNCATION_VOXELS,
    adjust_intrinsics,
    back_project,
    front3d_frustum,
)
from scenemill.transforms.rawfiles import (
    planes_of,
    stack_planes,
    write_depth_exr,
    write_jpeg,
    write_lists,
    write_npz,
    write_png,
)
from scenemill.transforms.rendering import (
    IMAGE_SIZE,
    Box,
    Camera,
    Columns,
    Matrix,
    Triple,
    cast_rays,
    find_free,
    find_hidden,
    frustum_columns,
    measure_distance,
    place,
    shade,
)
