# Weight and temperature are those of MMRazor's config for Faster R-CNN.
method = dict(type="CWD", fd_weight=10.0, temperature=1.0)
