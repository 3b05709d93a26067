"""VGGT, the visual geometry grounded transformer (Wang et al., arXiv:2503.11651): views in, cameras and points out."""

from trellis.models.vggt.aggregator import Aggregator
from trellis.models.vggt.camera_head import CameraHead
from trellis.models.vggt.dpt_head import DPTHead
from trellis.models.vggt.model import VGGT
from trellis.models.vggt.pose_encoding import extri_intri_to_pose_encoding, pose_encoding_to_extri_intri

__all__ = [
    "VGGT",
    "Aggregator",
    "CameraHead",
    "DPTHead",
    "extri_intri_to_pose_encoding",
    "pose_encoding_to_extri_intri",
]
