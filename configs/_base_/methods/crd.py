# For classification alone; `model.method.num_data` has to be the number of training images.
method = dict(
    type="CRD",
    crd_weight=1.0,
    width=128,
    num_negatives=16384,
    momentum=0.5,
    temperature=0.07,
)
