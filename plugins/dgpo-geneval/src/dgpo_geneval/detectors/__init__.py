"""Detectors whose objects are boxes without masks: `yolox`, `detr`, `grounding-dino`, `owlv2`."""
