"""The slim detector trained on from its kept weights.

Run:     espalier prune configs/prune/l1_half.py runs/detect/faster_rcnn_scenes.safetensors
         espalier detect train configs/detect/faster_rcnn_scenes_finetune.py
"""

start = dict(type="finetune", file="runs/detect/faster_rcnn_scenes-l1-0.5.safetensors")
data = dict(type="scenes", num_train=300, num_val=60)
schedule = dict(epochs=4, batch_size=8, lr=1e-3)
