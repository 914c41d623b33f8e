"""What is reported: overlap, surface distance, landmarks, displacement error, folding, image quality."""
