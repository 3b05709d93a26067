"""Settings under which a whole reconstruction with the tiny checkpoint takes a second or two."""

QUICK = {"texture_size": 512, "video_frames": 8, "video_size": 64}
