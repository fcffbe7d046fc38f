# The averages of regions are further targets of classifiers.
_base_ = "../pat_plus.py"

method = dict(raa_grid=4, raa_dim=512, region_weight=10.0)
