# The values published for two-stage detectors; for one-stage detectors they are
# `fd_weight=2e-5, mask_ratio=0.65`.
method = dict(type="MGD", fd_weight=5e-7, mask_ratio=0.45)
