"""Settings under which a whole reconstruction with the tiny checkpoint, or a refinement, takes a second or two."""

from studio.refine_settings import RefineSettings

QUICK = {"texture_size": 512, "video_frames": 8, "video_size": 64}
QUICK_REFINEMENT = RefineSettings(
    steps=20, resolution=64, texture_size=256, video_frames=2, video_size=64, geometry="surface"
)
