# PAT as in the paper, docs/pat.md has a table of all options. `prompt`: 'channel' is what the paper's
# parameter count belongs to, 'spatial' (pat_spatial.py) what its text says.
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
