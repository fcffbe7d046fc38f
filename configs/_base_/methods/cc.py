method = dict(type="CC", cc_weight=0.02, width=128)
