# The weight is that of MMRazor's configs for detectors.
method = dict(type="PKD", fd_weight=6.0)
