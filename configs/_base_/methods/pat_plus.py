# The recommended form of PAT, with one set of settings for all pairs: a distance that does not
# depend on the scale of the teacher's features, and no prompts. Detectors begin with the teacher's
# neck and heads, so that their features need no projection.
_base_ = "pat.py"

method = dict(
    alignment="identity",
    distance="correlation",
    afp_stages=(),
    fd_weight=10.0,
    inherit_heads=True,
)
