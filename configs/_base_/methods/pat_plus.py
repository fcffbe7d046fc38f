# The recommended form of PAT, with one set of settings for all pairs: a projector in place of RAA,
# a distance that does not depend on the scale of the teacher's features, no prompts.
_base_ = "pat.py"

method = dict(
    alignment="projector",
    distance="correlation",
    weigh_levels=True,
    afp_stages=(),
    fd_weight=10.0,
)
