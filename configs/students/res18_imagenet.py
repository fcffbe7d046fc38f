_base_ = [
    "../_base_/models/res18.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/imagenet_cnn.py",
    "../_base_/classification_runtime.py",
]

model = dict(data_preprocessor={{_base_.preprocessor}})
