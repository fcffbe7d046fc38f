# Features of classifiers are projected, and the averages of regions are further targets.
_base_ = "../pat_plus.py"

method = dict(
    alignment="projector", inherit_heads=False, raa_grid=4, raa_dim=512, region_weight=10.0
)
