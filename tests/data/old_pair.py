# A config as a training of revision acbb91e wrote it into its work dir, before modules moved.
auto_scale_lr = {"base_batch_size": 8, "enable": False}
classes = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
custom_imports = {"allow_failed_imports": False, "imports": ["pat_mmdet"]}
data_root = "data/digits/"
default_hooks = {
    "checkpoint": {
        "by_epoch": False,
        "interval": 2,
        "max_keep_ckpts": 2,
        "type": "SafeCheckpointHook",
    },
    "logger": {"interval": 1, "log_metric_by_epoch": False, "type": "LoggerHook"},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
    "timer": {"type": "IterTimerHook"},
    "visualization": {"type": "TolerantVisualizationHook"},
}
default_scope = "mmdet"
env_cfg = {
    "cudnn_benchmark": False,
    "dist_cfg": {"backend": "nccl"},
    "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
}
launcher = "none"
load_from = None
log_level = "INFO"
log_processor = {"by_epoch": False, "type": "LogProcessor", "window_size": 50}
max_iters = 300
model = {
    "method": {
        "afp_stages": None,
        "classification": {"raa_dim": 512, "raa_grid": 4},
        "detection": {"raa_dim": 64, "raa_grid": 5},
        "fd_weight": 0.02,
        "feedback": "previous",
        "input_size": (64, 64),
        "kd_weight": 1.0,
        "prompt": "channel",
        "prompted_share": 1.0,
        "reg_weight": 1.0,
        "temperature": 1.0,
        "type": "PAT",
    },
    "student": {
        "backbone": {
            "base_channels": 16,
            "depth": 18,
            "norm_cfg": {"requires_grad": True, "type": "BN"},
            "norm_eval": False,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "stem_channels": 16,
            "style": "pytorch",
            "type": "ResNet",
        },
        "data_preprocessor": {
            "bgr_to_rgb": True,
            "mean": [123.675, 116.28, 103.53],
            "pad_size_divisor": 32,
            "std": [58.395, 57.12, 57.375],
            "type": "DetDataPreprocessor",
        },
        "neck": {
            "in_channels": [16, 32, 64, 128],
            "num_outs": 4,
            "out_channels": 64,
            "type": "FPN",
        },
        "roi_head": {
            "bbox_head": {
                "bbox_coder": {
                    "target_means": [0.0, 0.0, 0.0, 0.0],
                    "target_stds": [0.1, 0.1, 0.2, 0.2],
                    "type": "DeltaXYWHBBoxCoder",
                },
                "fc_out_channels": 256,
                "in_channels": 64,
                "loss_bbox": {"loss_weight": 1.0, "type": "L1Loss"},
                "loss_cls": {"loss_weight": 1.0, "type": "CrossEntropyLoss", "use_sigmoid": False},
                "num_classes": 10,
                "reg_class_agnostic": True,
                "roi_feat_size": 7,
                "type": "Shared2FCBBoxHead",
            },
            "bbox_roi_extractor": {
                "featmap_strides": [4, 8, 16, 32],
                "finest_scale": 28,
                "out_channels": 64,
                "roi_layer": {"output_size": 7, "sampling_ratio": 1, "type": "RoIAlign"},
                "type": "SingleRoIExtractor",
            },
            "type": "StandardRoIHead",
        },
        "rpn_head": {
            "anchor_generator": {
                "ratios": [0.5, 1.0, 2.0],
                "scales": [4],
                "strides": [4, 8, 16, 32],
                "type": "AnchorGenerator",
            },
            "bbox_coder": {
                "target_means": [0.0, 0.0, 0.0, 0.0],
                "target_stds": [1.0, 1.0, 1.0, 1.0],
                "type": "DeltaXYWHBBoxCoder",
            },
            "feat_channels": 64,
            "in_channels": 64,
            "loss_bbox": {"loss_weight": 1.0, "type": "L1Loss"},
            "loss_cls": {"loss_weight": 1.0, "type": "CrossEntropyLoss", "use_sigmoid": True},
            "type": "RPNHead",
        },
        "test_cfg": {
            "rcnn": {
                "max_per_img": 100,
                "nms": {"iou_threshold": 0.5, "type": "nms"},
                "score_thr": 0.05,
            },
            "rpn": {
                "max_per_img": 200,
                "min_bbox_size": 0,
                "nms": {"iou_threshold": 0.7, "type": "nms"},
                "nms_pre": 400,
            },
        },
        "train_cfg": {
            "rcnn": {
                "assigner": {
                    "ignore_iof_thr": -1,
                    "match_low_quality": False,
                    "min_pos_iou": 0.5,
                    "neg_iou_thr": 0.5,
                    "pos_iou_thr": 0.5,
                    "type": "MaxIoUAssigner",
                },
                "debug": False,
                "pos_weight": -1,
                "sampler": {
                    "add_gt_as_proposals": True,
                    "neg_pos_ub": -1,
                    "num": 32,
                    "pos_fraction": 0.25,
                    "type": "RandomSampler",
                },
            },
            "rpn": {
                "allowed_border": -1,
                "assigner": {
                    "ignore_iof_thr": -1,
                    "match_low_quality": True,
                    "min_pos_iou": 0.3,
                    "neg_iou_thr": 0.3,
                    "pos_iou_thr": 0.7,
                    "type": "MaxIoUAssigner",
                },
                "debug": False,
                "pos_weight": -1,
                "sampler": {
                    "add_gt_as_proposals": False,
                    "neg_pos_ub": -1,
                    "num": 256,
                    "pos_fraction": 0.5,
                    "type": "RandomSampler",
                },
            },
            "rpn_proposal": {
                "max_per_img": 200,
                "min_bbox_size": 0,
                "nms": {"iou_threshold": 0.7, "type": "nms"},
                "nms_pre": 400,
            },
        },
        "type": "FasterRCNN",
    },
    "teacher": {
        "backbone": {
            "depths": [2, 2, 2, 2],
            "drop_path_rate": 0.1,
            "embed_dims": 48,
            "num_heads": [2, 4, 8, 16],
            "out_indices": (0, 1, 2, 3),
            "type": "SwinTransformer",
            "window_size": 4,
        },
        "data_preprocessor": {
            "bgr_to_rgb": True,
            "mean": [123.675, 116.28, 103.53],
            "pad_size_divisor": 32,
            "std": [58.395, 57.12, 57.375],
            "type": "DetDataPreprocessor",
        },
        "neck": {
            "in_channels": [48, 96, 192, 384],
            "num_outs": 4,
            "out_channels": 64,
            "type": "FPN",
        },
        "roi_head": {
            "bbox_head": {
                "bbox_coder": {
                    "target_means": [0.0, 0.0, 0.0, 0.0],
                    "target_stds": [0.1, 0.1, 0.2, 0.2],
                    "type": "DeltaXYWHBBoxCoder",
                },
                "fc_out_channels": 256,
                "in_channels": 64,
                "loss_bbox": {"loss_weight": 1.0, "type": "L1Loss"},
                "loss_cls": {"loss_weight": 1.0, "type": "CrossEntropyLoss", "use_sigmoid": False},
                "num_classes": 10,
                "reg_class_agnostic": True,
                "roi_feat_size": 7,
                "type": "Shared2FCBBoxHead",
            },
            "bbox_roi_extractor": {
                "featmap_strides": [4, 8, 16, 32],
                "finest_scale": 28,
                "out_channels": 64,
                "roi_layer": {"output_size": 7, "sampling_ratio": 1, "type": "RoIAlign"},
                "type": "SingleRoIExtractor",
            },
            "type": "StandardRoIHead",
        },
        "rpn_head": {
            "anchor_generator": {
                "ratios": [0.5, 1.0, 2.0],
                "scales": [4],
                "strides": [4, 8, 16, 32],
                "type": "AnchorGenerator",
            },
            "bbox_coder": {
                "target_means": [0.0, 0.0, 0.0, 0.0],
                "target_stds": [1.0, 1.0, 1.0, 1.0],
                "type": "DeltaXYWHBBoxCoder",
            },
            "feat_channels": 64,
            "in_channels": 64,
            "loss_bbox": {"loss_weight": 1.0, "type": "L1Loss"},
            "loss_cls": {"loss_weight": 1.0, "type": "CrossEntropyLoss", "use_sigmoid": True},
            "type": "RPNHead",
        },
        "test_cfg": {
            "rcnn": {
                "max_per_img": 100,
                "nms": {"iou_threshold": 0.5, "type": "nms"},
                "score_thr": 0.05,
            },
            "rpn": {
                "max_per_img": 200,
                "min_bbox_size": 0,
                "nms": {"iou_threshold": 0.7, "type": "nms"},
                "nms_pre": 400,
            },
        },
        "train_cfg": {
            "rcnn": {
                "assigner": {
                    "ignore_iof_thr": -1,
                    "match_low_quality": False,
                    "min_pos_iou": 0.5,
                    "neg_iou_thr": 0.5,
                    "pos_iou_thr": 0.5,
                    "type": "MaxIoUAssigner",
                },
                "debug": False,
                "pos_weight": -1,
                "sampler": {
                    "add_gt_as_proposals": True,
                    "neg_pos_ub": -1,
                    "num": 32,
                    "pos_fraction": 0.25,
                    "type": "RandomSampler",
                },
            },
            "rpn": {
                "allowed_border": -1,
                "assigner": {
                    "ignore_iof_thr": -1,
                    "match_low_quality": True,
                    "min_pos_iou": 0.3,
                    "neg_iou_thr": 0.3,
                    "pos_iou_thr": 0.7,
                    "type": "MaxIoUAssigner",
                },
                "debug": False,
                "pos_weight": -1,
                "sampler": {
                    "add_gt_as_proposals": False,
                    "neg_pos_ub": -1,
                    "num": 256,
                    "pos_fraction": 0.5,
                    "type": "RandomSampler",
                },
            },
            "rpn_proposal": {
                "max_per_img": 200,
                "min_bbox_size": 0,
                "nms": {"iou_threshold": 0.7, "type": "nms"},
                "nms_pre": 400,
            },
        },
        "type": "FasterRCNN",
    },
    "teacher_checkpoint": None,
    "type": "DetectionDistiller",
}
optim_wrapper = {
    "clip_grad": {"max_norm": 5.0},
    "optimizer": {"lr": 0.002, "type": "AdamW", "weight_decay": 0.05},
    "paramwise_cfg": {"custom_keys": {"bbox_head": {"lr_mult": 0.2}}},
    "type": "OptimWrapper",
}
param_scheduler = [
    {"begin": 0, "by_epoch": False, "end": 50, "start_factor": 0.01, "type": "LinearLR"},
    {"begin": 50, "by_epoch": False, "end": 300, "type": "CosineAnnealingLR"},
]
randomness = {"seed": None}
resume = False
settings = "equal"
test_cfg = {"type": "TestLoop"}
test_dataloader = {
    "batch_size": 8,
    "dataset": {
        "ann_file": "annotations/val.json",
        "data_prefix": {"img": "val/"},
        "data_root": "data/digits/",
        "metainfo": {"classes": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")},
        "pipeline": [
            {"type": "LoadImageOrSkip"},
            {"keep_ratio": True, "scale": (128, 128), "type": "Resize"},
            {"type": "LoadAnnotations", "with_bbox": True},
            {
                "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
                "type": "PackDetInputs",
            },
        ],
        "test_mode": True,
        "type": "CheckedCocoDataset",
    },
    "drop_last": False,
    "num_workers": 1,
    "persistent_workers": True,
    "sampler": {"shuffle": False, "type": "DefaultSampler"},
}
test_evaluator = {
    "ann_file": "data/digits/annotations/val.json",
    "metric": "bbox",
    "type": "CocoMetric",
}
train_cfg = {"max_iters": 2, "type": "ResumableIterBasedTrainLoop", "val_interval": 2}
train_dataloader = {
    "batch_sampler": {"type": "AspectRatioBatchSampler"},
    "batch_size": 2,
    "dataset": {
        "ann_file": "annotations/train.json",
        "data_prefix": {"img": "train/"},
        "data_root": "data/digits/",
        "filter_cfg": {"filter_empty_gt": True, "min_size": 0},
        "metainfo": {"classes": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")},
        "pipeline": [
            {"type": "LoadImageOrSkip"},
            {"type": "LoadAnnotations", "with_bbox": True},
            {"keep_ratio": True, "scale": (128, 128), "type": "Resize"},
            {"type": "PackDetInputs"},
        ],
        "type": "CheckedCocoDataset",
    },
    "num_workers": 0,
    "persistent_workers": False,
    "sampler": {"shuffle": True, "type": "InfiniteSampler"},
}
val_cfg = {"type": "ValLoop"}
val_dataloader = {
    "batch_size": 8,
    "dataset": {
        "ann_file": "annotations/val.json",
        "data_prefix": {"img": "val/"},
        "data_root": "data/digits/",
        "metainfo": {"classes": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")},
        "pipeline": [
            {"type": "LoadImageOrSkip"},
            {"keep_ratio": True, "scale": (128, 128), "type": "Resize"},
            {"type": "LoadAnnotations", "with_bbox": True},
            {
                "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
                "type": "PackDetInputs",
            },
        ],
        "test_mode": True,
        "type": "CheckedCocoDataset",
    },
    "drop_last": False,
    "num_workers": 0,
    "persistent_workers": False,
    "sampler": {"shuffle": False, "type": "DefaultSampler"},
}
val_evaluator = {
    "ann_file": "data/digits/annotations/val.json",
    "metric": "bbox",
    "type": "CocoMetric",
}
visualizer = {
    "name": "visualizer",
    "type": "DetLocalVisualizer",
    "vis_backends": [{"type": "LocalVisBackend"}],
}
