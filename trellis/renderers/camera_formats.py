"""Cameras in the formats of other tools: NeRF `transforms.json`, COLMAP text files, and the VGGT pose encoding.

Files on disk are in the glTF frame (y up), like every other exported file, and agree with the exported meshes:
the object frame's (x, y, z) is written as (x, z, -y). Readers take `frame="object"` for files that are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from trellis.errors import InputError
from trellis.renderers.cameras import Cameras
from trellis.renderers.rotations import matrix_to_quaternion, quaternion_to_matrix

Frame = Literal["gltf", "object"]

_OBJECT_TO_GLTF = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
_DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")


def to_transforms(cameras: Cameras, file_paths: Sequence[str], frame: Frame = "gltf") -> dict[str, Any]:
    """The content of a NeRF `transforms.json` as a plain dictionary.

    `transform_matrix` is camera to world with OpenGL axes (x right, y up, z backward). Intrinsics (`fl_x`, `fl_y`,
    `cx`, `cy`, `w`, `h`, pixels) are written once if all views share them, else in every frame.

    Args:
        cameras: N views.
        file_paths: N image paths, written as given.
        frame: world of the written matrices.
    """
    _check_names(cameras, file_paths, "image path")
    to_world = _world_change(frame) @ torch.linalg.inv(cameras.extrinsics.detach().double().cpu()) @ _flip_yz()
    to_world[:, 3] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # an inverse rounds, in some versions of torch here, too
    intrinsics = [_intrinsics_record(cameras, i) for i in range(len(cameras))]
    shared = all(record == intrinsics[0] for record in intrinsics)
    frames = [
        {"file_path": path, **({} if shared else record), "transform_matrix": matrix.tolist()}
        for path, record, matrix in zip(file_paths, intrinsics, to_world, strict=True)
    ]
    return {"camera_model": "PINHOLE", **(intrinsics[0] if shared else {}), "frames": frames}


def from_transforms(transforms: Mapping[str, Any], frame: Frame = "gltf") -> tuple[Cameras, list[str]]:
    """Cameras and image paths of a parsed NeRF `transforms.json`; see `to_transforms`.

    Values in a frame override those at the top. `fl_x` may be replaced by `camera_angle_x` (radians), `fl_y` defaults
    to `fl_x`, and the principal point to the image centre.

    Raises:
        InputError: no frames, no image size, no focal length, or lens distortion.
    """
    frames = transforms.get("frames")
    if not frames:
        raise InputError("This transforms.json lists no frames.")
    poses, intrinsics, sizes, paths = [], [], [], []
    for i, entry in enumerate(frames):
        record = {**transforms, **entry}
        if any(record.get(key) for key in _DISTORTION_KEYS):
            raise InputError(f"Frame {i} of the transforms.json has lens distortion; undistort the images first.")
        if "w" not in record or "h" not in record:
            raise InputError(f'Frame {i} of the transforms.json has no image size; add "w" and "h" in pixels.')
        width, height = int(record["w"]), int(record["h"])
        if "fl_x" in record:
            focal_x = float(record["fl_x"])
        elif "camera_angle_x" in record:
            focal_x = width / 2 / math.tan(float(record["camera_angle_x"]) / 2)
        else:
            raise InputError(f'Frame {i} of the transforms.json has no focal length; add "fl_x" or "camera_angle_x".')
        center = float(record.get("cx", width / 2)), float(record.get("cy", height / 2))
        intrinsics.append(_pinhole(focal_x, float(record.get("fl_y", focal_x)), *center))
        sizes.append((height, width))
        paths.append(str(record.get("file_path", "")))
        pose = torch.tensor(record.get("transform_matrix", ()), dtype=torch.float64)
        if pose.shape != (4, 4):
            raise InputError(f"Frame {i} of the transforms.json needs a 4x4 transform_matrix, not {list(pose.shape)}.")
        poses.append(pose)
    to_world = torch.linalg.inv(_world_change(frame)) @ torch.stack(poses) @ _flip_yz()
    return _cameras(torch.linalg.inv(to_world), intrinsics, sizes), paths


def to_colmap_text(cameras: Cameras, names: Sequence[str], frame: Frame = "gltf") -> tuple[str, str]:
    """The contents of COLMAP's `cameras.txt` and `images.txt` (one PINHOLE camera per view, no 2D points).

    COLMAP stores world to camera with OpenCV axes and half-integer pixel centres, as `Cameras` does.
    """
    _check_names(cameras, names, "image name")
    extrinsics = cameras.extrinsics.detach().double().cpu() @ torch.linalg.inv(_world_change(frame))
    quats = matrix_to_quaternion(extrinsics[:, :3, :3])
    camera_lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[fx, fy, cx, cy]"]
    image_lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID)"]
    for i, name in enumerate(names):
        record = _intrinsics_record(cameras, i)
        parameters = " ".join(repr(record[key]) for key in ("fl_x", "fl_y", "cx", "cy"))
        camera_lines.append(f"{i + 1} PINHOLE {record['w']} {record['h']} {parameters}")
        pose = " ".join(repr(value) for value in (*quats[i].tolist(), *extrinsics[i, :3, 3].tolist()))
        image_lines += [f"{i + 1} {pose} {i + 1} {name}", ""]
    return "\n".join(camera_lines) + "\n", "\n".join(image_lines) + "\n"


def from_colmap_text(cameras_txt: str, images_txt: str, frame: Frame = "gltf") -> tuple[Cameras, list[str]]:
    """Cameras and image names from the contents of COLMAP's `cameras.txt` and `images.txt`, in the order of the latter.

    Raises:
        InputError: a camera model with distortion, an unknown camera, or a line that cannot be read.
    """
    lenses = dict(_colmap_lens(line) for line in cameras_txt.splitlines() if line.strip() and line.strip()[0] != "#")
    lines = [line.strip() for line in images_txt.splitlines() if not line.lstrip().startswith("#")]
    while lines and not lines[0]:
        lines.pop(0)
    poses, intrinsics, sizes, names = [], [], [], []
    for line in lines[::2]:  # every second line lists 2D points, and may be empty
        if not line:
            continue
        fields = line.split(maxsplit=9)
        try:
            quat, translation = [float(v) for v in fields[1:5]], [float(v) for v in fields[5:8]]
            matrix, size = lenses[fields[8]]
            names.append(fields[9])
        except (ValueError, IndexError, KeyError) as error:
            raise InputError(f"This line of images.txt cannot be read or names an unknown camera: {line!r}.") from error
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = quaternion_to_matrix(torch.tensor(quat, dtype=torch.float64))
        pose[:3, 3] = torch.tensor(translation, dtype=torch.float64)
        poses.append(pose)
        intrinsics.append(matrix)
        sizes.append(size)
    if not poses:
        raise InputError("This images.txt lists no images.")
    return _cameras(torch.stack(poses) @ _world_change(frame), intrinsics, sizes), names


def to_pose_encoding(cameras: Cameras) -> torch.Tensor:
    """VGGT pose encodings [N, 9]: translation (3), quaternion x, y, z, w (4, unit, w >= 0), fov_h, fov_w in radians.

    The encoding has no principal point, so it must lie at the image centre, within a hundredth of the image.
    """
    offset = cameras.normalised_intrinsics[:, :2, 2] - 0.5
    if bool((offset.abs() > 0.01).any()):
        raise InputError("A pose encoding needs the principal point at the image centre; crop or pad the images.")
    quats = matrix_to_quaternion(cameras.rotations).roll(-1, dims=-1)
    return torch.cat([cameras.translations, quats, cameras.fields_of_view], dim=-1)


def from_pose_encoding(encoding: torch.Tensor, height: int, width: int) -> Cameras:
    """Cameras of VGGT pose encodings [N, 9] for images of (height, width); the quaternion may have any length.

    The encoding is world to camera with OpenCV axes, in the world of the first view.
    """
    if encoding.ndim != 2 or encoding.shape[1] != 9:
        raise InputError(f"Pose encodings must be [N, 9], but came as {list(encoding.shape)}.")
    count = len(encoding)
    extrinsics = torch.eye(4, dtype=encoding.dtype, device=encoding.device).repeat(count, 1, 1)
    extrinsics[:, :3, :3] = quaternion_to_matrix(encoding[:, 3:7].roll(1, dims=-1))
    extrinsics[:, :3, 3] = encoding[:, :3]
    tangent = torch.tan(encoding[:, 7:] / 2)
    intrinsics = torch.zeros(count, 3, 3, dtype=encoding.dtype, device=encoding.device)
    intrinsics[:, 0, 0] = width / 2 / tangent[:, 1]
    intrinsics[:, 1, 1] = height / 2 / tangent[:, 0]
    intrinsics[:, :, 2] = encoding.new_tensor([width / 2, height / 2, 1])
    return Cameras(extrinsics, intrinsics, torch.tensor([[height, width]]).repeat(count, 1))


def _world_change(frame: Frame) -> torch.Tensor:
    """4x4 map from the object frame to `frame`."""
    if frame == "gltf":
        return torch.tensor(_OBJECT_TO_GLTF, dtype=torch.float64)
    if frame == "object":
        return torch.eye(4, dtype=torch.float64)
    raise InputError(f'The frame must be "gltf" or "object", not {frame!r}.')


def _flip_yz() -> torch.Tensor:
    """OpenCV camera axes to OpenGL camera axes, and back."""
    return torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def _pinhole(focal_x: float, focal_y: float, center_x: float, center_y: float) -> torch.Tensor:
    return torch.tensor([[focal_x, 0, center_x], [0, focal_y, center_y], [0, 0, 1]], dtype=torch.float64)


def _intrinsics_record(cameras: Cameras, index: int) -> dict[str, Any]:
    matrix = cameras.intrinsics[index].detach().double().cpu()
    height, width = cameras.height_width(index)
    focal_x, focal_y, center_x, center_y = (matrix[i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return {"fl_x": focal_x, "fl_y": focal_y, "cx": center_x, "cy": center_y, "w": width, "h": height}


def _colmap_lens(line: str) -> tuple[str, tuple[torch.Tensor, tuple[int, int]]]:
    """Camera id, intrinsics [3, 3] and (height, width) of one line of `cameras.txt`."""
    try:
        identifier, model, width, height, *parameters = line.split()
        values = [float(value) for value in parameters]
        if model == "PINHOLE":
            matrix = _pinhole(*values)
        elif model == "SIMPLE_PINHOLE":
            matrix = _pinhole(values[0], *values)
        else:
            raise InputError(f"COLMAP camera model {model} has lens distortion; undistort the images first.")
        return identifier, (matrix, (int(height), int(width)))
    except (ValueError, IndexError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"This line of cameras.txt cannot be read: {line!r}.") from error


def _cameras(extrinsics: torch.Tensor, intrinsics: list[torch.Tensor], sizes: list[tuple[int, int]]) -> Cameras:
    extrinsics = extrinsics.clone()
    extrinsics[:, 3] = extrinsics.new_tensor([0, 0, 0, 1])
    return Cameras(extrinsics.float(), torch.stack(intrinsics).float(), torch.tensor(sizes))


def _check_names(cameras: Cameras, names: Sequence[str], what: str) -> None:
    if len(names) != len(cameras):
        raise InputError(f"One {what} per camera is needed: {len(cameras)} cameras came with {len(names)}.")
