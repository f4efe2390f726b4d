"""From decoded joints to figures: OKS, COCO's metrics, the test-time protocol."""
