# Angles cost the cube of the rows: of the sampled RoIs of detection 256, of a classifier's batch all.
method = dict(type="RKD", distance_weight=25.0, angle_weight=50.0, max_rows=256)
