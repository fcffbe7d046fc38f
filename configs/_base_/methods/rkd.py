# Angles cost the cube of the rows: in detection 256 of the sampled RoIs, in classification all.
method = dict(
    type="RKD",
    distance_weight=25.0,
    angle_weight=50.0,
    detection=dict(max_rows=256),
    classification=dict(max_rows=None),
)
