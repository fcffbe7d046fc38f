# A narrow Faster R-CNN for small images, which learns in minutes without a GPU.
_base_ = "faster-rcnn_fpn.py"

model = dict(
    neck=dict(out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, reg_class_agnostic=True),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)),
)
