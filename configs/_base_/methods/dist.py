method = dict(type="DIST", kd_weight=1.0, beta=1.0, gamma=1.0, temperature=1.0)
