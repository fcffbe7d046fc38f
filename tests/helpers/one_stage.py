"""Small pairs of one-stage detectors."""

import copy

from helpers.detectors import pair_config

STRIDES = [8, 16, 32, 64, 128]


def dense_head(kind):
    """Heads of 16 channels and one convolution, on the levels P3 to P7."""
    anchors = dict(
        type="AnchorGenerator",
        ratios=[1.0],
        octave_base_scale=8,
        scales_per_octave=1,
        strides=STRIDES,
    )
    focal = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
    box_loss = dict(type="GIoULoss", loss_weight=2.0)
    head = dict(num_classes=10, in_channels=64, stacked_convs=1, feat_channels=16)
    own = dict(
        RetinaNet=dict(
            type="RetinaHead",
            anchor_generator=dict(
                anchors, octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0]
            ),
            bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
            loss_cls=focal,
            loss_bbox=dict(type="L1Loss"),
        ),
        FCOS=dict(
            type="FCOSHead",
            strides=STRIDES,
            norm_cfg=None,
            loss_cls=focal,
            loss_bbox=dict(type="IoULoss"),
        ),
        ATSS=dict(
            type="ATSSHead",
            anchor_generator=anchors,
            norm_cfg=None,
            loss_cls=focal,
            loss_bbox=box_loss,
        ),
        GFL=dict(
            type="GFLHead",
            anchor_generator=anchors,
            norm_cfg=None,
            loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
            loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
            reg_max=4,
            loss_bbox=box_loss,
        ),
    )
    return {**head, **copy.deepcopy(own[kind])}


def make_dense(model, kind):
    """Turns a config of the digits pair into a one-stage detector with the same backbone."""
    for key in ("rpn_head", "roi_head", "train_cfg", "test_cfg"):
        model.pop(key)
    model.type = kind
    model.neck.update(start_level=1, num_outs=5, add_extra_convs="on_output")
    model.bbox_head = dense_head(kind)
    assigner = dict(type="ATSSAssigner", topk=9)
    if kind == "RetinaNet":
        assigner = dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            min_pos_iou=0,
            ignore_iof_thr=-1,
        )
    model.train_cfg = dict(assigner=assigner, allowed_border=-1, pos_weight=-1, debug=False)
    if kind == "RetinaNet":
        model.train_cfg["sampler"] = dict(type="PseudoSampler")
    model.test_cfg = dict(
        nms_pre=100,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type="nms", iou_threshold=0.6),
        max_per_img=20,
    )


def pair(student, teacher, **options):
    """The digits pair, with other kinds of detectors."""
    cfg = pair_config(**options)
    for model, kind in ((cfg.model.student, student), (cfg.model.teacher, teacher)):
        if kind != "FasterRCNN":
            make_dense(model, kind)
    return cfg
