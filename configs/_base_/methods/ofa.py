# The published detection run has `kd_weight=0.0`: its term on the final logits was NaN in half
# precision. Here it is finite, and on.
method = dict(
    type="OFA",
    ofa_weight=1.0,
    kd_weight=1.0,
    temperature=1.0,
    detection=dict(branch="embedding", eps=1.5, hidden_channels=1024),
    classification=dict(branch="stages", eps=1.0),
)
