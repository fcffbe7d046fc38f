# The published detection run has `kd_weight=0.0`: its term on the final logits was NaN in half
# precision. Here it is finite, and on.
method = dict(
    type="OFA",
    branch="embedding",
    hidden_channels=1024,
    ofa_weight=1.0,
    kd_weight=1.0,
    eps=1.5,
    temperature=1.0,
)
