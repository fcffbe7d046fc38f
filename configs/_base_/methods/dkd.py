# alpha 2 is the value published for ResNet18 on COCO.
method = dict(type="DKD", kd_weight=1.0, temperature=1.0, alpha=2.0, beta=0.25)
