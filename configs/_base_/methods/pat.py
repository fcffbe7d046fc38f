# `prompt`: 'channel' is what the paper's parameter count belongs to, 'spatial' what its text says.
# `feedback`: 'previous' (the paper's), 'current' or 'none'.
method = dict(
    type="PAT",
    prompt="channel",
    feedback="previous",
    afp_stages=None,
    prompted_share=1.0,
    raa_grid=5,
    raa_dim=64,
    kd_weight=1.0,
    fd_weight=1.0,
    reg_weight=1.0,
    temperature=1.0,
)
