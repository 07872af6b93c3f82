"""A slim detector for generated scenes, trained further from the weights it kept.

Run:     espalier prune l1_half runs/detect/faster_rcnn_scenes.safetensors
         espalier detect train faster_rcnn_scenes_finetune
Needs:   the model file that the config faster_rcnn_scenes gives; no GPU
Result:  not measured
"""

start = dict(type="finetune", file="runs/detect/faster_rcnn_scenes-l1-0.5.safetensors")
data = dict(type="scenes", num_train=300, num_val=60)
schedule = dict(epochs=4, batch_size=8, lr=1e-3)
