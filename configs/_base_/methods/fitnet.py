method = dict(type="FitNet", fd_weight=1.0, kd_weight=1.0, temperature=1.0)
