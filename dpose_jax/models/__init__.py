"""Networks: HRNet (x^fea), SC-CA (x^c), SGDD (D) and DiffusionPose, which joins them."""
