method = dict(type="KD", kd_weight=1.0, temperature=1.0)
